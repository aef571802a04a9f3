"""What is measured: shapes, and tensors that all peers are given alike."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import List, Tuple

import numpy as np

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BLOCK, BLOCK_BYTES = 32, {"f16": 64, "q8_0": 34, "q4_0": 18}
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
    storage: str = "f16"  # of K and V

    @property
    def past(self) -> int:
        return self.total - self.tokens

    @property
    def bytes(self) -> int:
        """Of K and V, each read once."""
        values = 2 * KV_HEADS * HEAD_DIM * self.total * self.sequences
        return values * BLOCK_BYTES[self.storage] // BLOCK

    @property
    def peers(self) -> List[str]:
        """Who stores K and V in this type: ggml's blocks are llama.cpp's alone."""
        all_of_f16 = ["openvino", "torch", "onnxruntime", "llamacpp"]
        return all_of_f16 if self.storage == "f16" else ["llamacpp"]

    @property
    def largest_error(self) -> float:
        """Results are around 0.1. Some peers give and sum them in f16; llama.cpp rounds queries to 8 bits, too."""
        return 2e-3 if self.storage == "f16" else 2e-2

    @property
    def operations(self) -> float:
        """Of the products of visible pairs."""
        pairs = self.tokens * self.past + self.tokens * (self.tokens + 1) / 2
        return 4.0 * pairs * Q_HEADS * HEAD_DIM * self.sequences


def _decode(name: str, total: int, sequences: int = 1) -> Case:
    return Case(f"decode {name}", 1, total, sequences, must=2.5, go_for=3.0)


def _prefill(tokens: int, total: int) -> Case:
    return Case(f"prefill {tokens} on {total}", tokens, total, must=1.15, go_for=1.35)


def _in_blocks(storage: str) -> List[Case]:
    return [
        Case(f"decode 4k {storage}", 1, 4096, storage=storage),
        Case(f"decode 16k {storage}", 1, 16384, storage=storage),
        Case(f"prefill 512 on 4096 {storage}", 512, 4096, storage=storage),
    ]


CASES = [
    _decode("1k", 1024),
    _decode("4k", 4096),
    _decode("16k", 16384),
    _decode("64k", 65536),
    _decode("8 x 4k", 4096, sequences=8),
    _prefill(512, 512),
    _prefill(2048, 2048),
    _prefill(512, 4096),
    *_in_blocks("q8_0"),
    *_in_blocks("q4_0"),
]


class Tensors:
    """K, V and Q of a case as f16, [sequences, tokens, heads, HEAD_DIM].

    Every layer of every peer has memory of its own with these values in it: calls rotate over the
    layers, so that no cache of the processor serves them.
    """

    def __init__(self, case: Case, rotate_bytes: int) -> None:
        random = np.random.default_rng(7)
        self.case = case
        self.layers = max(2, -(-rotate_bytes // case.bytes))

        def some(tokens: int, heads: int, storage: str) -> np.ndarray:
            # A table repeated at an odd number of blocks: as good as random here, and made in a moment.
            table = on_grid(random.standard_normal(1 << 20, dtype=np.float32), storage)
            shape = (case.sequences, tokens, heads, HEAD_DIM)
            return np.resize(table.astype(np.float16)[: table.size - BLOCK], shape)

        self.k = some(case.total, KV_HEADS, case.storage)
        self.v = some(case.total, KV_HEADS, case.storage)
        self.q = some(case.tokens, Q_HEADS, "f16")


def on_grid(values: np.ndarray, storage: str) -> np.ndarray:
    """Values near these that each storage type holds exactly, so that no peer computes with others: multiples of a step
    that the first value of each block sets."""
    if storage == "f16":
        return values
    step, codes, first = {"q8_0": (1 / 32, 126, 127), "q4_0": (0.5, 7, -8)}[storage]
    values = np.clip(np.rint(values / step), -codes, codes) * step
    values[::BLOCK] = first * step
    return values


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
