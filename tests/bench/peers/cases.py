"""What is measured: shapes, and tensors that all peers are given alike."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Tuple

import numpy as np

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HUGE_PAGE = 2 << 20


@dataclass(frozen=True)
class Case:
    """One attention call: so many sequences, each with a history and new tokens behind it."""

    name: str
    tokens: int  # new ones of each sequence
    total: int  # with the history
    sequences: int = 1
    must: float = 0  # times faster than OpenVINO
    go_for: float = 0

    @property
    def past(self) -> int:
        return self.total - self.tokens

    @property
    def bytes(self) -> int:
        """Of K and V in f16, each read once."""
        return 4 * KV_HEADS * HEAD_DIM * self.total * self.sequences

    @property
    def operations(self) -> float:
        """Of the products of visible pairs."""
        pairs = self.tokens * self.past + self.tokens * (self.tokens + 1) / 2
        return 4.0 * pairs * Q_HEADS * HEAD_DIM * self.sequences


def _decode(name: str, total: int, sequences: int = 1) -> Case:
    return Case(f"decode {name}", 1, total, sequences, must=2.5, go_for=3.0)


def _prefill(tokens: int, total: int) -> Case:
    return Case(f"prefill {tokens} on {total}", tokens, total, must=1.15, go_for=1.35)


CASES = [
    _decode("1k", 1024),
    _decode("4k", 4096),
    _decode("16k", 16384),
    _decode("64k", 65536),
    _decode("8 x 4k", 4096, sequences=8),
    _prefill(512, 512),
    _prefill(2048, 2048),
    _prefill(512, 4096),
]


class Tensors:
    """K, V and Q of a case in f16, [sequences, tokens, heads, HEAD_DIM].

    Every layer of every peer has memory of its own with these values in it: calls rotate over the
    layers, so that no cache of the processor serves them.
    """

    def __init__(self, case: Case, rotate_bytes: int) -> None:
        random = np.random.default_rng(7)
        self.case = case
        self.layers = max(2, -(-rotate_bytes // case.bytes))

        def some(tokens: int, heads: int) -> np.ndarray:
            # A table repeated at an odd stride: as good as random here, and made in a moment.
            table = random.standard_normal(1 << 20, dtype=np.float32).astype(np.float16)
            shape = (case.sequences, tokens, heads, HEAD_DIM)
            return np.resize(table[: table.size - 1], shape)

        self.k = some(case.total, KV_HEADS)
        self.v = some(case.total, KV_HEADS)
        self.q = some(case.tokens, Q_HEADS)


def zeros(shape: Tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros on huge pages, as the memory of a cache should lie."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    flat = np.frombuffer(memory, np.uint8)
    start = -flat.ctypes.data % HUGE_PAGE
    array = flat[start : start + size].view(dtype).reshape(shape)
    array[...] = 0
    return array


def expected(tensors: Tensors, rows: int = 16) -> np.ndarray:
    """The last rows of each sequence in double, [sequences, rows, Q_HEADS, HEAD_DIM]."""
    case, group = tensors.case, Q_HEADS // KV_HEADS
    rows = min(rows, case.tokens)
    out = np.empty((case.sequences, rows, Q_HEADS, HEAD_DIM))
    visible = np.arange(case.total) <= np.arange(case.total - rows, case.total)[:, None]
    for s in range(case.sequences):
        for head in range(Q_HEADS):
            k = tensors.k[s, :, head // group].astype(np.float64)
            scores = tensors.q[s, -rows:, head].astype(np.float64) @ k.T / np.sqrt(HEAD_DIM)
            weights = np.where(visible, np.exp(scores - scores.max()), 0)
            weights /= weights.sum(axis=1, keepdims=True)
            out[s, :, head] = weights @ tensors.v[s, :, head // group].astype(np.float64)
    return out
