"""ONNX Runtime's GroupQueryAttention in f16.

Past and present are the same buffers, so that a call stores the new rows only.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from cases import HEAD_DIM, KV_HEADS, Q_HEADS, Tensors, zeros

NAME = "ONNX Runtime GroupQueryAttention"
VERSION = onnxruntime.__version__


class Peer:
    def __init__(self, tensors: Tensors, n_threads: int) -> None:
        case = tensors.case
        self.case = case
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        self.session = onnxruntime.InferenceSession(
            _model(), options, providers=["CPUExecutionProvider"]
        )
        new = tensors.q, tensors.k[:, case.past :], tensors.v[:, case.past :]
        inputs = {
            name: np.ascontiguousarray(x).reshape(case.sequences, case.tokens, -1)
            for name, x in zip(("query", "key", "value"), new)
        }
        inputs["last"] = np.full(case.sequences, case.total - 1, np.int32)
        inputs["total"] = np.array(case.total, np.int32)
        self.out = np.zeros_like(inputs["query"])
        self._keep = [inputs]  # what the bindings read in place
        self.bindings = []
        for _ in range(tensors.layers):
            buffers = {"k": _head_major(tensors.k), "v": _head_major(tensors.v)}
            self._keep.append(buffers)
            binding = self.session.io_binding()
            for name, array in inputs.items():
                _bind(binding.bind_input, name, array)
            for name, array in buffers.items():
                _bind(binding.bind_input, "past_" + name, array)
                _bind(binding.bind_output, "present_" + name, array)
            _bind(binding.bind_output, "out", self.out)
            self.bindings.append(binding)

    def run(self, layer: int) -> None:
        self.session.run_with_iobinding(self.bindings[layer])

    def result(self, layer: int) -> np.ndarray:
        return self.out.reshape(self.case.sequences, self.case.tokens, Q_HEADS, HEAD_DIM)


def _bind(bind, name: str, array: np.ndarray) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _head_major(rows: np.ndarray) -> np.ndarray:
    sequences, tokens, heads, dim = rows.shape
    array = zeros((sequences, heads, tokens, dim), np.float16)
    array[...] = rows.transpose(0, 2, 1, 3)
    return array


def _model() -> bytes:
    """The operator alone."""
    names = ["query", "key", "value", "past_k", "past_v", "last", "total"]
    outputs = ["out", "present_k", "present_v"]
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        outputs,
        domain="com.microsoft",
        num_heads=Q_HEADS,
        kv_num_heads=KV_HEADS,
    )
    f16, i32 = TensorProto.FLOAT16, TensorProto.INT32
    rank = {"last": (i32, ["b"]), "total": (i32, [])}
    past = ["b", KV_HEADS, "room", HEAD_DIM]

    def value(name: str):
        shape = past if name[:4] in ("past", "pres") else ["b", "t", None]
        return helper.make_tensor_value_info(name, *rank.get(name, (f16, shape)))

    graph = helper.make_graph([node], "attention", [*map(value, names)], [*map(value, outputs)])
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    # An IR version that runtimes older than the onnx package read too.
    return helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
