"""OpenVINO's PagedAttention on pages of 32 tokens, the operator of its continuous batching.

It stores the pass's K and V and attends, as kvc.put_attention does. Q, K, V and the result are f32,
pages are f16.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from cases import HEAD_DIM, KV_HEADS, Q_HEADS, Tensors, zeros

NAME = "OpenVINO PagedAttention"
VERSION = ov.__version__.split("-")[0]
PAGE = 32


class Peer:
    def __init__(self, tensors: Tensors, n_threads: int) -> None:
        case = tensors.case
        self.case = case
        n_pages = -(-case.total // PAGE) * case.sequences
        config = {
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": 1,
            "KV_CACHE_PRECISION": "f16",
            "INFERENCE_PRECISION_HINT": "f32",  # as kvc: f16 pages, sums in f32
        }
        compiled = ov.Core().compile_model(_model(case.sequences), "CPU", config)
        new = tensors.q, tensors.k[:, case.past :], tensors.v[:, case.past :]
        rows = [
            x.reshape(case.sequences * case.tokens, -1).astype(np.float32) for x in new
        ]
        tables = {
            "past_lens": np.full(case.sequences, case.past),
            "subsequence_begins": np.arange(case.sequences + 1) * case.tokens,
            "block_indices": np.arange(n_pages),
            "block_indices_begins": np.arange(case.sequences + 1) * (n_pages // case.sequences),
            "max_context_len": np.array(case.total),
        }
        self._keep = []  # what the requests read in place
        self._requests = []
        for _ in range(tensors.layers):
            request = compiled.create_infer_request()
            pages = [_pages(x, n_pages) for x in (tensors.k, tensors.v)]
            inputs = dict(zip(("query", "key", "value", "key_cache", "value_cache"), rows + pages))
            inputs.update({name: table.astype(np.int32) for name, table in tables.items()})
            for name, array in inputs.items():
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            self._keep.append(inputs)
            self._requests.append(request)

    def run(self, layer: int) -> None:
        self._requests[layer].infer()

    def result(self, layer: int) -> np.ndarray:
        out = self._requests[layer].get_output_tensor(0).data
        return out.reshape(self.case.sequences, self.case.tokens, Q_HEADS, HEAD_DIM)


def _pages(rows: np.ndarray, n_pages: int) -> np.ndarray:
    """[sequences, tokens, heads, dim] as [pages, heads, PAGE, dim]."""
    pages = zeros((n_pages, KV_HEADS, PAGE, HEAD_DIM), np.float16)
    whole = rows.shape[1] // PAGE  # the cases' lengths are multiples of a page
    pages[...] = rows.reshape(len(rows) * whole, PAGE, KV_HEADS, HEAD_DIM).transpose(0, 2, 1, 3)
    return pages


def _model(n_sequences: int) -> ov.Model:
    """The operator alone, its 28 inputs in their order; options not used are empty constants."""

    def parameter(name: str, shape: list, dtype) -> ov.Node:
        node = ops.parameter(shape, dtype, name=name)
        node.output(0).get_tensor().set_names({name})
        return node

    def constant(values, dtype: type) -> ov.Node:
        return ops.constant(np.array(values, dtype))

    none_i32, none_f32 = ([], np.int32), ([], np.float32)
    inputs = [
        parameter("query", [-1, Q_HEADS * HEAD_DIM], np.float32),
        parameter("key", [-1, KV_HEADS * HEAD_DIM], np.float32),
        parameter("value", [-1, KV_HEADS * HEAD_DIM], np.float32),
        # The plugin settles the pages' type and shape: pages declared as f16 here would be
        # converted to f32 in every call.
        parameter("key_cache", [-1, -1, -1, -1], ov.Type.dynamic),
        parameter("value_cache", [-1, -1, -1, -1], ov.Type.dynamic),
        parameter("past_lens", [-1], np.int32),
        parameter("subsequence_begins", [-1], np.int32),
        parameter("block_indices", [-1], np.int32),
        parameter("block_indices_begins", [-1], np.int32),
        constant(HEAD_DIM**-0.5, np.float32),  # scale
        constant(0, np.int32),  # sliding window
        constant(*none_f32),  # ALiBi slopes
        parameter("max_context_len", [], np.int32),
        constant([0] * n_sequences, np.int32),  # windows of aggregated scores
        constant(*none_i32),  # rotated blocks, how far, and the table for it
        constant(*none_i32),
        constant(*none_f32),
        constant(*none_f32),  # sparse attention: threshold, block, stride
        constant(0, np.int32),
        constant(0, np.int32),
        constant(*none_f32),  # sinks
        constant(0, np.int32),  # eviction: start, sizes, sets of blocks and where they begin
        constant(*none_i32),
        constant(*none_i32),
        constant(*none_i32),
        constant(*none_i32),  # kinds of tokens
        constant([], np.uint8),  # masks of draft trees, and where they begin
        constant(*none_i32),
    ]
    attention = ov._pyopenvino.op._PagedAttentionExtension([node.output(0) for node in inputs])
    info = attention.get_rt_info()
    info["num_k_heads"] = info["num_v_heads"] = KV_HEADS
    info["k_head_size"] = info["v_head_size"] = HEAD_DIM
    parameters = [node for node in inputs if node.get_type_name() == "Parameter"]
    return ov.Model([ops.result(attention.output(0))], parameters)
