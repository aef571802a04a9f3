"""The arguments of kvc.Cache by kind, for type checkers alone; help(kvc.Cache) describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Tuple, Union

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from ._arrays import Dtype
    from ._descriptors import Rotate
    from .device import Device


class Common(TypedDict, total=False):
    """What every kind takes."""

    max_sequences: int
    max_batch: int
    strict: bool
    zero_on_free: bool
    prefault: bool
    device: Optional[Device]


class Heads(Common, total=False):
    """What kinds that attend take."""

    head_dim_v: Optional[int]
    max_q_heads: int


class KeysAndValues(Heads, total=False):
    """What kinds with keys and values take."""

    dtype: Dtype
    dtype_k: Dtype
    dtype_v: Dtype
    block: int
    rotate: Rotate
    mask_dtype: Dtype


class Positions(KeysAndValues, total=False):
    """What kinds take whose tokens see positions before them."""

    reach: Optional[int]
    sliding_window: Optional[int]
    interleaved: bool
    v_first: Optional[int]


class Causal(Positions, total=False):
    """What a causal cache takes."""

    cells: int
    memory: Optional[int]
    chunk: Optional[int]
    keep_first: int
    position_free: bool
    cell_padding: int


class Encoder(KeysAndValues, total=False):
    """What an encoder cache takes."""

    inputs: int


class Transformer(Positions, total=False):
    """What a transformer cache takes."""

    value_heads: int
    ring: bool
    causal: bool


class Recurrent(Common, total=False):
    """What a recurrent cache takes."""

    state_shape: Union[None, int, Tuple[int, ...]]
    conv_channels: int
    conv_dim: int
    dtype_state: Dtype
    dtype_conv: Dtype
    checkpoints: int
    checkpoint_interval: Optional[int]
    checkpoint_min_pos: int
    draft_states: int
    approximate: bool
    host_checkpoints: bool


class Lightning(Heads, total=False):
    """What a lightning cache takes."""

    block_tokens: int
    fused: bool
    checkpoints: int
    checkpoint_interval: Optional[int]
    checkpoint_min_pos: int
    draft_states: int
    approximate: bool
    host_checkpoints: bool
