"""Where memory is and how many threads work."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, NamedTuple, Optional, Tuple

from . import kvc_capi as _capi
from ._handles import OwnsHandle, checks_names, destroy_quietly, set_integers
from .errors import Busy, InvalidHandle


class DeviceAllocator(NamedTuple):
    """Two functions of C, by their addresses (of ctypes: `ctypes.cast(f, ctypes.c_void_p).value`), and
    what they are called with. kvc/device.h says what they have to do. They must stay as long as the
    device and all caches on it."""

    user: Optional[int]
    alloc: int
    free: int


class Device(OwnsHandle):
    """A device to create caches on. It may be closed first: caches keep what they need of it.

    name       "cpu", or "cuda:0", "cuda:1" … for a GPU of NVIDIA
    n_threads  threads that share the work of one attention call, the caller's included; at most
               256. 0: as many as the process may use; 1: the calling thread only
    device_allocator
               where the memory of a GPU comes from; None: from CUDA

    Raises InvalidArgument, BackendUnavailable ("cuda:0" if its backend is not installed),
    OutOfMemory, NotSupported (device_allocator of the CPU). A device may be used from any thread.
    """

    _instead_of_a_copy = "it owns threads of the library. Use the same object everywhere"
    _instead_of_pickling = "it owns threads of this process. Open a device in each process"

    @checks_names
    def __init__(
        self,
        name: str = "cpu",
        *,
        n_threads: int = 0,
        device_allocator: Optional[DeviceAllocator] = None,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f'name must be a string such as "cpu", not {type(name).__name__}')
        desc = _capi.kvc_device_desc()
        set_integers(desc, n_threads=n_threads)
        self.name = name
        memory = device_allocator or (None, None, None)
        self._handle: Any = _capi.kvc_device_open(name, desc, *memory)
        self._finalizer = self._when_forgotten()

    def _when_forgotten(self) -> Any:
        return weakref.finalize(self, destroy_quietly, _capi.kvc_device_close, self._handle)

    def close(self) -> None:
        """Closes the device. Its threads end with its last cache. Closing twice is allowed.

        Raises Busy if another thread is creating a cache on it; the device then stays open.
        """
        if self._finalizer.detach() is None:  # only one of several threads gets past this line
            return
        try:
            _capi.kvc_device_close(self._handle)
        except Busy:
            self._finalizer = self._when_forgotten()
            raise

    @property
    def place(self) -> Tuple[int, int]:
        """DLPack's type and number of the device: (1, 0) is the CPU, (2, N) "cuda:N"."""
        if not self.name.startswith("cuda"):
            return 1, 0
        number = self.name.split("@")[0].partition(":")[2]
        return 2, int(number or 0)

    def synchronize(self) -> None:
        """Waits until the device has done everything that it was given so far, other threads running
        meanwhile. On the CPU it returns at once.

        Raises DeviceFailure if a GPU has failed.
        """
        _capi.kvc_device_synchronize(self._handle)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not self._finalizer.alive

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kvc.Device {self.name}{' closed' if self.closed else ''}>"


_default: Optional[Device] = None
_default_process = 0
_default_lock = threading.Lock()


def default_device() -> Device:
    """The CPU device of caches that are created without one. Opened when first needed."""
    global _default, _default_process
    with _default_lock:
        # A forked child has none of its parent's handles and opens a device of its own.
        if _default is None or _default_process != os.getpid():
            _default, _default_process = Device(), os.getpid()
        return _default


def device_of(device: Optional[Device]) -> Device:
    """The device for a cache, from its argument."""
    if device is None:
        return default_device()
    if not isinstance(device, Device):
        raise TypeError(f"device must be a kvc.Device or None, not {type(device).__name__}")
    if device.closed:
        raise InvalidHandle("the device is closed: open another, or leave out `device`")
    return device


def _renew_lock() -> None:
    """A fork during default_device() would leave the child a lock that no thread releases."""
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
