"""The vectors of behaviour that every language replays, and their inputs."""

import json
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "tests" / "conformance" / "vectors"


def vectors(name):
    """What a file of vectors holds; skips the test outside the source tree."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip("outside the source tree")
    return json.loads(path.read_text())


def wave(salt, shape):
    """Numbers that the vectors compute with: exact in float32, from -1 to 1."""
    i = np.arange(1, np.prod(shape) + 1, dtype=np.uint64)
    bits = (i * np.uint64(2654435761) + np.uint64(salt * 2246822519 % 2**32)) & np.uint64(
        0xFFFFFFFF
    )
    return ((bits >> np.uint64(16)).astype(np.float32) / 32768 - 1).reshape(shape)


def floats(digits):
    """float32 from the bits of each as eight hexadecimal digits."""
    return np.frombuffer(bytes.fromhex(digits), ">u4").astype(np.uint32).view(np.float32)


def status_of(call):
    """The status of a call, as the vectors name it, and what it returned."""
    import kvc

    try:
        return "OK", call()
    except kvc.Error as error:
        return error.status.name, None
