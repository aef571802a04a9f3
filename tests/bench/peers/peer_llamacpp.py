"""llama.cpp's flash attention over its cache: f16, q8_0 or q4_0.

The graph of a layer is the one that llama.cpp makes: it stores the pass's K and V, f32, in the cache's
type, token by token, and attends with ggml's fused operator. Sequences are streams of the cache.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

from cases import HEAD_DIM, KV_HEADS, Q_HEADS, Tensors, zeros

NAME = "llama.cpp flash attention"
VERSION = f"(llama-cpp-python {llama_cpp.__version__})"
F32, F16, I64 = 0, 1, 27  # ggml's types
STORAGE = {"f16": F16, "q4_0": 2, "q8_0": 8}
WIDTH = KV_HEADS * HEAD_DIM
N_NODES, N_TENSORS = 16, 24  # at most, of a layer's graph

Pointer, Int64, Size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", Size), ("mem_buffer", Pointer), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """The functions that are needed, of the libraries that llama-cpp-python brings."""

    def __init__(self) -> None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        self._libraries = [ctypes.CDLL(folder / f"lib{x}.so") for x in ("ggml-base", "ggml-cpu")]
        tensor = [Pointer]
        self.init = self._function("ggml_init", Pointer, [InitParams])
        self.free = self._function("ggml_free", None, [Pointer])
        self.tensor_overhead = self._function("ggml_tensor_overhead", Size, [])
        self.graph_overhead = self._function(
            "ggml_graph_overhead_custom", Size, [Size, ctypes.c_bool]
        )
        self.row_size = self._function("ggml_row_size", Size, [ctypes.c_int, Int64])
        self.new_tensor = self._function(
            "ggml_new_tensor_4d", Pointer, [Pointer, ctypes.c_int, *[Int64] * 4]
        )
        self.data = self._function("ggml_get_data", Pointer, tensor)
        self.view = self._function(
            "ggml_view_4d", Pointer, [Pointer, Pointer, *[Int64] * 4, *[Size] * 4]
        )
        self.permute = self._function(
            "ggml_permute", Pointer, [Pointer, Pointer, *[ctypes.c_int] * 4]
        )
        self.reshape = self._function("ggml_reshape_2d", Pointer, [Pointer, Pointer, Int64, Int64])
        self.set_rows = self._function("ggml_set_rows", Pointer, [Pointer] * 4)
        self.attention = self._function(
            "ggml_flash_attn_ext", Pointer, [*[Pointer] * 5, *[ctypes.c_float] * 3]
        )
        self.new_graph = self._function(
            "ggml_new_graph_custom", Pointer, [Pointer, Size, ctypes.c_bool]
        )
        self.expand = self._function("ggml_build_forward_expand", None, [Pointer, Pointer])
        self.quantize = self._function(
            "ggml_quantize_chunk", Size, [ctypes.c_int, Pointer, Pointer, *[Int64] * 3, Pointer]
        )
        self.cpu = self._function("ggml_backend_cpu_init", Pointer, [])
        self.set_n_threads = self._function(
            "ggml_backend_cpu_set_n_threads", None, [Pointer, ctypes.c_int]
        )
        self.compute = self._function("ggml_backend_graph_compute", ctypes.c_int, [Pointer] * 2)
        self.free_backend = self._function("ggml_backend_free", None, [Pointer])

    def _function(self, name: str, result, arguments: list):
        for library in self._libraries:
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                return function
        raise AttributeError(f"llama-cpp-python's ggml has no {name}")


class Peer:
    def __init__(self, tensors: Tensors, n_threads: int) -> None:
        case = tensors.case
        self.case, self.ggml = case, Ggml()
        self.type = STORAGE[case.storage]
        self._memory = self._room(tensors.layers)
        parameters = InitParams(self._memory.size, self._memory.ctypes.data, False)
        self.context = self.ggml.init(parameters)
        n = case.tokens * case.sequences
        new = tensors.k[:, case.past :], tensors.v[:, case.past :]
        self.k, self.v = (self._tensor(F32, x.reshape(n, WIDTH).astype(np.float32)) for x in new)
        self.q = self._tensor(F32, tensors.q.astype(np.float32))
        starts = np.arange(case.sequences)[:, None] * case.total + case.past
        self.rows = self._tensor(I64, (starts + np.arange(case.tokens)).reshape(-1))
        hidden = np.triu(np.full((case.tokens, case.total), -np.inf, np.float16), case.past + 1)
        self.mask = self._tensor(F16, np.tile(hidden, (case.sequences, 1, 1, 1)))
        self.backend = self.ggml.cpu()
        self.ggml.set_n_threads(self.backend, n_threads)
        stored = [self._encoded(x) for x in (tensors.k, tensors.v)]
        self.layers = [self._layer(stored) for _ in range(tensors.layers)]

    def __del__(self) -> None:
        self.ggml.free_backend(self.backend)
        self.ggml.free(self.context)

    def run(self, layer: int) -> None:
        graph, _ = self.layers[layer]
        if self.ggml.compute(self.backend, graph) != 0:
            raise RuntimeError("ggml_backend_graph_compute failed")

    def result(self, layer: int) -> np.ndarray:
        shape = (self.case.sequences, self.case.tokens, Q_HEADS, HEAD_DIM)
        return self._array(self.layers[layer][1], np.float32, shape).copy()

    def _room(self, n_layers: int) -> np.ndarray:
        """Memory for all tensors and graphs, on huge pages."""
        case = self.case
        results = 4 * Q_HEADS * HEAD_DIM * case.tokens * case.sequences
        objects = N_TENSORS * (self.ggml.tensor_overhead() + 64)
        objects += self.ggml.graph_overhead(N_NODES, False)
        inputs = 4 * results + 2 * case.total * case.tokens * case.sequences
        return zeros((n_layers * (case.bytes + results + objects) + inputs + (1 << 20),), np.uint8)

    def _new(self, type_: int, shape: tuple) -> int:
        """A tensor of that shape, outermost dimension first."""
        lengths = (*reversed(shape), *[1] * (4 - len(shape)))
        return self.ggml.new_tensor(self.context, type_, *lengths)

    def _tensor(self, type_: int, values: np.ndarray) -> int:
        tensor = self._new(type_, values.shape)
        self._array(tensor, values.dtype, values.shape)[...] = values
        return tensor

    def _array(self, tensor: int, dtype, shape: tuple) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.ggml.data(tensor))
        return np.frombuffer(memory, dtype).reshape(shape)

    def _encoded(self, values: np.ndarray) -> np.ndarray:
        """The bytes that the cache holds of [sequences, tokens, heads, dim]."""
        if self.type == F16:
            return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        wide = values.astype(np.float32)
        n_rows = wide.size // WIDTH
        codes = np.empty(n_rows * self.ggml.row_size(self.type, WIDTH), np.uint8)
        self.ggml.quantize(self.type, wide.ctypes.data, codes.ctypes.data, 0, n_rows, WIDTH, None)
        return codes

    def _layer(self, stored: list) -> tuple:
        """The graph of a layer, and the tensor of its results."""
        ggml, context, case = self.ggml, self.context, self.case
        graph = ggml.new_graph(context, N_NODES, False)
        heads = []
        for new, codes in zip((self.k, self.v), stored):
            cache = self._new(self.type, (case.sequences, case.total, WIDTH))
            self._array(cache, np.uint8, codes.shape)[...] = codes
            flat = ggml.reshape(context, cache, WIDTH, case.total * case.sequences)
            ggml.expand(graph, ggml.set_rows(context, flat, new, self.rows))
            heads.append(self._by_head(cache, KV_HEADS, case.total, self.type))
        q = self._by_head(self.q, Q_HEADS, case.tokens, F32)
        out = ggml.attention(context, q, *heads, self.mask, HEAD_DIM**-0.5, 0, 0)
        ggml.expand(graph, out)
        return graph, out

    def _by_head(self, tensor: int, n_heads: int, n_tokens: int, type_: int) -> int:
        """[sequences, tokens, heads, dim] seen as [sequences, heads, tokens, dim]."""
        row, token = self.ggml.row_size(type_, HEAD_DIM), self.ggml.row_size(type_, n_heads * HEAD_DIM)
        lengths = HEAD_DIM, n_heads, n_tokens, self.case.sequences
        strides = row, token, token * n_tokens, 0
        view = self.ggml.view(self.context, tensor, *lengths, *strides)
        return self.ggml.permute(self.context, view, 0, 2, 1, 3)
