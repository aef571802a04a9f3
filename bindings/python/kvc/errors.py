"""One exception per status of the library.

Each is an `Error`, and also the built-in exception that Python code would expect where there is one
(`ShapeError` is a `ValueError`, `DtypeError` a `TypeError`), so callers may catch either.
"""

from __future__ import annotations

from typing import Any, Optional

from . import kvc_capi as _capi


class Error(RuntimeError):
    """What a kvc call answered. After any but DeviceFailure and InternalError nothing has changed.

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
    """A number outside its bounds, or arguments that contradict each other."""

    status = _capi.KVC_E_INVALID_ARGUMENT


class InvalidHandle(Error):
    """A closed cache or device, or one from before a fork."""

    status = _capi.KVC_E_HANDLE


class OutOfMemory(Error, MemoryError):
    """The system has no more memory (or the library no more handles)."""

    status = _capi.KVC_E_OUT_OF_MEMORY


class NotSupported(Error, NotImplementedError):
    """Well formed, but this cache cannot do it."""

    status = _capi.KVC_E_NOT_SUPPORTED


class BadState(Error):
    """Not now: no pass is open, a layer was not put, constants are bound too late."""

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
    """A setting that this version of the library does not know."""

    status = _capi.KVC_E_VERSION


class CacheFull(Error):
    """Fewer free cells than tokens, or more positions than a sequence may hold."""

    status = _capi.KVC_E_CACHE_FULL


class WindowLost(Error):
    """The tokens that a continuation would need have slid out of the window."""

    status = _capi.KVC_E_WINDOW_LOST


class NotFound(Error, LookupError):
    """There is no such thing."""

    status = _capi.KVC_E_NOT_FOUND


class InvalidRecurrentShape(Error, ValueError):
    """Dimensions whose product is not the size of a recurrent state."""

    status = _capi.KVC_E_INVALID_RECURRENT_SHAPE


class DeviceFailure(Error):
    """The device failed; the cache is poisoned and can only be closed."""

    status = _capi.KVC_E_DEVICE


class DeviceMismatch(Error):
    """An array lies on another device than the cache."""

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


# What the wrapper raises, by status; Error itself (0) for a number that this binding does not know.
_capi.set_errors({kind.status: kind for kind in (Error, *Error.__subclasses__())})
