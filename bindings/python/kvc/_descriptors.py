"""The arguments of a cache as descriptors of the C library."""

from __future__ import annotations

import math
from typing import Any, Dict, Literal, Mapping, Optional, Tuple, Union

import numpy as np

from . import kvc_capi as _capi
from ._arrays import MASKS, STORED, dtype_code
from ._handles import Shape, integer, set_integers
from .errors import InvalidArgument, NotSupported

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

Rotate = Union[bool, Literal["k", "v"]]
"""Which of K and V are stored rotated; True: both, False: none."""

# What only some kinds take, with its defaults.
_CAUSAL = {
    "memory": None,
    "chunk": None,
    "keep_first": 0,
    "position_free": False,
    "cell_padding": 1,
    "cells": 0,
}
_ENCODER = {"inputs": 0}
_TRANSFORMER = {"value_heads": 0, "ring": False, "causal": True}
_LIGHTNING = {"block_tokens": 0, "fused": False}
_POSITIONS = {"reach": None, "sliding_window": None, "interleaved": False, "v_first": None}
_STORED = {
    "capacity": None,
    "dtype": None,
    "dtype_k": None,
    "dtype_v": None,
    "block": 0,
    "rotate": False,
    "mask_dtype": "f32",
}
_HEADS = {"n_kv_heads": None, "head_dim": None, "head_dim_v": None, "max_q_heads": 0}
_RECURRENT = {
    "state_shape": None,
    "conv_channels": 0,
    "conv_dim": 0,
    "dtype_state": "f32",
    "dtype_conv": "f32",
}
_STATES = {
    "checkpoints": 24,
    "checkpoint_interval": 1664,
    "checkpoint_min_pos": 16,
    "draft_states": 0,
    "approximate": False,
    "host_checkpoints": False,
}
_WITH_KEYS = ("causal", "encoder", "transformer")
_WITH_HEADS = (*_WITH_KEYS, "lightning")
_ONLY = (
    (_CAUSAL, ("causal",)),
    (_ENCODER, ("encoder",)),
    (_TRANSFORMER, ("transformer",)),
    (_LIGHTNING, ("lightning",)),
    (_POSITIONS, ("causal", "transformer")),
    (_STORED, _WITH_KEYS),
    (_HEADS, _WITH_HEADS),
    (_RECURRENT, ("recurrent",)),
    (_STATES, ("recurrent", "lightning")),
)
_NEEDED = {"n_kv_heads": _WITH_HEADS, "head_dim": _WITH_HEADS, "capacity": _WITH_KEYS}

_MOST_ELEMENTS = 2**40  # of a state


