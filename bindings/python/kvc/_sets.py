"""Sets of things that the library counts as bits, by name."""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, Iterable, Literal, Tuple, Union, get_args

from . import kvc_capi as _capi
from ._arrays import dtype_code, dtype_name
from .errors import InvalidArgument

Mode = Literal["train", "prefill", "autoregressive", "insert"]
"""What attention is called for."""

Feature = Literal[
    "mask",
    "bias",
    "window",
    "chunk",
    "not_causal",
    "softcap",
    "alibi",
    "sinks",
    "lse",
    "weights",
    "dropout",
    "grouped",
    "dims_differ",
    "shifted",
    "rotated",
    "transformer",
    "lightning",
    "forward",
    "block_q",
    "block_k",
    "block_b",
    "scan",
]
"""What an operator has, and a layer or a call may need."""

MODES: Tuple[Mode, ...] = get_args(Mode)
FEATURES: Tuple[Feature, ...] = get_args(Feature)
SET = ("f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "q8_0", "q4_0", "int8", "nf4")
PRECISIONS = ("f32", "f16", "bf16", "f64")
DEVICES = {"cpu": 1 << _capi.KVC_CPU, "cuda": 1 << _capi.KVC_CUDA}

_BITS: Dict[str, int] = {
    **{name: getattr(_capi, f"KVC_MODE_{name.upper()}") for name in MODES},
    **{name: getattr(_capi, f"KVC_FEATURE_{name.upper()}") for name in FEATURES},
    **{name: getattr(_capi, f"KVC_SET_{name.upper()}") for name in SET},
    **DEVICES,
}


def names_in(bits: int, among: Iterable[str]) -> FrozenSet[str]:
    """The names of the bits that are set."""
    return frozenset(name for name in among if bits & _BITS[name])


def bits_of(argument: str, given: Union[str, Iterable[str]], among: Tuple[str, ...]) -> int:
    """The bits of names; one name may come without a list."""
    bits = 0
    for name in (given,) if isinstance(given, str) else given:
        if not isinstance(name, str) or name not in among:
            raise InvalidArgument(
                f"{argument} names {name!r}, which is not one of {', '.join(among)}"
            )
        bits |= _BITS[name]
    return bits


def types_of(argument: str, given: Any, among: Tuple[str, ...]) -> int:
    """The bits of element or storage types; one may come without a list."""
    listed = given if isinstance(given, (tuple, list, set, frozenset)) else (given,)
    names = [type_name(dtype_code(each, argument, among)) for each in listed]
    return bits_of(argument, names, among)


def type_name(code: int) -> str:
    """The name of an element or storage type; f64 too, which no array of the library has."""
    return "f64" if code == _capi.KVC_F64 else dtype_name(code)
