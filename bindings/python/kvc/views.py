"""Memory of a cache, lent to NumPy and to whoever speaks DLPack."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Optional, Tuple

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Description, numpy_dtype
from .errors import BadState, InvalidArgument

if TYPE_CHECKING:
    from .cache import Cache

_CPU = (1, 0)  # DLPack's number of the device that all of a cache's memory lies on
_BITS = {_capi.KVC_F32: "<f4", _capi.KVC_F16: "<f2", _capi.KVC_BF16: "<u2"}


class View:
    """Keys or values of a layer where they lie in the cache, in place and read-only.

    `np.asarray(view)`, `np.from_dlpack(view)` and `torch.from_dlpack(view)` make arrays over the
    same memory; `view[:, head]` (integers and slices) is a view of a part. bfloat16 goes out as
    itself through DLPack; NumPy shows it with ml_dtypes, or as uint16 without. JAX takes dense
    memory alone, so a head at a time, `jax.dlpack.from_dlpack(view[:, head])`, and copies it unless
    it begins at a multiple of 64 bytes (rows of as many do). Methods of a cache take
    views as arguments.

    A view lasts as long as its pass: until begin, commit, commit_prefix, abort, remove,
    copy_prefix, reorder, resume or close. Using it afterwards raises BadState. It keeps its cache
    from being collected.

    An array that was made of a view cannot raise. After the pass it shows whatever lies there then:
    copy what you need longer. It never meets freed memory: a cache that is closed while such
    arrays exist gives its memory back when the last of them goes.

    Do not write through an array that cannot say it is read-only (PyTorch's cannot).
    """

    __slots__ = ("_cache", "_pass", "_description", "__weakref__")

    def __init__(self, cache: Cache, description: Description) -> None:
        self._cache = cache
        self._pass = cache._pass
        self._description = description

    @property
    def valid(self) -> bool:
        """Whether the pass that the view belongs to is still open."""
        return self._cache._pass == self._pass

    @property
    def shape(self) -> Tuple[int, ...]:
        """[history, n_kv_heads, head_dim], or that of the part."""
        return self._description[1]

    @property
    def strides(self) -> Tuple[int, ...]:
        """In bytes, as NumPy counts."""
        return self._description[2]

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As NumPy shows it; bfloat16 is ml_dtypes' when that is installed, else uint16."""
        return numpy_dtype(self._description[3])

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a view of no dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        over = "" if self.valid else ", its pass is over"
        return f"<kvc.View {list(self.shape)} {self.dtype}{over}>"

    def _memory(self) -> Any:
        """What keeps the memory alive. Taken before the pass is asked for: a close in between does
        not matter then."""
        handle = self._cache._handle
        if not self.valid:
            raise BadState("the pass that this view belongs to is over")
        return handle

    def _bits(self) -> Tuple[_Loan, np.ndarray[Any, Any]]:
        loan = _Loan(self._memory(), self._description)
        return loan, np.asarray(loan)

    def __getitem__(self, key: Any) -> View:
        loan, bits = self._bits()
        keys = key if isinstance(key, tuple) else (key,)
        # With an ellipsis NumPy answers integers with an array of no dimensions, not with a value.
        part = bits[keys if any(each is ... for each in keys) else (*keys, ...)]
        base: Any = part
        while isinstance(base, np.ndarray):
            base = base.base
        if base is not loan:
            raise TypeError("a part of a view is named by integers and slices")
        description = (part.ctypes.data, part.shape, part.strides, self._description[3])
        self._memory()
        return View(self._cache, description)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> np.ndarray[Any, Any]:
        _, bits = self._bits()
        array = bits.view(self.dtype) if self._description[3] == _capi.KVC_BF16 else bits
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"{dtype} instead of {array.dtype} would need a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack_device__(self) -> Tuple[int, int]:
        """DLPack's number of the CPU."""
        self._memory()
        return _CPU

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """A DLPack capsule: of version 1.0, marked read-only, for consumers that ask with
        max_version; else of the older kind, which cannot say that it is read-only."""
        if stream is not None:
            raise InvalidArgument("a CPU has no streams")
        if dl_device is not None and tuple(map(int, dl_device)) != _CPU:
            raise BufferError("the memory of this cache lies on the CPU")
        memory, description = self._memory(), self._description
        if copy:
            memory = self._bits()[1].copy()
            description = (memory.ctypes.data, memory.shape, memory.strides, description[3])
        versioned = max_version is not None and max_version[0] >= 1
        return _capi.lend(memory, description, int(versioned), int(bool(copy)))


class _Loan:
    """Describes memory to NumPy, and is what NumPy keeps alive as long as an array uses it."""

    def __init__(self, memory: Any, description: Description) -> None:
        address, shape, strides, code = description
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "typestr": _BITS[code],
            "shape": shape,
            "strides": strides,
            "data": (address, True),
        }
