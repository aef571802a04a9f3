"""One exception per status of the library.

Each is an `Error`, and also the matching built-in exception if there is one (`ShapeError` is a
`ValueError`, `DtypeError` a `TypeError`), so callers may catch either.
"""

from __future__ import annotations

from typing import Any, Optional

from . import kvc_capi as _capi


class Error(RuntimeError):
    """Raised by a failing call, which has changed nothing (except DeviceFailure, InternalError).

    status  the library's number, negative (KVC_E_… in kvc/base.h)
    """

    status: int = 0

    def __init__(self, message: str = "", status: Optional[int] = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.status)


class InvalidArgument(Error, ValueError):
    """A number is outside its bounds, or arguments contradict each other."""

    status = _capi.KVC_E_INVALID_ARGUMENT


class InvalidHandle(Error):
    """The cache or device is closed, or is from before a fork."""

    status = _capi.KVC_E_HANDLE


class OutOfMemory(Error, MemoryError):
    """The system has no more memory, or the library no more handles."""

    status = _capi.KVC_E_OUT_OF_MEMORY


class NotSupported(Error, NotImplementedError):
    """The request is well formed, but this cache cannot do it."""

    status = _capi.KVC_E_NOT_SUPPORTED


class BadState(Error):
    """The call came at the wrong time: no pass is open, or a layer was not put."""

    status = _capi.KVC_E_BAD_STATE


class Busy(Error):
    """Another thread is inside a call on this cache that excludes this one."""

    status = _capi.KVC_E_BUSY


class ShapeError(Error, ValueError):
    """An array has the wrong number of dimensions, extent or strides."""

    status = _capi.KVC_E_SHAPE


class DtypeError(Error, TypeError):
    """An array has an element type that this argument does not take."""

    status = _capi.KVC_E_DTYPE


class SizeOverflow(Error, OverflowError):
    """A product of sizes does not fit."""

    status = _capi.KVC_E_OVERFLOW


class VersionMismatch(Error):
    """The library does not know a setting, or an array uses a newer DLPack."""

    status = _capi.KVC_E_VERSION


class CacheFull(Error):
    """There are fewer free cells than tokens, or a sequence would hold too many positions."""

    status = _capi.KVC_E_CACHE_FULL


class WindowLost(Error):
    """The window has moved on: tokens that the continuation needs were released."""

    status = _capi.KVC_E_WINDOW_LOST


class NotFound(Error, LookupError):
    """There is no such thing."""

    status = _capi.KVC_E_NOT_FOUND


class InvalidRecurrentShape(Error, ValueError):
    """The product of the dimensions is not the size of the recurrent state."""

    status = _capi.KVC_E_INVALID_RECURRENT_SHAPE


class DeviceFailure(Error):
    """The device failed. The cache is poisoned and can only be closed."""

    status = _capi.KVC_E_DEVICE


class DeviceMismatch(Error):
    """An array is on another device than the cache."""

    status = _capi.KVC_E_DEVICE_MISMATCH


class BackendUnavailable(Error):
    """There is no such device on this machine, or its backend is not installed."""

    status = _capi.KVC_E_BACKEND_UNAVAILABLE


class IoFailure(Error):
    """Reading or writing a file or a connection failed."""

    status = _capi.KVC_E_IO


class CorruptData(Error):
    """Stored data is damaged."""

    status = _capi.KVC_E_CORRUPT


class InternalError(Error):
    """A broken invariant inside kvc: a bug. The cache is poisoned and can only be closed."""

    status = _capi.KVC_E_INTERNAL


# What the wrapper raises, by status. Error itself has status 0 and stands for unknown numbers.
_capi.set_errors({kind.status: kind for kind in (Error, *Error.__subclasses__())})
