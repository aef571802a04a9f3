"""The keyword arguments of a cache as descriptors of the C library."""

from __future__ import annotations

import inspect
from typing import Any, Literal, Optional, Tuple, TypedDict

from . import kvc_capi as _capi
from ._arrays import MASKS, STORED, dtype_code
from ._handles import set_integers
from .errors import InvalidArgument

UNLIMITED = _capi.KVC_NONE
"""For `memory`: keep every position, however short the reach."""

Kind = Literal["causal", "encoder", "recurrent", "wrapper", "transformer", "lightning"]

_KINDS = {
    "causal": _capi.KVC_CAUSAL,
    "encoder": _capi.KVC_ENCODER,
    "recurrent": _capi.KVC_RECURRENT,
    "wrapper": _capi.KVC_WRAPPER,
    "transformer": _capi.KVC_TRANSFORMER,
    "lightning": _capi.KVC_LIGHTNING,
}


class _Shapes(TypedDict):
    n_layers: int
    n_kv_heads: int
    head_dim: int
    capacity: int


class Geometry(_Shapes, total=False):
    """The keyword arguments of kvc.Cache, for type checkers; kvc.Cache documents them."""

    kind: Kind
    head_dim_v: Optional[int]
    dtype: Any
    dtype_k: Any
    dtype_v: Any
    max_sequences: int
    max_batch: int
    cells: int
    max_q_heads: int
    strict: bool
    zero_on_free: bool
    prefault: bool
    reach: Optional[int]
    sliding_window: Optional[int]
    memory: Optional[int]
    chunk: Optional[int]
    keep_first: int
    cell_padding: int
    mask_dtype: Any
    position_free: bool


def cache_descriptor(
    *,
    kind: Kind = "causal",
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
    strict: bool = False,
    zero_on_free: bool = False,
    prefault: bool = False,
) -> Any:
    """The descriptor that every kind of cache needs."""
    if kind not in _KINDS:
        raise InvalidArgument(f"kind {kind!r} is not one of {', '.join(_KINDS)}")
    desc = _capi.kvc_cache_desc()
    flags = (
        (_capi.KVC_CACHE_STRICT if strict else 0)
        | (_capi.KVC_CACHE_ZERO_ON_FREE if zero_on_free else 0)
        | (_capi.KVC_CACHE_PREFAULT if prefault else 0)
    )
    set_integers(
        desc,
        kind=_KINDS[kind],
        flags=flags,
        n_layers=n_layers,
        n_kv_heads=n_kv_heads,
        head_dim_k=head_dim,
        head_dim_v=0 if head_dim_v is None else head_dim_v,
        dtype_k=dtype_code(dtype if dtype_k is None else dtype_k, "dtype_k", STORED),
        dtype_v=dtype_code(dtype if dtype_v is None else dtype_v, "dtype_v", STORED),
        max_sequences=max_sequences,
        capacity=capacity,
        max_batch=max_batch,
        cells=cells,
        max_q_heads=max_q_heads,
    )
    if desc.head_dim_v == 0:  # the library's default, which kvc.Cache needs to size arrays
        desc.head_dim_v = desc.head_dim_k
    return desc


def causal_descriptor(
    *,
    reach: Optional[int] = None,
    sliding_window: Optional[int] = None,
    memory: Optional[int] = None,
    chunk: Optional[int] = None,
    keep_first: int = 0,
    cell_padding: int = 1,
    mask_dtype: Any = "f32",
    position_free: bool = False,
) -> Any:
    """The descriptor that a causal cache needs besides."""
    causal = _capi.kvc_causal_desc()
    set_integers(
        causal,
        kind=_capi.KVC_CAUSAL,
        flags=_capi.KVC_CAUSAL_POSITION_FREE if position_free else 0,
        reach=_reach(reach, sliding_window),
        memory=0 if memory is None else memory,
        chunk=0 if chunk is None else chunk,
        keep_first=keep_first,
        cell_padding=cell_padding,
        mask_dtype=dtype_code(mask_dtype, "mask_dtype", MASKS),
    )
    return causal


_CAUSAL_ARGUMENTS = frozenset(inspect.signature(causal_descriptor).parameters)


def descriptors(**geometry: Any) -> Tuple[Any, Any]:
    """The descriptor of a cache and that of its kind: None for a kind that has no arguments."""
    of_kind = {name: geometry.pop(name) for name in [*geometry] if name in _CAUSAL_ARGUMENTS}
    desc = cache_descriptor(**geometry)
    if desc.kind == _capi.KVC_CAUSAL:
        return desc, causal_descriptor(**of_kind)
    if of_kind:
        raise InvalidArgument(f"only causal caches take {', '.join(of_kind)}")
    return desc, None


def _reach(reach: Optional[int], sliding_window: Optional[int]) -> int:
    """The library's reach (0: everything), given as a reach or as a window."""
    if reach is not None and sliding_window is not None:
        raise InvalidArgument("reach and sliding_window mean the same: pass one of them")
    if sliding_window is not None:
        if sliding_window < 2:
            raise InvalidArgument(
                f"sliding_window {sliding_window} is below 2: a token sees the one before it"
            )
        return sliding_window - 1
    if reach is not None and reach < 1:
        raise InvalidArgument(f"reach {reach} is below 1; None sees everything")
    return 0 if reach is None else reach