def descriptors(arguments: Mapping[str, Any]) -> Tuple[Any, Any]:
    """The descriptor of a cache and that of its kind, from all arguments of kvc.Cache by name."""
    kind = arguments["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidArgument(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "wrapper":
        raise NotSupported("kvc.Cache.wrap() and kvc.Cache.from_layers() make wrappers")
    _check_names(kind, arguments)
    desc, kind_desc = _cache_descriptor(arguments), _OF_KIND[kind](arguments)
    if kind in _WITH_HEADS:
        _set_heads(desc, arguments)
    if kind in _WITH_KEYS:
        _set_storage(desc, arguments)
    return desc, kind_desc


def shape_of(arguments: Mapping[str, Any], desc: Any, kind_desc: Any) -> Shape:
    """What a cache remembers of its arguments."""
    fields: Dict[str, Any] = {
        name: getattr(desc, name)
        for name in ("n_layers", "n_kv_heads", "head_dim_k", "head_dim_v", "max_sequences")
        + ("max_batch", "capacity", "dtype_k", "dtype_v", "block_k", "block_v", "flags")
    }
    is_recurrent = arguments["kind"] == "recurrent"
    has_conv = is_recurrent and kind_desc.conv_channels and kind_desc.conv_dim
    return Shape(
        kind=arguments["kind"],
        **fields,
        dtype_conv=kind_desc.dtype_conv if is_recurrent else 0,
        dtype_state=kind_desc.dtype_state if is_recurrent else 0,
        conv_shape=(kind_desc.conv_channels, kind_desc.conv_dim) if has_conv else (),
        state_shape=_state_shape(arguments["state_shape"]),
        v_first=arguments["v_first"],
        value_heads=arguments["value_heads"],
        is_causal=bool(arguments["causal"]),
    )


def _check_names(kind: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that the kind of the cache does not take, and a lack of those it needs."""
    for names, kinds in _ONLY:
        given = [name for name, default in names.items() if arguments[name] != default]
        if given and kind not in kinds:
            takers = " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
            raise InvalidArgument(f"only {takers} caches take {', '.join(given)}")
    missing = [name for name, kinds in _NEEDED.items() if kind in kinds and arguments[name] is None]
    if missing:
        raise TypeError(f"kvc.Cache() of kind {kind!r} needs {', '.join(missing)}")


def _cache_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that every kind of cache needs."""
    desc = _capi.kvc_cache_desc()
    set_integers(
        desc,
        kind=KINDS[arguments["kind"]],
        flags=(_capi.KVC_CACHE_STRICT if arguments["strict"] else 0)
        | (_capi.KVC_CACHE_ZERO_ON_FREE if arguments["zero_on_free"] else 0)
        | (_capi.KVC_CACHE_PREFAULT if arguments["prefault"] else 0),
        **{name: arguments[name] for name in ("n_layers", "max_sequences", "max_batch")},
    )
    return desc


def _set_heads(desc: Any, arguments: Mapping[str, Any]) -> None:
    """Heads and what they hold."""
    set_integers(
        desc,
        head_dim_k=arguments["head_dim"],
        head_dim_v=0 if arguments["head_dim_v"] is None else arguments["head_dim_v"],
        **{name: arguments[name] for name in ("n_kv_heads", "max_q_heads")},
    )
    if desc.head_dim_v == 0:  # the library's default, which kvc.Cache needs to size arrays
        desc.head_dim_v = desc.head_dim_k


def _set_storage(desc: Any, arguments: Mapping[str, Any]) -> None:
    """How K and V are stored, and how many."""
    set_integers(desc, **{name: arguments[name] for name in ("capacity", "cells")})
    v_in_k = arguments["v_first"] is not None  # V is then stored as K is
    dtype = "f32" if arguments["dtype"] is None else arguments["dtype"]
    types = {"dtype_k": dtype_code(dtype, "dtype", STORED)}
    types["dtype_v"] = 0 if v_in_k else types["dtype_k"]
    for name in types:
        if arguments[name] is not None:
            types[name] = dtype_code(arguments[name], name, STORED)
    block = integer("block", arguments["block"])
    of_v = types["dtype_v"] == _capi.KVC_NF4
    of_k = types["dtype_k"] == _capi.KVC_NF4 or not of_v  # the library refuses one for nothing
    set_integers(
        desc,
        flags=desc.flags
        | _rotation_flags(arguments["rotate"], v_in_k)
        | (_capi.KVC_CACHE_INTERLEAVED if arguments["interleaved"] else 0)
        | (_capi.KVC_CACHE_V_IN_K if v_in_k else 0),
        block_k=block if of_k else 0,
        block_v=block if of_v else 0,
        v_first=arguments["v_first"] if v_in_k else 0,
        **types,
    )


def _rotation_flags(rotate: Any, v_in_k: bool) -> int:
    """The flags that `rotate` stands for; both are K's alone if V is a part of K."""
    k, v = int(_capi.KVC_CACHE_ROTATE_K), int(_capi.KVC_CACHE_ROTATE_V)
    if isinstance(rotate, str) and rotate in ("k", "v"):
        return k if rotate == "k" else v
    if isinstance(rotate, (bool, np.bool_)):
        return (k if v_in_k else k | v) if rotate else 0
    raise InvalidArgument(f'rotate is {rotate!r}; it must be True, False, "k" or "v"')


def _causal_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that a causal cache needs besides."""
    causal = _capi.kvc_causal_desc()
    set_integers(
        causal,
        kind=_capi.KVC_CAUSAL,
        flags=_capi.KVC_CAUSAL_POSITION_FREE if arguments["position_free"] else 0,
        reach=reach_of(arguments["reach"], arguments["sliding_window"]),
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


def _transformer_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that a transformer cache needs besides."""
    transformer = _capi.kvc_transformer_desc()
    set_integers(
        transformer,
        kind=_capi.KVC_TRANSFORMER,
        flags=(_capi.KVC_TRANSFORMER_RING if arguments["ring"] else 0)
        | (0 if arguments["causal"] else _capi.KVC_TRANSFORMER_NOT_CAUSAL),
        reach=reach_of(arguments["reach"], arguments["sliding_window"]),
        value_heads=arguments["value_heads"],
        mask_dtype=dtype_code(arguments["mask_dtype"], "mask_dtype", MASKS),
    )
    return transformer


def _lightning_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that a lightning cache needs besides."""
    lightning = _capi.kvc_lightning_desc()
    set_integers(
        lightning,
        kind=_capi.KVC_LIGHTNING,
        flags=(_capi.KVC_LIGHTNING_APPROXIMATE if arguments["approximate"] else 0)
        | (_capi.KVC_LIGHTNING_HOST_CHECKPOINTS if arguments["host_checkpoints"] else 0)
        | (_capi.KVC_LIGHTNING_FUSED if arguments["fused"] else 0),
        block=arguments["block_tokens"],
    )
    _set_checkpoints(lightning, arguments)
    return lightning


def _set_checkpoints(desc: Any, arguments: Mapping[str, Any]) -> None:
    """Which states are kept, of caches that have states."""
    interval = arguments["checkpoint_interval"]
    if interval is not None and integer("checkpoint_interval", interval) < 1:
        raise InvalidArgument(
            f"checkpoint_interval is {interval}; it must be 1 or more, or None for no automatic ones"
        )
    set_integers(
        desc,
        checkpoints=_or_none("checkpoints", arguments["checkpoints"]),
        checkpoint_interval=_capi.KVC_NONE if interval is None else interval,
        checkpoint_min_pos=_or_none("checkpoint_min_pos", arguments["checkpoint_min_pos"]),
        draft_states=arguments["draft_states"],
    )


def _recurrent_descriptor(arguments: Mapping[str, Any]) -> Any:
    """The descriptor that a recurrent cache needs besides."""
    recurrent = _capi.kvc_recurrent_desc()
    set_integers(
        recurrent,
        kind=_capi.KVC_RECURRENT,
        flags=(_capi.KVC_RECURRENT_APPROXIMATE if arguments["approximate"] else 0)
        | (_capi.KVC_RECURRENT_HOST_CHECKPOINTS if arguments["host_checkpoints"] else 0),
        dtype_state=dtype_code(arguments["dtype_state"], "dtype_state"),
        dtype_conv=dtype_code(arguments["dtype_conv"], "dtype_conv"),
        **{name: arguments[name] for name in ("conv_channels", "conv_dim")},
    )
    _set_checkpoints(recurrent, arguments)
    shape = _state_shape(arguments["state_shape"])
    elements = math.prod(shape) if shape else 0
    if elements > _MOST_ELEMENTS:
        raise InvalidArgument(f"state_shape {shape} has {elements} elements, more than 2^40")
    recurrent.state_size = elements
    return recurrent


def _state_shape(given: Any) -> Tuple[int, ...]:
    """The shape of a layer's recurrent state; empty: it has none."""
    if given is None:
        return ()
    listed = given if isinstance(given, (tuple, list)) else (given,)
    shape = tuple(integer(f"state_shape[{i}]", extent) for i, extent in enumerate(listed))
    if not shape or len(shape) > 7 or min(shape) < 1:
        raise InvalidArgument(f"state_shape {given!r} is not 1 to 7 numbers of at least 1")
    return shape


def _or_none(name: str, value: Any) -> int:
    """A number as the library takes it, where 0 means the default and KVC_NONE means 0."""
    number = integer(name, value)
    if number < 0:
        raise InvalidArgument(f"{name} is {number}; it must be 0 or more")
    return number or int(_capi.KVC_NONE)


def reach_of(reach: Optional[int], sliding_window: Optional[int]) -> int:
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


_OF_KIND = {
    "causal": _causal_descriptor,
    "encoder": _encoder_descriptor,
    "recurrent": _recurrent_descriptor,
    "transformer": _transformer_descriptor,
    "lightning": _lightning_descriptor,
}
