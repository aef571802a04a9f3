"""Element types by name and by number."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from . import kvc_capi as _capi
from .errors import DtypeError

Array = Any
"""An object with the buffer protocol, `__array_interface__` or `__dlpack__`."""

Description = Tuple[int, Tuple[int, ...], Tuple[int, ...], int]
"""Address, shape, strides in bytes and dtype number of memory that the library lends."""

_CODES = {
    "f32": _capi.KVC_F32,
    "float32": _capi.KVC_F32,
    "f16": _capi.KVC_F16,
    "float16": _capi.KVC_F16,
    "bf16": _capi.KVC_BF16,
    "bfloat16": _capi.KVC_BF16,
}


def dtype_code(dtype: Any, argument: str = "dtype") -> int:
    """The library's number of a type given by name, as a NumPy dtype or as its scalar type."""
    name = dtype
    if not isinstance(dtype, str):
        try:
            name = np.dtype(dtype).name
        except TypeError:
            pass
    try:
        return _CODES[name]
    except (KeyError, TypeError):
        raise DtypeError(f"{argument} {dtype!r} is not one of f32, f16, bf16") from None


def numpy_dtype(code: int) -> np.dtype[Any]:
    """The NumPy dtype of a number; bfloat16 is ml_dtypes' when that is installed, else uint16."""
    if code == _capi.KVC_F32:
        return np.dtype(np.float32)
    if code == _capi.KVC_F16:
        return np.dtype(np.float16)
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.uint16)
    return np.dtype(ml_dtypes.bfloat16)


def meaning(array: Array, dtype: Optional[Any]) -> Any:
    """The argument that tells the wrapper what 16-bit integers stand for."""
    return array if array is None or dtype is None else (array, dtype_code(dtype))
