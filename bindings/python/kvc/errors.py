"""One exception per status of the library.

Each is an `Error`, and also the matching built-in exception if there is one (`ShapeError` is a
`ValueError`, `DtypeError` a `TypeError`), so callers may catch either.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Optional, Tuple, Type

from . import kvc_capi as _capi
from ._words import in_python


class Status(IntEnum):
    """The library's statuses, as numbers of kvc/base.h (KVC_OK, KVC_E_…)."""

    OK = _capi.KVC_OK
    INVALID_ARGUMENT = _capi.KVC_E_INVALID_ARGUMENT
    HANDLE = _capi.KVC_E_HANDLE
    OUT_OF_MEMORY = _capi.KVC_E_OUT_OF_MEMORY
    NOT_SUPPORTED = _capi.KVC_E_NOT_SUPPORTED
    BAD_STATE = _capi.KVC_E_BAD_STATE
    BUSY = _capi.KVC_E_BUSY
    SHAPE = _capi.KVC_E_SHAPE
    DTYPE = _capi.KVC_E_DTYPE
    OVERFLOW = _capi.KVC_E_OVERFLOW
    VERSION = _capi.KVC_E_VERSION
    CACHE_FULL = _capi.KVC_E_CACHE_FULL
    WINDOW_LOST = _capi.KVC_E_WINDOW_LOST
    NOT_FOUND = _capi.KVC_E_NOT_FOUND
    INVALID_RECURRENT_SHAPE = _capi.KVC_E_INVALID_RECURRENT_SHAPE
    DEVICE = _capi.KVC_E_DEVICE
    DEVICE_MISMATCH = _capi.KVC_E_DEVICE_MISMATCH
    BACKEND_UNAVAILABLE = _capi.KVC_E_BACKEND_UNAVAILABLE
    IO = _capi.KVC_E_IO
    CORRUPT = _capi.KVC_E_CORRUPT
    INTERNAL = _capi.KVC_E_INTERNAL

    @classmethod
    def _missing_(cls, value: object) -> Optional[Status]:
        """A number that a newer library returns, as a status named UNKNOWN."""
        if not isinstance(value, int):
            return None
        unknown = int.__new__(cls, value)
        unknown._name_, unknown._value_ = "UNKNOWN", value
        return unknown

    def __reduce_ex__(self, protocol: object) -> tuple[type[Status], tuple[int]]:
        """Pickles the number: by name, as Python 3.11 does, an unknown status is not found again."""
        return Status, (int(self),)


class Error(RuntimeError):
    """Raised by a failing call, which has changed nothing (except DeviceFailure, InternalError).

    status  a kvc.Status; as an int it is the library's number
    """

    status: Status = Status.OK

    def __init__(self, message: str = "", status: Optional[int] = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = Status(status)

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.status)


class InvalidArgument(Error, ValueError):
    """A number is outside its bounds, or arguments contradict each other."""

    status = Status.INVALID_ARGUMENT


class InvalidHandle(Error):
    """The cache or device is closed, or is from before a fork."""

    status = Status.HANDLE


class OutOfMemory(Error, MemoryError):
    """The system has no more memory, or the library no more handles."""

    status = Status.OUT_OF_MEMORY


class NotSupported(Error, NotImplementedError):
    """The request is well formed, but this cache cannot do it."""

    status = Status.NOT_SUPPORTED


class BadState(Error):
    """The call came at the wrong time: no pass is open, or a layer was not put."""

    status = Status.BAD_STATE


class Busy(Error):
    """Another thread is inside a call on this cache that excludes this one."""

    status = Status.BUSY


class ShapeError(Error, ValueError):
    """An array has the wrong number of dimensions, extent or strides."""

    status = Status.SHAPE


class DtypeError(Error, TypeError):
    """An array has an element type that this argument does not take."""

    status = Status.DTYPE


class SizeOverflow(Error, OverflowError):
    """A product of sizes does not fit."""

    status = Status.OVERFLOW


class VersionMismatch(Error):
    """The library does not know a setting, or an array uses a newer DLPack."""

    status = Status.VERSION


class CacheFull(Error):
    """There are fewer free cells than tokens, or a sequence would hold too many positions."""

    status = Status.CACHE_FULL


class WindowLost(Error):
    """The window has moved on: tokens that the continuation needs were released."""

    status = Status.WINDOW_LOST


class NotFound(Error, LookupError, ValueError):
    """There is no such thing: a name, a state, an input."""

    status = Status.NOT_FOUND


class InvalidRecurrentShape(Error, ValueError):
    """The product of the dimensions is not the size of the recurrent state."""

    status = Status.INVALID_RECURRENT_SHAPE


class DeviceFailure(Error):
    """The device failed. The cache is poisoned and can only be closed."""

    status = Status.DEVICE


class DeviceMismatch(Error):
    """An array is on another device than the cache."""

    status = Status.DEVICE_MISMATCH


class BackendUnavailable(Error):
    """There is no such device on this machine, or its backend is not installed."""

    status = Status.BACKEND_UNAVAILABLE


class IoFailure(Error):
    """Reading or writing a file or a connection failed."""

    status = Status.IO


class CorruptData(Error):
    """Stored data is damaged."""

    status = Status.CORRUPT


class InternalError(Error):
    """A broken invariant inside kvc: a bug. The cache is poisoned and can only be closed."""

    status = Status.INTERNAL


# What the wrapper raises, by status. Error itself has status 0 and stands for unknown numbers.
_KINDS: Tuple[Type[Error], ...] = (Error, *Error.__subclasses__())
_capi.set_errors({kind.status: kind for kind in _KINDS}, in_python)
