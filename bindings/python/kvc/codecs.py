"""Storage types and their codecs, without a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Tuple, TypeVar, overload

import numpy as np

from . import kvc_capi as _capi
from ._arrays import STORED, Array, dtype_code, dtype_name, numpy_dtype
from ._handles import Shape, integer, number, set_integers
from .errors import InvalidArgument, ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Dtype

    Into = TypeVar("Into", bound=Array)
    Codes = npt.NDArray[Any]  # of float8 and bfloat16 ml_dtypes', or uint8 and uint16

_PACKED = (_capi.KVC_Q4_0, _capi.KVC_NF4)  # two values a byte


@dataclass(frozen=True)
class StorageInfo:
    """How a vector of one token and head lies in a storage type."""

    dtype: str
    """the storage type: "q8_0" …"""
    code_dtype: np.dtype[Any]
    """of codes: the type of the numbers themselves (float8 as ml_dtypes', or uint8 without), else
    int8 (q8_0, int8) or uint8 (q4_0 and nf4, two values a byte)"""
    scale_dtype: Optional[np.dtype[Any]]
    """of stored scales; None: none is stored"""
    block: int
    """values that share a stored scale; 0: none is stored"""
    codes_per_row: int
    """codes of a vector"""
    scales_per_row: int
    """stored scales of a vector"""
    bytes_per_row: int
    """of a vector's codes and scales"""


def storage_info(dtype: Dtype, head_dim: int, *, block: int = 0) -> StorageInfo:
    """How vectors of head_dim numbers lie in a storage type: "f32", "f16", "bf16", "f8_e4m3",
    "f8_e5m2", "q8_0", "q4_0", "int8" or "nf4".

    block  nf4: values that share a scale, 16, 32, 64 or 128; 0: the largest of 64, 32 and 16 that
           divides head_dim. Other types: 0

    Raises DtypeError, InvalidArgument (a head_dim or block that the type does not take; the message
    names types that do).
    """
    info = _query(dtype_code(dtype, "dtype", STORED), integer("head_dim", head_dim), block)
    return StorageInfo(
        dtype_name(info.dtype),
        numpy_dtype(info.code_dtype),
        numpy_dtype(info.scale_dtype) if info.scale_dtype else None,
        info.block,
        info.codes_per_row,
        info.scales_per_row,
        info.bytes_per_row,
    )


def encode(
    values: Array,
    dtype: Dtype,
    *,
    block: int = 0,
    rotate: bool = False,
    scale: float = 1.0,
) -> Tuple[Codes, Optional[Codes]]:
    """Encodes vectors: byte for byte what a cache of this storage type stores.

    values  [..., head_dim], float32, float16 or bfloat16
    dtype   storage type: "q8_0", "q4_0", "int8", "nf4", "f8_e4m3", "f8_e5m2", "f16", "bf16" or "f32"
    block   nf4: values that share a scale, as in storage_info()
    rotate  q8_0, q4_0, int8 and nf4: rotate the vectors by a Hadamard matrix before they are encoded,
            as a cache with `rotate` does
    scale   f8: what codes are multiplied with, as bind_scales() binds it

    Returns NumPy arrays (codes [..., codes_per_row], scales [..., scales_per_row]), of the element
    types in storage_info(); scales is None where none is stored.
    Raises InvalidArgument, ShapeError, DtypeError.
    """
    code = dtype_code(dtype, "dtype", STORED)
    shape = _of_vectors("values", _capi.describe_values(values)[1])
    info = _query(code, shape[-1], block)
    codes = np.empty((*shape[:-1], info.codes_per_row), numpy_dtype(info.code_dtype))
    scales = None
    if info.scale_dtype:
        scales = np.empty((*shape[:-1], info.scales_per_row), numpy_dtype(info.scale_dtype))
    desc = _codec(code, block, rotate, scale)
    _capi.kvc_encode(desc, values, (codes, info.code_dtype), scales)
    return codes, scales


@overload
def decode(
    codes: Array,
    scales: Optional[Array],
    dtype: Dtype,
    *,
    values: Into,
    block: int = ...,
    rotate: bool = ...,
    scale: float = ...,
) -> Into: ...
@overload
def decode(
    codes: Array,
    scales: Optional[Array],
    dtype: Dtype,
    *,
    values: None = ...,
    block: int = ...,
    rotate: bool = ...,
    scale: float = ...,
) -> npt.NDArray[np.float32]: ...
def decode(
    codes: Array,
    scales: Optional[Array],
    dtype: Dtype,
    *,
    values: Optional[Array] = None,
    block: int = 0,
    rotate: bool = False,
    scale: float = 1.0,
) -> Array:
    """Decodes vectors that encode() has encoded, or that a cache lends with get_codes().

    codes   [..., codes_per_row]; those of f8 and bf16 may be uint8 and uint16
    scales  [..., scales_per_row]; None for types that store none
    values  [..., head_dim], float32, float16 or bfloat16, written; None: a new float32 array

    dtype, block, rotate and scale as in encode(); all are those of the codes. Returns values.
    Raises InvalidArgument, ShapeError, DtypeError.
    """
    code = dtype_code(dtype, "dtype", STORED)
    shape = _of_vectors("codes", _capi.describe_codes((codes, code))[1])
    head_dim = shape[-1] * (2 if code in _PACKED else 1)
    info = _query(code, head_dim, block)
    result: Any = np.empty((*shape[:-1], head_dim), np.float32) if values is None else values
    desc = _codec(code, block, rotate, scale)
    _capi.kvc_decode(desc, (codes, info.code_dtype), scales, result)
    returned: Array = result
    return returned


def stored_in_words(shape: Shape) -> str:
    """How a cache stores keys and values, and in how many bytes; empty: it stores none, or is made of
    several."""
    if not shape.dtype_k:
        return ""
    k = _query(shape.dtype_k, shape.head_dim_k, shape.block_k)
    k_words = _side_in_words(k, bool(shape.flags & _capi.KVC_CACHE_ROTATE_K))
    n_bytes = k.bytes_per_row * shape.n_kv_heads
    if shape.v_first is not None:
        words = f"K in {k_words}, V in K from element {shape.v_first}"
    else:
        v = _query(shape.dtype_v, shape.head_dim_v, shape.block_v)
        v_words = _side_in_words(v, bool(shape.flags & _capi.KVC_CACHE_ROTATE_V))
        n_bytes += v.bytes_per_row * (shape.value_heads or shape.n_kv_heads)
        same = k_words == v_words
        words = f"K and V in {k_words}" if same else f"K in {k_words}, V in {v_words}"
    if shape.flags & _capi.KVC_CACHE_INTERLEAVED:
        words += ", interleaved"
    unit = "position of an input" if shape.kind == "encoder" else "token"
    return f"{words}: {n_bytes * shape.n_layers:,} bytes a {unit}"


def _side_in_words(info: Any, rotated: bool) -> str:
    blocks = f" (blocks of {info.block})" if info.block else ""
    return f"{'rotated ' if rotated else ''}{dtype_name(info.dtype)}{blocks}"


def _query(code: int, head_dim: int, block: int) -> Any:
    info = _capi.kvc_storage_info()
    _capi.kvc_storage_query(code, head_dim, integer("block", block), info)
    return info


def _of_vectors(name: str, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """A shape whose last dimension is that of a vector."""
    if not shape:
        raise ShapeError(f"{name} has no dimensions; the last one must be that of a vector")
    return shape


def _codec(code: int, block: int, rotate: bool, scale: float) -> Any:
    desc = _capi.kvc_codec_desc()
    flags = _capi.KVC_CODEC_ROTATE if rotate else 0
    set_integers(desc, dtype=code, flags=flags, block=block)
    given = number("scale", scale)
    if given == 0:
        raise InvalidArgument("scale is 0; it must be from 2^-100 to 2^100")
    desc.scale = 0.0 if given == 1 else given  # only f8 takes another
    return desc
