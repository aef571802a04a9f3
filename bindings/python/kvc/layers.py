"""Descriptions of a model's layers, from which kvc.Cache.from_layers() makes caches that move as one."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from . import kvc_capi as _capi
from ._descriptors import Kind, Rotate
from ._handles import checks_names
from .errors import Error, InvalidArgument

if TYPE_CHECKING:
    from typing import Type, TypeVar

    from typing_extensions import dataclass_transform

    from ._arrays import Dtype

    Class = TypeVar("Class")

    @dataclass_transform(kw_only_default=True, frozen_default=True)
    def _record(cls: Type[Class]) -> Type[Class]: ...

else:
    _record = dataclass(frozen=True)


@_record
class Layer:
    """What one layer of a model needs of a cache, for kvc.Cache.from_layers().

    The arguments are those of kvc.Cache with the same names, meanings and defaults; its manual
    describes them. Layers that are equal share a cache. A layer of the model that needs two (self
    attention and cross attention, or attention beside a state-space model) is two such layers.
    """

    n_kv_heads: Optional[int] = None
    head_dim: Optional[int] = None
    capacity: Optional[int] = None
    kind: Kind = "causal"
    head_dim_v: Optional[int] = None
    dtype: Dtype = None
    dtype_k: Dtype = None
    dtype_v: Dtype = None
    block: int = 0
    rotate: Rotate = False
    cells: int = 0
    max_q_heads: int = 0
    reach: Optional[int] = None
    sliding_window: Optional[int] = None
    memory: Optional[int] = None
    chunk: Optional[int] = None
    keep_first: int = 0
    position_free: bool = False
    cell_padding: int = 1
    interleaved: bool = False
    v_first: Optional[int] = None
    mask_dtype: Dtype = "f32"
    inputs: int = 0
    state_shape: Union[None, int, Tuple[int, ...]] = None
    conv_channels: int = 0
    conv_dim: int = 0
    dtype_state: Dtype = "f32"
    dtype_conv: Dtype = "f32"
    checkpoints: int = 24
    checkpoint_interval: Optional[int] = 1664
    checkpoint_min_pos: int = 16
    draft_states: int = 0
    approximate: bool = False
    host_checkpoints: bool = False
    value_heads: int = 0
    ring: bool = False
    causal: bool = True
    block_tokens: int = 0
    fused: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.state_shape, list):  # which equals no tuple
            object.__setattr__(self, "state_shape", tuple(self.state_shape))

    def __repr__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"kvc.Layer({', '.join(given)})"


def _by_name(function: Any) -> Any:
    """Takes all arguments by name, as kvc.Cache does. (kw_only of dataclasses needs Python 3.10.)"""
    own, *others = inspect.signature(function).parameters.values()
    by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in others]
    function.__signature__ = inspect.Signature([own, *by_name])
    function.__qualname__ = "Layer.__init__"  # Python 3.9 gives it another
    return checks_names(function)


if not TYPE_CHECKING:
    Layer.__init__ = _by_name(Layer.__init__)


def caches_of(
    layers: Iterable[Layer], capacity: Optional[int], dtype: Dtype
) -> Tuple[List[Dict[str, Any]], List[Tuple[int, int]]]:
    """The arguments of the caches that the layers need, and for each layer the index of its cache and
    its number there."""
    different: List[Layer] = []
    counts: List[int] = []
    places: List[Tuple[int, int]] = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{index}] must be a kvc.Layer, not {type(layer).__name__}")
        child = different.index(layer) if layer in different else len(different)
        if child == _capi.KVC_MAX_CHILDREN:
            raise InvalidArgument(
                f"layers[{index}] would need a cache of its own, as {child} different ones before it do: "
                f"at most {child} move as one"
            )
        if child == len(different):
            different.append(layer)
            counts.append(0)
        places.append((child, counts[child]))
        counts[child] += 1
    if not places:
        raise InvalidArgument("layers is empty: pass a kvc.Layer for each layer of the model")
    arguments = []
    for child, (layer, n_layers) in enumerate(zip(different, counts)):
        with names_layer(places, child):
            arguments.append(_arguments(layer, n_layers, capacity, dtype))
    return arguments, places


def _first_layer(places: List[Tuple[int, int]], child: int) -> str:
    return f"layers[{[cache for cache, _ in places].index(child)}]"


@contextmanager
def names_layers(places: List[Tuple[int, int]]) -> Iterator[None]:
    """An error in making one of several caches names the first layer of each, not its number."""
    try:
        yield
    except Error as error:
        message = re.sub(
            r"\bchildren\[(\d+)\]", lambda found: _first_layer(places, int(found[1])), str(error)
        )
        raise type(error)(message, error.status) from None


@contextmanager
def names_layer(places: List[Tuple[int, int]], child: int) -> Iterator[None]:
    """An error in making a cache names the first layer that it is for."""
    layer = _first_layer(places, child)
    try:
        yield
    except Error as error:
        raise type(error)(f"the cache of {layer}: {error}", error.status) from None
    except TypeError as error:
        raise TypeError(f"the cache of {layer}: {error}") from None


def _arguments(
    layer: Layer, n_layers: int, capacity: Optional[int], dtype: Dtype
) -> Dict[str, Any]:
    """The arguments of the cache of some equal layers."""
    own = {field.name: getattr(layer, field.name) for field in fields(layer)}
    if layer.kind not in (
        "recurrent",
        "lightning",
    ):  # a state has neither capacity nor storage type
        if layer.kind == "encoder" and layer.capacity is None:
            raise InvalidArgument(
                f"{layer!r} needs a capacity of its own: the positions of its longest input"
            )
        if layer.capacity is None:
            own["capacity"] = capacity
        if layer.dtype is None:
            own["dtype"] = dtype
    return {"n_layers": n_layers, **own}
