"""PyTorch's scaled_dot_product_attention over K and V in f16 that lie head by head.

For decode the query heads of a KV head are folded into rows, several times as fast as enable_gqa.
It stores nothing: K and V of the new tokens are there already.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from cases import HEAD_DIM, KV_HEADS, Q_HEADS, Tensors, zeros

NAME = "PyTorch SDPA"
VERSION = torch.__version__


class Peer:
    def __init__(self, tensors: Tensors, n_threads: int) -> None:
        case = tensors.case
        self.case = case
        torch.set_num_threads(n_threads)
        self.layers = [
            [_head_major(x) for x in (tensors.k, tensors.v)] for _ in range(tensors.layers)
        ]
        if case.tokens == 1:
            folded = (case.sequences, KV_HEADS, Q_HEADS // KV_HEADS, HEAD_DIM)
            self.q = torch.from_numpy(tensors.q).reshape(folded)
            self.options = {}
        else:
            self.q = _head_major(tensors.q)
            self.options = {"enable_gqa": True, "is_causal": case.past == 0}
        if case.tokens > 1 and case.past > 0:
            hidden = np.triu(np.full((case.tokens, case.total), -np.inf, np.float16), case.past + 1)
            self.options["attn_mask"] = torch.from_numpy(hidden)
        self.out = None

    def run(self, layer: int) -> None:
        with torch.inference_mode():
            k, v = self.layers[layer]
            self.out = scaled_dot_product_attention(self.q, k, v, **self.options)

    def result(self, layer: int) -> np.ndarray:
        out = self.out.numpy()
        if self.case.tokens > 1:
            return out.transpose(0, 2, 1, 3)
        return out.reshape(self.case.sequences, 1, Q_HEADS, HEAD_DIM)


def _head_major(rows: np.ndarray) -> torch.Tensor:
    """[sequences, tokens, heads, dim] as [sequences, heads, tokens, dim] on huge pages."""
    sequences, tokens, heads, dim = rows.shape
    array = zeros((sequences, heads, tokens, dim), np.float16)
    array[...] = rows.transpose(0, 2, 1, 3)
    return torch.from_numpy(array)
