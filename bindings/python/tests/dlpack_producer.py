"""A DLPack producer written with ctypes: any element type, device, stride and flag."""

import ctypes

CPU, CUDA, CUDA_HOST, ROCM = 1, 2, 3, 10
INT, UINT, FLOAT, BFLOAT, BOOL = 0, 1, 2, 4, 6
READ_ONLY = 1


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", Tensor),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
_NAMES = {Managed: b"dltensor", Versioned: b"dltensor_versioned"}
_USED = {Managed: b"used_dltensor", Versioned: b"used_dltensor_versioned"}


class Producer:
    """Provides DLPack and nothing else, over the memory of a NumPy array.

    kind     Managed (the older kind of capsule) or Versioned
    strides  in elements; None: null, which means dense
    knows_versions  False: __dlpack__ takes no max_version, as before DLPack 1.0
    """

    def __init__(
        self,
        array,
        code=FLOAT,
        bits=None,
        *,
        kind=Versioned,
        device=CPU,
        flags=0,
        lanes=1,
        major=1,
        shape=None,
        strides=(),
        byte_offset=0,
        knows_versions=True,
    ):
        self.array = array
        self.device = device
        self.knows_versions = knows_versions
        self.asked = []
        self.managed = kind()
        if kind is Versioned:
            self.managed.major, self.managed.flags = major, flags
        shape = array.shape if shape is None else shape
        if strides == ():
            strides = [step // array.itemsize for step in array.strides]
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(shape))(*strides)
        tensor = self.managed.tensor
        tensor.data, tensor.byte_offset = array.ctypes.data - byte_offset, byte_offset
        tensor.device_type, tensor.ndim = device, len(shape)
        tensor.code, tensor.bits, tensor.lanes = code, bits or 8 * array.itemsize, lanes
        tensor.shape = self._shape
        if self._strides is not None:
            tensor.strides = self._strides

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **asked):
        if asked and not self.knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        self.asked.append(asked)
        name = _NAMES[type(self.managed)]
        return _new(ctypes.addressof(self.managed), name, None)


def read(capsule, kind):
    """The managed tensor in a capsule, without taking it."""
    return kind.from_address(_pointer(capsule, _NAMES[kind]))


def take(capsule, kind):
    """The same, taken as a consumer does: the caller must now call its deleter."""
    managed = read(capsule, kind)
    _rename(capsule, _USED[kind])
    return managed
