"""Arrays that a caller passes and gets, and element types by name and by number."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Dict, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from . import kvc_capi as _capi
from .errors import DtypeError

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Buffer

    from .views import View

    Dtype = Optional[npt.DTypeLike]
    Integers = Union[Sequence[int], npt.NDArray[np.integer[Any]]]


class InterfaceArray(Protocol):
    """An object with `__array_interface__`."""

    @property
    def __array_interface__(self) -> Dict[str, Any]: ...


class DLPackArray(Protocol):
    """An object with DLPack's two methods."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Tuple[Any, Any]: ...


HostArray = Union["np.ndarray[Any, Any]", "View", "Buffer", InterfaceArray]
"""An array for whose kind a call returns NumPy's."""

Array = Union["Buffer", InterfaceArray, DLPackArray]
"""An object with the buffer protocol, `__array_interface__` or DLPack."""

Description = Tuple[int, Tuple[int, ...], Tuple[int, ...], int]
"""Address, shape, strides in bytes and element type of memory that the library lends."""

FLOATS = ("f32", "f16", "bf16")
"""Element types of keys, values, queries, results and biases."""

MASKS = ("f32", "f16", "bool")
"""Element types of the mask that kvc.Cache.mask() writes."""

STORED = (*FLOATS, "f8_e4m3", "f8_e5m2", "q8_0", "q4_0", "int8", "nf4")
"""Storage types of keys and values."""

_NUMPY_NAMES = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "bool": "bool",
}

_NUMPY_TYPES = {
    _capi.KVC_F32: "float32",
    _capi.KVC_F16: "float16",
    _capi.KVC_BOOL: "bool",
    _capi.KVC_I8: "int8",
    _capi.KVC_U8: "uint8",
}

_ML_TYPES = {  # their names in ml_dtypes, and what holds their bits
    _capi.KVC_BF16: ("bfloat16", "uint16"),
    _capi.KVC_F8_E4M3: ("float8_e4m3fn", "uint8"),
    _capi.KVC_F8_E5M2: ("float8_e5m2", "uint8"),
}

_JAX_ALIGNMENT = 64  # of memory that JAX takes without a copy


def dtype_code(dtype: Dtype, argument: str = "dtype", among: Tuple[str, ...] = FLOATS) -> int:
    """The number of a type that is given by name, as a NumPy dtype or as its scalar type."""
    shown: object = dtype
    if not isinstance(dtype, str):
        try:
            shown = np.dtype(dtype).name
        except TypeError:
            pass
    name = _NUMPY_NAMES.get(shown, shown) if isinstance(shown, str) and dtype is not None else ""
    if name not in among:
        raise DtypeError(f"{argument} {shown!r} is not one of {', '.join(among)}")
    return int(getattr(_capi, f"KVC_{str(name).upper()}"))


def dtype_name(code: int) -> str:
    """The name of a storage type."""
    return next(name for name in STORED if getattr(_capi, f"KVC_{name.upper()}") == code)


def numpy_dtype(code: int) -> np.dtype[Any]:
    """The NumPy dtype of a number; for bfloat16 and float8 ml_dtypes' if it is installed, else uint16
    and uint8."""
    if code in _NUMPY_TYPES:
        return np.dtype(_NUMPY_TYPES[code])
    if code not in _ML_TYPES:
        raise DtypeError(f"NumPy has no dtype for the element type {code}")
    name, bits = _ML_TYPES[code]
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(bits)
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def bits_dtype(code: int) -> np.dtype[Any]:
    """The dtype of NumPy itself that holds elements of a type."""
    return np.dtype(_ML_TYPES[code][1]) if code in _ML_TYPES else numpy_dtype(code)


def element_of(stored: int, dtype: Dtype) -> int:
    """The element type of a new array of keys or values: as asked for, else that of the numbers in
    the cache, where its storage type holds numbers."""
    if dtype is not None:
        return dtype_code(dtype)
    is_number = stored in (_capi.KVC_F32, _capi.KVC_F16, _capi.KVC_BF16)
    return stored if is_number else int(_capi.KVC_F32)


def with_dtype(array: Any, dtype: Dtype) -> Any:
    """The argument that passes `dtype` to the wrapper as the type of bare 16-bit values."""
    return array if array is None or dtype is None else (array, dtype_code(dtype))


def extents(array: Array) -> Tuple[int, ...]:
    """The shape of an array."""
    shape = getattr(array, "shape", None)
    return tuple(_capi.describe_array(array)[1] if shape is None else shape)


def new_result(q: Array, head_dim: int) -> npt.NDArray[np.float32]:
    """A float32 array for the result of a query."""
    rows = extents(q)[:-1]
    if isinstance(q, np.ndarray):
        return np.empty((*rows, head_dim), dtype=np.float32)
    memory = np.empty(4 * int(np.prod(rows)) * head_dim + _JAX_ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % _JAX_ALIGNMENT
    return (
        memory[begin : begin + memory.size - _JAX_ALIGNMENT]
        .view(np.float32)
        .reshape(*rows, head_dim)
    )


def kind_of(q: Array, result: npt.NDArray[np.float32]) -> Any:
    """A result as an array of the library that q is of, over the same memory; NumPy's own for an
    object of no such library."""
    if isinstance(q, np.ndarray):
        return result
    torch = sys.modules.get("torch")
    if isinstance(q, getattr(torch, "Tensor", ())):
        return torch.from_numpy(result)  # type: ignore[union-attr]
    namespace = getattr(q, "__array_namespace__", None)  # of the array API standard: JAX …
    return result if namespace is None else namespace().from_dlpack(result)
