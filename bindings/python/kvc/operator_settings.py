"""What operators of attention have, and their settings, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, FrozenSet, Optional

from . import kvc_capi as _capi
from ._arrays import dtype_code
from ._handles import number, set_integers
from ._sets import DEVICES, FEATURES, MODES, PRECISIONS, SET, names_in, type_name


@dataclass(frozen=True)
class OperatorInfo:
    """What an operator has."""

    name: str
    """that was asked for or listed"""
    canonical: str
    """the first name of the operator, the same for all of its aliases"""
    devices: FrozenSet[str]
    """of "cpu" and "cuda\""""
    modes: FrozenSet[str]
    """of "train" (a call with dropout; without a cache more than one query token), "prefill" (a pass in
    which some sequence has more than one token), "autoregressive" (each sequence has one token) and
    "insert" (rows move from cache to cache; no operator runs)"""
    features: FrozenSet[str]
    """of "mask", "bias", "window", "chunk", "not_causal" (tokens that see later ones; encoder caches),
    "softcap", "alibi", "sinks", "lse", "weights", "dropout", "grouped" (fewer KV heads than query heads),
    "dims_differ" (head dimensions of K and V that differ), "shifted" (keys with a pending rotation),
    "rotated" (storage rotated by a Hadamard matrix), "transformer" (rows of such a cache), "lightning"
    (states of one), "forward" (attention without a cache), and the settings "block_q", "block_k",
    "block_b" and "scan" (stretches)"""
    storage: FrozenSet[str]
    """types of K and V in a cache: "f32", "q8_0" …"""
    runtime_dtypes: FrozenSet[str]
    """types that may be asked for"""
    softmax_dtypes: FrozenSet[str]
    """likewise; "f64" too"""
    head_dim_min: int
    """0: any"""
    head_dim_max: int
    """0: any"""
    head_dim_multiple: int
    """0: any"""
    block_q_multiple: int
    """what is asked for is rounded up to a multiple"""
    block_k_multiple: int
    """likewise"""


@dataclass(frozen=True)
class OperatorSettings:
    """Settings of an operator. 0, None and scan=True are "not given"."""

    runtime_dtype: Optional[str] = None
    """the least exact type that q, k, v and weights may be rounded to before they are multiplied; sums
    stay f32. "f32" (None), "f16" or "bf16". A floor: flash, decode and ring round where many rows meet
    the same keys and the processor has AMX, which is faster; everything else is as exact as in f32"""
    softmax_dtype: Optional[str] = None
    """the same for scores, exponentials and sums; "f64" (vanilla) computes all of them in double"""
    softmax_scale: float = 0.0
    """0: that of the layer. A layer with constants of bind_attention() must have the same one"""
    dropout_prob: float = 0.0
    """of calls with dropout; 0 or more, below 1"""
    block_q: int = 0
    """query rows (tokens times query heads of a KV head) that read the keys together, at most"""
    block_k: int = 0
    """keys that are read at a time, at most"""
    block_b: int = 0
    """no built-in operator has it"""
    stretches: int = 0
    """ring: parts that a row's keys are cut into; 0: one per thread of the device"""
    scan: bool = True
    """stretches one after the other; False: side by side, on several threads, with the same bits"""
    max_rows: int = 0
    """bounds of forward(), from here on; all 0: the operator is only bound to caches"""
    max_q_len: int = 0
    max_kv_len: int = 0
    n_kv_heads: int = 0
    max_q_heads: int = 0
    """0: n_kv_heads"""
    head_dim: int = 0
    head_dim_v: int = 0
    """0: head_dim"""

    def resolve(self, base: Optional[OperatorSettings] = None) -> OperatorSettings:
        """The same, with what is not given from `base`, and "f32" for the two types.

        Raises InvalidArgument, DtypeError.
        """
        return self._of(self._native(base))

    def _native(self, base: Optional[OperatorSettings] = None) -> Any:
        desc = _capi.kvc_operator_desc()
        integers = {name: getattr(self, name) for name in _INTEGERS if name != "head_dim"}
        types = {
            name: 0 if value is None else dtype_code(value, name, PRECISIONS)
            for name, value in (
                ("runtime_dtype", self.runtime_dtype),
                ("softmax_dtype", self.softmax_dtype),
            )
        }
        flags = 0 if self.scan else _capi.KVC_OPERATOR_NO_SCAN
        set_integers(desc, flags=flags, head_dim_k=self.head_dim, **types, **integers)
        desc.softmax_scale = number("softmax_scale", self.softmax_scale)
        desc.dropout_prob = number("dropout_prob", self.dropout_prob)
        _capi.kvc_operator_resolve(None if base is None else base._native(), desc)
        return desc

    @classmethod
    def _of(cls, desc: Any) -> OperatorSettings:
        integers = {name: getattr(desc, name) for name in _INTEGERS if name != "head_dim"}
        return cls(
            type_name(desc.runtime_dtype),
            type_name(desc.softmax_dtype),
            desc.softmax_scale,
            desc.dropout_prob,
            scan=not desc.flags & _capi.KVC_OPERATOR_NO_SCAN,
            head_dim=desc.head_dim_k,
            **integers,
        )


_INTEGERS = [field.name for field in fields(OperatorSettings) if field.type == "int"]


def info_of(info: Any) -> OperatorInfo:
    """What the library says, as Python shows it."""
    names = ("name", "canonical", "head_dim_min", "head_dim_max", "head_dim_multiple")
    multiples = ("block_q_multiple", "block_k_multiple")
    return OperatorInfo(
        **{name: getattr(info, name) for name in (*names, *multiples)},
        devices=names_in(info.devices, DEVICES),
        modes=names_in(info.modes, MODES),
        features=names_in(info.features, FEATURES),
        storage=names_in(info.storage, SET),
        runtime_dtypes=names_in(info.runtime_dtypes, SET),
        softmax_dtypes=names_in(info.softmax_dtypes, SET),
    )


def text_of(name: str, value: Any) -> str:
    """An argument that must be the name of an operator."""
    if not isinstance(value, str):
        raise TypeError(f'{name} must be a string such as "flash", not {type(value).__name__}')
    return value
