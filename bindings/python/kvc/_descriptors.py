"""Keyword arguments of a cache as descriptors of the C library."""

from __future__ import annotations

from typing import Any, Optional, Tuple, TypedDict

from . import kvc_capi as _capi
from ._arrays import dtype_code
from ._handles import set_integers
from .errors import InvalidArgument

UNLIMITED = _capi.KVC_NONE
"""For `memory`: keep every position, however short the reach."""


class _Shapes(TypedDict):
    n_layers: int
    n_kv_heads: int
    head_dim: int
    capacity: int


class Geometry(_Shapes, total=False):
    """The keyword arguments of kvc.Cache, for type checkers; kvc.Cache documents them."""

    head_dim_v: Optional[int]
    dtype: Any
    dtype_k: Any
    dtype_v: Any
    max_sequences: int
    max_batch: int
    cells: int
    max_q_heads: int
    reach: Optional[int]
    sliding_window: Optional[int]
    memory: Optional[int]
    chunk: Optional[int]
    keep_first: int
    cell_padding: int
    mask_dtype: Any
    position_free: bool
    strict: bool
    zero_on_free: bool
    prefault: bool


def causal_descriptors(
    *,
    n_layers: int,
    n_kv_heads: int,
    head_dim: int,
    capacity: int,
    head_dim_v: Optional[int] = None,
    dtype: Any = "f32",
    dtype_k: Any = None,
    dtype_v: Any = None,
    max_sequences: int = 1,
    max_batch: int = 512,
    cells: int = 0,
    max_q_heads: int = 0,
    reach: Optional[int] = None,
    sliding_window: Optional[int] = None,
    memory: Optional[int] = None,
    chunk: Optional[int] = None,
    keep_first: int = 0,
    cell_padding: int = 1,
    mask_dtype: Any = "f32",
    position_free: bool = False,
    strict: bool = False,
    zero_on_free: bool = False,
    prefault: bool = False,
) -> Tuple[Any, Any]:
    """The two descriptors of a causal cache; kvc.Cache documents the arguments."""
    desc = _capi.kvc_cache_desc()
    flags = (
        (_capi.KVC_CACHE_STRICT if strict else 0)
        | (_capi.KVC_CACHE_ZERO_ON_FREE if zero_on_free else 0)
        | (_capi.KVC_CACHE_PREFAULT if prefault else 0)
    )
    set_integers(
        desc,
        kind=_capi.KVC_CAUSAL,
        flags=flags,
        n_layers=n_layers,
        n_kv_heads=n_kv_heads,
        head_dim_k=head_dim,
        head_dim_v=0 if head_dim_v is None else head_dim_v,
        dtype_k=dtype_code(dtype if dtype_k is None else dtype_k, "dtype_k"),
        dtype_v=dtype_code(dtype if dtype_v is None else dtype_v, "dtype_v"),
        max_sequences=max_sequences,
        capacity=capacity,
        max_batch=max_batch,
        cells=cells,
        max_q_heads=max_q_heads,
    )
    if desc.head_dim_v == 0:  # the library's default, said here: kvc.Cache makes arrays of this size
        desc.head_dim_v = desc.head_dim_k
    causal = _capi.kvc_causal_desc()
    set_integers(
        causal,
        flags=_capi.KVC_CAUSAL_POSITION_FREE if position_free else 0,
        reach=_reach(reach, sliding_window),
        memory=0 if memory is None else memory,
        chunk=0 if chunk is None else chunk,
        keep_first=keep_first,
        cell_padding=cell_padding,
        mask_dtype=dtype_code(mask_dtype, "mask_dtype"),
    )
    return desc, causal


def _reach(reach: Optional[int], sliding_window: Optional[int]) -> int:
    """The library's reach (0: everything) from either of the two names that callers use."""
    if reach is not None and sliding_window is not None:
        raise InvalidArgument("reach and sliding_window say the same thing: give one of them")
    if sliding_window is not None:
        if sliding_window < 2:
            raise InvalidArgument(
                f"sliding_window {sliding_window} is below 2: a token sees the one before it"
            )
        return sliding_window - 1
    if reach is not None and reach < 1:
        raise InvalidArgument(f"reach {reach} is below 1; None sees everything")
    return 0 if reach is None else reach
