"""kvc: the KV cache that any inference runtime can link, for Python.

A `Cache` holds the keys and values of the tokens that a transformer has processed, for several
sequences at once, and computes attention straight from its memory. Arrays are passed without
copies, through the buffer protocol, `__array_interface__` or DLPack (NumPy, PyTorch, JAX).

    import kvc, numpy as np

    with kvc.Cache(n_layers=30, n_kv_heads=3, head_dim=64, dtype="f16", capacity=2048) as cache:
        with cache.forward([0, 1, 2]):                 # positions of three tokens of sequence 0
            for layer in range(30):
                k = v = np.zeros((3, 3, 64), np.float32)   # from your model, keys rotated
                q = np.zeros((3, 9, 64), np.float32)
                out = cache.put_attention(layer, k, v, q)  # float32 [3, 9, 64]

`help(kvc.Cache)` is the manual; the C headers document each call in full.
"""

try:
    from .kvc_capi import (
        KVC_VERSION_MAJOR,
        KVC_VERSION_MINOR,
        KVC_VERSION_PATCH,
        kvc_build_info,
        kvc_version_number,
    )
except ImportError as error:
    if "libkvc.so" in str(error):  # the loader found the extension, but not what it is linked with
        _advice = (
            "the library that the package was built for is gone. Add its folder to LD_LIBRARY_PATH, "
            "or to /etc/ld.so.conf.d and run ldconfig; or install the package again"
        )
    elif error.name in ("kvc.kvc_capi", "kvc._kvc_capi"):
        _advice = (
            f"{__path__[0]} lacks the compiled part of kvc for this Python. If it is the source "
            "folder, run Python elsewhere, or compile it here: pip install -e ./bindings/python"
        )
    else:
        _advice = f"the compiled part of kvc in {__path__[0]} cannot be loaded: install it again"
    raise ImportError(f"{error}: {_advice}") from error

# The extension was compiled with one version of the headers and may be loaded with another library.
# While the major version is 0, a minor version may change the ABI.
_HEADER = (KVC_VERSION_MAJOR, KVC_VERSION_MINOR)
_LIBRARY = (kvc_version_number() >> 16, kvc_version_number() >> 8 & 0xFF)
if _HEADER != _LIBRARY:
    raise ImportError(
        "this kvc package was built for libkvc %d.%d, but libkvc %d.%d was loaded: install the package "
        "again, or set LD_LIBRARY_PATH to the folder of the library that it was built for"
        % (_HEADER + _LIBRARY)
    )

from .cache import PADDING, UNLIMITED, Cache, Pass
from .codecs import StorageInfo, decode, encode, storage_info
from .device import Device, DeviceAllocator
from .errors import (
    BackendUnavailable,
    BadState,
    Busy,
    CacheFull,
    CorruptData,
    DeviceFailure,
    DeviceMismatch,
    DtypeError,
    Error,
    InternalError,
    InvalidArgument,
    InvalidHandle,
    InvalidRecurrentShape,
    IoFailure,
    NotFound,
    NotSupported,
    OutOfMemory,
    ShapeError,
    SizeOverflow,
    Status,
    VersionMismatch,
    WindowLost,
)
from .info import EncoderInput, Run, SequenceInfo, StateSequence, Stats
from .layers import Layer
from .lightning import slopes
from .metadata import Metadata, padding
from .operator_calls import OperatorCall, OperatorNeeds
from .operator_settings import OperatorInfo, OperatorSettings
from .operators import Operator
from .partials import apply_sinks, dropout_mask, merge_attention, mode_of, repeat_kv_heads
from .registry import Operators, operators
from .rows import Rows
from .storage import Codes
from .views import View

__version__ = "%d.%d.%d" % (*_HEADER, KVC_VERSION_PATCH)
"""The version of this package. build_info() names that of the library, whose patch version may differ."""


def build_info() -> str:
    """One line about the library: version, compiler, and the CPU's instruction set."""
    return kvc_build_info()


__all__ = [
    "BackendUnavailable",
    "BadState",
    "Busy",
    "Cache",
    "CacheFull",
    "Codes",
    "CorruptData",
    "Device",
    "DeviceAllocator",
    "DeviceFailure",
    "DeviceMismatch",
    "DtypeError",
    "EncoderInput",
    "Error",
    "InternalError",
    "InvalidArgument",
    "InvalidHandle",
    "InvalidRecurrentShape",
    "IoFailure",
    "Layer",
    "Metadata",
    "NotFound",
    "NotSupported",
    "OutOfMemory",
    "Operator",
    "OperatorCall",
    "OperatorInfo",
    "OperatorNeeds",
    "OperatorSettings",
    "Operators",
    "PADDING",
    "Pass",
    "Rows",
    "Run",
    "SequenceInfo",
    "ShapeError",
    "SizeOverflow",
    "StateSequence",
    "Stats",
    "Status",
    "StorageInfo",
    "UNLIMITED",
    "VersionMismatch",
    "View",
    "WindowLost",
    "apply_sinks",
    "build_info",
    "decode",
    "dropout_mask",
    "encode",
    "merge_attention",
    "mode_of",
    "operators",
    "padding",
    "repeat_kv_heads",
    "slopes",
    "storage_info",
]
