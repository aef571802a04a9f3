"""What the demo verifies kvc with: attention in NumPy over the whole sequence."""

import numpy as np


class RecomputedAttention:
    """Causal attention of a sequence with itself. Keeps nothing between calls.

    storage  "f32", "f16" or "bf16": keys and values are rounded as a cache of that type stores them
    window   positions that a token sees, its own included; None: all before it
    """

    def __init__(self, storage="f32", window=None):
        self._stored = stored_as(storage)
        self._window = window

    def attend(self, layer, q, k, v, out):
        """Writes softmax(q k^T / sqrt(head_dim)) v.

        layer  ignored: nothing is stored
        q      float32 [n_tokens, n_heads, head_dim], rotated
        k, v   float32 [n_tokens, n_kv_heads, head_dim], keys rotated
        out    float32 [n_tokens, n_heads, head_dim], written
        """
        n_tokens, n_heads, head_dim = q.shape
        group = n_heads // k.shape[1]  # query heads that share a KV head
        k, v = self._stored(k), self._stored(v)
        own = np.arange(n_tokens)
        hidden = own[None, :] > own[:, None]
        if self._window is not None:
            hidden |= own[None, :] <= own[:, None] - self._window
        for head in range(n_heads):
            scores = q[:, head] @ k[:, head // group].T / np.float32(np.sqrt(head_dim))
            scores[hidden] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            weights = np.exp(scores)
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ v[:, head // group]


def stored_as(storage):
    """A function that rounds float32 as a cache of a type stores it."""
    return _ROUNDINGS[storage]


def _through_bf16(values):
    """Rounds float32 to the nearest bfloat16 (its upper 16 bits), ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


_ROUNDINGS = {
    "f32": lambda values: values,
    "f16": lambda values: values.astype(np.float16).astype(np.float32),
    "bf16": _through_bf16,
}
