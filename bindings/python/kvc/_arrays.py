"""Element types by name and by number."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from . import kvc_capi as _capi
from .errors import DtypeError

Array = Any
"""An object with the buffer protocol, `__array_interface__` or `__dlpack__`."""

Description = Tuple[int, Tuple[int, ...], Tuple[int, ...], int]
"""Address, shape, strides in bytes and element type of memory that the library lends."""

FLOATS = ("f32", "f16", "bf16")
"""Element types of keys, values, queries, results and biases."""

MASKS = ("f32", "f16", "bool")
"""Element types of the mask that kvc.Cache.mask() writes."""

STORED = (*FLOATS, "f8_e4m3", "f8_e5m2", "q8_0", "q4_0", "int8", "nf4")
"""Storage types. All but FLOATS are reserved: the library raises NotSupported for them."""

_NUMPY_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "bool": "bool"}


def dtype_code(dtype: Any, argument: str = "dtype", among: Tuple[str, ...] = FLOATS) -> int:
    """The number of a type that is given by name, as a NumPy dtype or as its scalar type."""
    if isinstance(dtype, str):
        name = _NUMPY_NAMES.get(dtype, dtype)
    else:
        try:
            name = _NUMPY_NAMES.get(np.dtype(dtype).name, "")
        except TypeError:
            name = ""
    if name not in among:
        raise DtypeError(f"{argument} {dtype!r} is not one of {', '.join(among)}")
    return int(getattr(_capi, f"KVC_{name.upper()}"))


def numpy_dtype(code: int) -> np.dtype[Any]:
    """The NumPy dtype of a number; for bfloat16 ml_dtypes' if it is installed, else uint16."""
    if code == _capi.KVC_F32:
        return np.dtype(np.float32)
    if code == _capi.KVC_F16:
        return np.dtype(np.float16)
    if code == _capi.KVC_BOOL:
        return np.dtype(np.bool_)
    if code != _capi.KVC_BF16:
        raise DtypeError(f"NumPy has no dtype for the element type {code}")
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.uint16)
    return np.dtype(ml_dtypes.bfloat16)


def with_dtype(array: Array, dtype: Optional[Any]) -> Any:
    """The argument that passes `dtype` to the wrapper as the type of bare 16-bit values."""
    return array if array is None or dtype is None else (array, dtype_code(dtype))
