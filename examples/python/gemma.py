"""Gemma 3 in NumPy: all of it except attention.

Five of six layers see a window of the last positions, the sixth sees all of them. `windows` says
so for each layer, and is all that a cache needs to know of it.
"""

import numpy as np

from demo import DemoError
from matrices import Matrices, normed
from model import Config

FULL_EVERY = 6  # layers 5, 11, 17 … see everything
WINDOW_ROPE_BASE = 10000.0  # of the layers with a window; the file has that of the others


class Gemma:
    """The weights, and the forward pass of a batch of tokens.

    windows  for each layer the positions that a token sees, its own included; None: all before it
    """

    def __init__(self, file, progress=lambda done, total: None):
        self.config = config = Config.of(file, "gemma3")
        if file.field("gemma3.rope.scaling.factor", 1.0) != 1.0:
            raise DemoError(f"{file.path} stretches its positions; this demo runs 270M and 1B")
        self._window = file.field("gemma3.attention.sliding_window")
        self.windows = [
            None if layer % FULL_EVERY == FULL_EVERY - 1 else self._window
            for layer in range(config.n_layers)
        ]
        self._embeddings = file.tensor("token_embd.weight")  # [vocabulary, embedding]
        self._layers = list(Matrices(file, config, progress))
        self._gains = [
            [
                file.tensor(f"blk.{layer}.{name}.weight")
                for name in (
                    "attn_q_norm",
                    "attn_k_norm",
                    "post_attention_norm",
                    "post_ffw_norm",
                )
            ]
            for layer in range(config.n_layers)
        ]
        self._last_gain = file.tensor("output_norm.weight")

    def forward(self, tokens, positions, attention, last=1):
        """The logits that follow the last tokens of a batch: float32 [last, vocabulary].

        tokens, positions  [n_tokens] integers, positions ascending
        attention          object with attend(layer, q, k, v, out), see RecomputedAttention
        """
        config = self.config
        n_tokens, n_heads, head_dim = len(tokens), config.n_heads, config.head_dim
        epsilon = config.norm_epsilon
        rotations = {
            None: _rotations(positions, config.rope_base, head_dim),
            self._window: _rotations(positions, WINDOW_ROPE_BASE, head_dim),
        }
        x = self._embeddings[tokens] * np.float32(np.sqrt(config.embedding))
        out = np.empty((n_tokens, n_heads, head_dim), dtype=np.float32)
        for layer, (qkv, attended, gate_up, down) in enumerate(self._layers):
            q_gain, k_gain, attended_gain, fed_gain = self._gains[layer]
            heads = (normed(x, epsilon) @ qkv).reshape(n_tokens, -1, head_dim)
            q, k, v = np.split(heads, [n_heads, n_heads + config.n_kv_heads], axis=1)
            rotation = rotations[self.windows[layer]]
            q = _rotated(normed(q, epsilon) * q_gain, *rotation)
            k = _rotated(normed(k, epsilon) * k_gain, *rotation)
            attention.attend(layer, q, k, v, out)
            x += normed(out.reshape(n_tokens, -1) @ attended, epsilon) * attended_gain
            gated = normed(x, epsilon) @ gate_up
            x += normed(_gelu_product(gated, config.feed_forward) @ down, epsilon) * fed_gain
        return (normed(x[-last:], epsilon) * self._last_gain) @ self._embeddings.T


def _rotations(positions, base, head_dim):
    """cos and sin of position * base^(-2j / head_dim): float32 [n_tokens, 1, head_dim / 2] each."""
    exponents = np.arange(0, head_dim, 2) / head_dim
    angles = np.asarray(positions)[:, None, None] * base**-exponents
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotated(heads, cosines, sines):
    """Heads with each pair (j, j + head_dim / 2) rotated."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


def _gelu_product(gated, feed_forward):
    """gelu(gate) * up of a fused [n_tokens, 2 * feed_forward], with gelu's tanh approximation."""
    gate, up = gated[:, :feed_forward], gated[:, feed_forward:]
    inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
    return np.float32(0.5) * gate * (1 + np.tanh(inner)) * up
