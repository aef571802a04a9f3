"""Reads GGUF files: a header, metadata by key, a list of tensors, and their values.

The package `gguf` reads them too, but takes seconds for a vocabulary of 262144 tokens. What it
knows of quantised types is used here.
"""

import dataclasses
import mmap
import struct

import numpy as np

from demo import DemoError

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {  # of metadata, by the type's number in the file
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class GgufFile:
    """A GGUF file: metadata by key and tensors dequantised to float32."""

    def __init__(self, path):
        # Imported here so that `--help` works without it.
        import gguf

        self._gguf = gguf
        self.path = path
        try:
            with open(path, "rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._fields, self._tensors = _parsed(self._content)
            for tensor in self._tensors.values():
                self._stored(tensor)
        except (ValueError, KeyError, OverflowError, struct.error) as error:
            raise DemoError(
                f"{path} is not a whole GGUF file ({error}); fetch it again, or leave --model out "
                "to use the demo's own"
            ) from error

    def __contains__(self, name):
        return name in self._tensors

    def field(self, key, default=None):
        """A metadata value as a Python object; DemoError if it is missing and has no default."""
        value = self._fields.get(key, default)
        if value is None:
            raise DemoError(
                f"{self.path} has no metadata field {key}: it is not a model for this demo"
            )
        return value

    def tensor(self, name):
        """A tensor as float32, row-major: a matrix is [outputs, inputs]."""
        entry = self._tensors.get(name)
        if entry is None:
            raise DemoError(f"{self.path} has no tensor {name}: it is not a model for this demo")
        values, kind = self._stored(entry)
        try:
            return np.asarray(self._gguf.quants.dequantize(values, kind), dtype=np.float32)
        except NotImplementedError as error:
            raise DemoError(
                f"{self.path}: tensors of type {kind.name} cannot be read by gguf"
            ) from error

    def _stored(self, tensor):
        """The values of a tensor as they are in the file, in rows of bytes, and their type."""
        kind = self._gguf.GGMLQuantizationType(tensor.kind)
        rows = self._gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        count = int(np.prod(rows))
        values = np.frombuffer(self._content, np.uint8, count, tensor.offset).reshape(rows)
        return values, kind


@dataclasses.dataclass(frozen=True)
class _Tensor:
    shape: tuple  # row-major: the last is what lies together
    kind: int  # GGMLQuantizationType
    offset: int  # in the file


def _parsed(content):
    """The metadata by key, and the tensors by name."""
    reader = _Reader(content)
    if content[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    reader.at = 4
    version = reader.number("<u4")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}")
    n_tensors, n_fields = reader.number("<u8"), reader.number("<u8")
    fields = {}
    for _ in range(n_fields):
        key = reader.string()
        fields[key] = reader.value(reader.number("<u4"))
    listed = []
    for _ in range(n_tensors):
        name = reader.string()
        shape = reader.numbers("<u8", reader.number("<u4"))[::-1]
        listed.append((name, tuple(shape), reader.number("<u4"), reader.number("<u8")))
    alignment = fields.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    return fields, {name: _Tensor(shape, kind, start + at) for name, shape, kind, at in listed}


class _Reader:
    """Reads one value after the other; ValueError where the file ends too early."""

    def __init__(self, content):
        self._content = content
        self.at = 0

    def numbers(self, dtype, count):
        values = np.frombuffer(self._content, dtype, count, self.at)
        self.at += values.nbytes
        return values.tolist()

    def number(self, dtype):
        return self.numbers(dtype, 1)[0]

    def string(self):
        (size,) = struct.unpack_from("<Q", self._content, self.at)
        start = self.at + 8
        self.at = start + size
        if self.at > len(self._content):
            raise ValueError("it ends within a text")
        return self._content[start : self.at].decode()

    def value(self, kind):
        """A value of metadata; `kind` is the type's number."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        of, count = self.number("<u4"), self.number("<u8")
        if of == _STRING:
            return [self.string() for _ in range(count)]
        return self.numbers(_NUMBERS[of], count)
