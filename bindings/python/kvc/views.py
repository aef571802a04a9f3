"""Memory of a cache, lent to NumPy and to libraries that use DLPack."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Optional, Protocol, Tuple

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Description, bits_dtype, numpy_dtype
from ._handles import OwnsHandle
from .errors import BadState, InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

    from .device import Device

_READ_ONLY, _IS_COPIED = 1, 2  # DLPack's flags of a capsule
_CPU = (1, 0)  # DLPack's type and number of a device


class Lender(Protocol):
    """Whose memory a view shows: a cache, or a call of a caller's operator."""

    @property
    def _handle(self) -> Any:
        """what keeps the memory alive"""

    @property
    def _pass(self) -> int:
        """changes when the views end"""

    @property
    def _place(self) -> Tuple[int, int]:
        """DLPack's type and number of the device that holds the memory"""

    @property
    def _device(self) -> Optional[Device]:
        """where that is a GPU"""

    @property
    def _stream(self) -> int:
        """on which the memory is written, where that is a GPU"""

    def _ended(self, call: str) -> str:
        """why a view that a call returned has ended, and what to do, as the begin of a message"""


class View(OwnsHandle):
    """Keys, values, their codes and scales, or states of a layer, in place in the memory of the cache.
    All are read-only, but states (state_view), and what an operator of the caller's writes, may be written.

    `np.asarray(view)`, `np.from_dlpack(view)` and `torch.from_dlpack(view)` return arrays over the
    same memory; `view[:, head]` (integers and slices) returns a view of a part. DLPack passes
    bfloat16 and float8 as such; NumPy reads them with ml_dtypes, or as uint16 and uint8 without. JAX reads dense memory
    only: pass one head at a time, `jax.dlpack.from_dlpack(view[:, head])`. JAX copies it unless it
    begins at a multiple of 64 bytes. Methods of a cache take views as arguments.

    A view is valid until its pass ends, which begin, begin_rows, commit, commit_prefix, abort, remove,
    copy_prefix, reorder, resume, checkpoint_take, rows_set, insert and close do (of a view of
    rows_view(), which needs no pass, until one of these is called). Using it afterwards raises BadState.
    A view keeps its cache from being collected.

    An array over a view cannot raise. After the pass it contains whatever the cache stores there
    then: copy what you need longer. Its memory is never freed under it: a cache that is closed
    while such arrays exist frees its memory when the last of them is gone.

    Do not write through an array that is not marked read-only (PyTorch's tensors cannot be).
    """

    _instead_of_a_copy = "it shows memory of a cache. numpy.array(view) copies its elements"
    _instead_of_pickling = "it shows memory of this process. numpy.array(view) can be pickled"

    __slots__ = ("_lender", "_pass", "_description", "_call", "_writable", "__weakref__")

    def __init__(
        self, lender: Lender, description: Description, call: str, writable: bool = False
    ) -> None:
        self._lender = lender
        self._pass = lender._pass
        self._description = description
        self._call = call  # the method that returned it
        self._writable = writable

    @property
    def valid(self) -> bool:
        """Whether the pass that the view belongs to is still open."""
        return self._lender._pass == self._pass

    @property
    def shape(self) -> Tuple[int, ...]:
        """[history, n_kv_heads, head_dim], of codes and scales [history, n_kv_heads, …], of rows [batch,
        columns, …], of states [n_slots, …]; or the shape of a part of it."""
        return self._description[1]

    @property
    def strides(self) -> Tuple[int, ...]:
        """In bytes, as in NumPy."""
        return self._description[2]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype; for bfloat16 and float8 ml_dtypes' if it is installed, else uint16 and
        uint8."""
        return numpy_dtype(self._description[3])

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a view without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        ended = "" if self.valid else ", its pass has ended"
        return f"<kvc.View {list(self.shape)} {self.dtype}{ended}>"

    def _memory(self) -> Any:
        """What keeps the memory alive. Read before `valid`, so that another thread may close the
        cache in between."""
        handle = self._lender._handle
        if not self.valid:
            raise BadState(f"{self._lender._ended(self._call)} copy in time what you need later")
        return handle

    def _bits(self) -> Tuple[_Loan, npt.NDArray[np.generic]]:
        loan = _Loan(self._memory(), self._description, self._writable)
        return loan, np.asarray(loan)

    def _check_on_cpu(self, why: str) -> None:
        if self._lender._device is not None:
            raise BufferError(
                f"{why}, and the view is on {self._lender._device.name}: take it with from_dlpack() of a "
                "library that uses the GPU (torch.from_dlpack(view))"
            )

    def __getitem__(self, key: Any) -> View:
        loan, bits = self._bits()
        keys = key if isinstance(key, tuple) else (key,)
        # With an ellipsis, integers select an array without dimensions instead of a value.
        part = bits[keys if any(each is ... for each in keys) else (*keys, ...)]
        base: Any = part
        while isinstance(base, np.ndarray):
            base = base.base
        if base is not loan:
            raise TypeError("a view is indexed by integers and slices")
        description = (part.ctypes.data, part.shape, part.strides, self._description[3])
        self._memory()
        return View(self._lender, description, self._call, self._writable)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> npt.NDArray[np.generic]:
        self._check_on_cpu("NumPy reads memory of the host alone")
        _, bits = self._bits()
        array = bits.view(self.dtype) if bits.dtype != self.dtype else bits
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"{dtype} instead of {array.dtype} would need a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack_device__(self) -> Tuple[int, int]:
        """DLPack's type and number of the cache's device."""
        self._memory()
        return self._lender._place

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """A DLPack capsule: of version 1.0 and marked read-only (if it is) if max_version allows it;
        else of the older kind, which cannot be marked read-only.

        stream  on a GPU: on which the memory will be used; None or 1: the legacy default stream; -1: the
                caller sees to the order. If it is not the stream of the pass, this waits for the GPU
        """
        memory, description = self._memory(), self._description
        place = self._lender._place
        if dl_device is not None and tuple(map(int, dl_device)) != place:
            raise BufferError(f"the memory of this cache is on DLPack's device {place}")
        if place == _CPU and stream is not None:
            raise InvalidArgument(
                f"stream {stream!r}: the memory is on the CPU, which has no streams"
            )
        if copy:
            self._check_on_cpu("a copy is made by NumPy")
            memory = self._bits()[1].copy()
            description = (memory.ctypes.data, memory.shape, memory.strides, description[3])
        self._hand_over(stream)
        versioned = max_version is not None and max_version[0] >= 1
        flags = _IS_COPIED if copy else 0 if self._writable else _READ_ONLY
        return _capi.lend(memory, description, int(versioned), flags, *place)

    def _hand_over(self, stream: Any) -> None:
        """What was written to the memory is there for what `stream` is given from now on."""
        device = self._lender._device
        if device is None or stream == -1:
            return
        if (stream or 1) != (self._lender._stream or 1):
            device.synchronize()


class _Loan:
    """Describes memory to NumPy. NumPy keeps this object alive as long as an array uses it."""

    def __init__(self, memory: Any, description: Description, writable: bool) -> None:
        address, shape, strides, code = description
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "typestr": bits_dtype(code).str,
            "shape": shape,
            "strides": strides,
            "data": (address, not writable),
        }
