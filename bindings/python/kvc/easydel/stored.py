"""How transformer caches store keys and values: quantizers, settings, and arrays as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

from .. import Cache, decode, storage_info
from .._arrays import FLOATS, STORED, dtype_code, dtype_name
from .._descriptors import Rotate
from ..errors import InvalidArgument
from .records import Record

_TYPES = tuple(each for each in STORED if not each.startswith("f8"))  # those whose scales are stored
_METHODS = {"8bit": "int8", "nf4": "nf4"}  # EasyDeL's names
_ROTATED = {"k": (True, False), "v": (False, True)}


@dataclass
class StoredArray(Record):
    """Keys or values of a quantised cache as they are stored, in a record of a view.
    `np.asarray(stored)` decodes them to float32 [batch, columns, heads, dim]."""

    codes: Any
    """[batch, columns, heads, codes_per_row], as kvc.Cache.rows_view() lends them"""
    scales: Any
    """[batch, columns, heads, scales_per_row]; None where the storage type stores none"""
    dtype: str
    """the storage type: "int8", "nf4" …"""
    block: int = 0
    """nf4: values that share a scale"""
    rotate: bool = False
    """whether vectors are stored rotated by a Hadamard matrix"""

    @property
    def shape(self) -> Tuple[int, ...]:
        """[batch, columns, heads, dim], of the numbers."""
        shape: Tuple[int, ...] = tuple(np.shape(self.codes))
        return (*shape[:-1], shape[-1] * 2) if self.dtype in ("nf4", "q4_0") else shape

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> Any:
        if copy is False:
            raise ValueError("numbers of codes are always a copy")
        numbers = decode(
            self.codes, self.scales, self.dtype, block=self.block, rotate=self.rotate
        )
        return numbers if dtype is None else numbers.astype(dtype)


@dataclass
class Settings(Record):
    """How a cache stores, beside its metadata."""

    dtype: str = "bf16"
    block: int = 0
    max_batch: Optional[int] = None
    max_q_heads: int = 0
    reach: Optional[int] = None
    ring: bool = False
    rotate: Rotate = False
    interleaved: bool = False

    @property
    def is_quantised(self) -> bool:
        """Whether keys and values are stored as codes."""
        return self.dtype not in FLOATS

    def rotated(self) -> Tuple[bool, bool]:
        """Whether K and V are stored rotated."""
        if isinstance(self.rotate, str):
            return _ROTATED[self.rotate]
        return self.rotate, self.rotate


def storage_of(quantizer: Any, dtype: Any, metadata: Any) -> Dict[str, Any]:
    """`dtype` and `block` of Settings.

    quantizer  see TransformerCache.init_cache()
    dtype      of numbers; None: bf16
    """
    method, block = _quantizer(quantizer)
    if method in (None, "none"):
        given = "bf16" if dtype is None else dtype
        return {"dtype": dtype_name(dtype_code(given, "dtype", _TYPES)), "block": 0}
    if method == "8bit":
        return {"dtype": "int8", "block": 0}
    return {"dtype": "nf4", "block": min(block, metadata.key_dim, metadata.value_dim)}


def check_quantizer(quantizer: Any, settings: Settings) -> None:
    """Raises InvalidArgument if a quantizer is not that of a cache. None agrees with every cache."""
    method, _ = _quantizer(quantizer)
    if method is None:
        return
    wanted = _METHODS.get(method)
    if settings.dtype != wanted and not (wanted is None and not settings.is_quantised):
        raise InvalidArgument(
            f"quantizer is {method!r}, but the cache stores {settings.dtype}: pass None, or the "
            "quantizer that it was made with"
        )


def _quantizer(quantizer: Any) -> Tuple[Optional[str], int]:
    """The method of a quantizer and its block; (None, 0): none is given."""
    if quantizer is None:
        return None, 0
    method = getattr(quantizer, "quantization_method", quantizer)
    method = getattr(method, "value", method)
    if method != "none" and method not in _METHODS:
        raise InvalidArgument(
            f'unknown quantization_method {method!r}: it must be "none", "8bit" or "nf4"'
        )
    return method, int(getattr(quantizer, "block_size", 0) or 0)


def stored_part(cache: Cache, layer: int, settings: Settings, side: int) -> Any:
    """All columns of a layer's K (side 0) or V (side 1) in place: an array, or a StoredArray of a
    quantised cache."""
    views = cache.rows_view(layer)
    codes, scales = (views.v, views.v_scales) if side else (views.k, views.k_scales)
    if not settings.is_quantised:
        return np.asarray(codes)
    dim = cache.head_dim_v if side else cache.head_dim_k
    return StoredArray(
        np.asarray(codes),
        None if scales is None else np.asarray(scales),
        settings.dtype,
        storage_info("nf4", dim, block=settings.block).block if settings.dtype == "nf4" else 0,
        settings.rotated()[side],
    )


def copied(part: Any) -> Any:
    """A copy of an array or a StoredArray."""
    if not isinstance(part, StoredArray):
        return np.array(part)
    scales = None if part.scales is None else np.array(part.scales)
    return part.replace(codes=np.array(part.codes), scales=scales)


def fill(cache: Cache, layer: int, key: Any, value: Any) -> None:
    """Replaces what a layer holds: arrays of numbers, StoredArrays or (codes, scales). None: stays."""
    (k, k_scales), (v, v_scales) = _codes(key), _codes(value)
    cache.rows_fill(layer, k, v, k_scales=k_scales, v_scales=v_scales)


def _codes(part: Any) -> Tuple[Any, Any]:
    if isinstance(part, StoredArray):
        return part.codes, part.scales
    if isinstance(part, tuple):
        return part
    return part, None


def settings_of(key: Any, value: Any) -> Dict[str, Any]:
    """The settings that arrays or StoredArrays of a record tell: of how they are stored."""
    if isinstance(key, StoredArray):
        both = (key.rotate, isinstance(value, StoredArray) and value.rotate)
        rotate: Rotate = both[0] if both[0] == both[1] else "k" if both[0] else "v"
        return {"dtype": key.dtype, "block": key.block, "rotate": rotate}
    dtype = np.asarray(key).dtype
    if dtype == np.uint16:  # bfloat16 without ml_dtypes
        return {"dtype": "bf16"}
    return {"dtype": dtype_name(dtype_code(dtype, "key"))}
