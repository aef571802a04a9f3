"""The arguments of a cache as descriptors of the C library."""

from __future__ import annotations

from typing import Any, Literal, Mapping, Optional, Tuple

from . import kvc_capi as _capi
from ._arrays import MASKS, STORED, dtype_code
from ._handles import integer, set_integers
from .errors import InvalidArgument

UNLIMITED: int = _capi.KVC_NONE
"""For `memory`: keep every position, however short the reach."""

Kind = Literal["causal", "encoder", "recurrent", "wrapper", "transformer", "lightning"]

KINDS = {
    "causal": _capi.KVC_CAUSAL,
    "encoder": _capi.KVC_ENCODER,
    "recurrent": _capi.KVC_RECURRENT,
    "wrapper": _capi.KVC_WRAPPER,
    "transformer": _capi.KVC_TRANSFORMER,
    "lightning": _capi.KVC_LIGHTNING,
}

_STORED = ("dtype_k", "dtype_v")  # dtype gives them their defaults

# What only some kinds take, with its defaults. (The library refuses the kinds of later versions.)
_CAUSAL = {
    "reach": None,
    "sliding_window": None,
    "memory": None,
    "chunk": None,
    "keep_first": 0,
    "position_free": False,
    "cell_padding": 1,
    "cells": 0,
}
_ENCODER = {"inputs": 0}
_CAUSAL_AND_ENCODER = {"mask_dtype": "f32"}


def descriptors(arguments: Mapping[str, Any]) -> Tuple[Any, Any]:
    """The descriptor of a cache and that of its kind (None for a kind that has no arguments), from
    all arguments of kvc.Cache by name."""
    kind = arguments["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidArgument(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    _refuse_others(arguments)
    kind_desc = None
    if kind == "causal":
        kind_desc = _causal_descriptor(arguments)
    elif kind == "encoder":
        kind_desc = _encoder_descriptor(arguments)
    return _cache_descriptor(arguments), kind_desc


def _refuse_others(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that the kind of the cache does not take."""
    kind = arguments["kind"]
    for names, kinds in (
        (_CAUSAL, ("causal",)),
        (_ENCODER, ("encoder",)),
        (_CAUSAL_AND_ENCODER, ("causal", "encoder")),
    ):
        given = [name for name, default in names.items() if arguments[name] != default]
        if given and kind not in kinds:
            raise InvalidArgument(f"only {' and '.join(kinds)} caches take {', '.join(given)}")


def _cache_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that every kind of cache needs."""
    named = {name: name if arguments[name] is not None else "dtype" for name in _STORED}
    desc = _capi.kvc_cache_desc()
    set_integers(
        desc,
        kind=KINDS[arguments["kind"]],
        flags=(_capi.KVC_CACHE_STRICT if arguments["strict"] else 0)
        | (_capi.KVC_CACHE_ZERO_ON_FREE if arguments["zero_on_free"] else 0)
        | (_capi.KVC_CACHE_PREFAULT if arguments["prefault"] else 0),
        head_dim_k=arguments["head_dim"],
        head_dim_v=0 if arguments["head_dim_v"] is None else arguments["head_dim_v"],
        **{field: dtype_code(arguments[name], name, STORED) for field, name in named.items()},
        **{
            name: arguments[name]
            for name in ("n_layers", "n_kv_heads", "max_sequences", "capacity")
            + ("max_batch", "cells", "max_q_heads")
        },
    )
    if desc.head_dim_v == 0:  # the library's default, which kvc.Cache needs to size arrays
        desc.head_dim_v = desc.head_dim_k
    return desc


def _causal_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that a causal cache needs besides."""
    causal = _capi.kvc_causal_desc()
    set_integers(
        causal,
        kind=_capi.KVC_CAUSAL,
        flags=_capi.KVC_CAUSAL_POSITION_FREE if arguments["position_free"] else 0,
        reach=_reach(arguments["reach"], arguments["sliding_window"]),
        memory=0 if arguments["memory"] is None else arguments["memory"],
        chunk=0 if arguments["chunk"] is None else arguments["chunk"],
        keep_first=arguments["keep_first"],
        cell_padding=arguments["cell_padding"],
        mask_dtype=dtype_code(arguments["mask_dtype"], "mask_dtype", MASKS),
    )
    return causal


def _encoder_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that an encoder cache needs besides."""
    encoder = _capi.kvc_encoder_desc()
    set_integers(
        encoder,
        kind=_capi.KVC_ENCODER,
        inputs=arguments["inputs"],
        mask_dtype=dtype_code(arguments["mask_dtype"], "mask_dtype", MASKS),
    )
    return encoder


def _reach(reach: Optional[int], sliding_window: Optional[int]) -> int:
    """The library's reach (0: everything), given as a reach or as a window."""
    if reach is not None and sliding_window is not None:
        raise InvalidArgument("reach and sliding_window mean the same: pass one of them")
    if sliding_window is not None:
        if integer("sliding_window", sliding_window) < 2:
            raise InvalidArgument(
                f"sliding_window {sliding_window} is below 2: a token sees the one before it"
            )
        return sliding_window - 1
    if reach is not None and integer("reach", reach) < 1:
        raise InvalidArgument(f"reach {reach} is below 1; None sees everything")
    return 0 if reach is None else reach
