"""A Llama transformer in NumPy: all of it except attention.

`Llama.forward` passes the queries, keys and values of each layer to an object that computes
attention: `CachedAttention` (kvc) or `RecomputedAttention` (NumPy alone).
"""

import dataclasses

import numpy as np

from demo import DemoError
from matrices import Matrices, normed


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a model, from its file."""

    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int
    head_dim: int
    embedding: int
    feed_forward: int
    context: int  # tokens that the model was trained for
    rope_base: float
    rope_dims: int  # leading dimensions of a head that are rotated, in neighbouring pairs
    norm_epsilon: float

    @classmethod
    def of(cls, file, architecture):
        """Reads the metadata of a GgufFile, which must be of an architecture."""
        own = file.field("general.architecture")
        if own != architecture:
            raise DemoError(
                f"{file.path} holds a model of architecture {own}; this demo runs {architecture}"
            )

        def field(name, default=None):
            return file.field(f"{architecture}.{name}", default)

        embedding = field("embedding_length")
        n_heads = field("attention.head_count")
        head_dim = field("attention.key_length", embedding // n_heads)
        return cls(
            n_layers=field("block_count"),
            n_heads=n_heads,
            n_kv_heads=field("attention.head_count_kv", n_heads),
            head_dim=head_dim,
            embedding=embedding,
            feed_forward=field("feed_forward_length"),
            context=field("context_length"),
            rope_base=field("rope.freq_base", 10000.0),
            rope_dims=field("rope.dimension_count", head_dim),
            norm_epsilon=field("attention.layer_norm_rms_epsilon"),
        )


class Llama:
    """The weights, and the forward pass of a batch of tokens."""

    def __init__(self, file, progress=lambda done, total: None):
        self.config = config = Config.of(file, "llama")
        self._embeddings = file.tensor("token_embd.weight")  # [vocabulary, embedding]
        head_shape = self._embeddings.T.shape
        matrices = Matrices(file, config, progress, n_more=head_shape[0] * head_shape[1])
        self._layers = list(matrices)
        output = file.tensor("output.weight") if "output.weight" in file else self._embeddings
        self._head = matrices.take(head_shape)
        np.multiply(output.T, file.tensor("output_norm.weight")[:, None], out=self._head)
        self._rotations = _rope_rotations(config)

    def forward(self, tokens, positions, attention, last=1):
        """The logits that follow the last tokens of a batch: float32 [last, vocabulary].

        tokens, positions  [n_tokens] integers, positions ascending
        attention          object with attend(layer, q, k, v, out), see RecomputedAttention
        """
        config = self.config
        epsilon = config.norm_epsilon
        n_tokens = len(tokens)
        n_rotated = config.n_heads + config.n_kv_heads
        rotations = self._rotations[positions][:, None, :]  # [n_tokens, 1, rope_dims / 2]
        x = self._embeddings[tokens]  # [n_tokens, embedding]
        out = np.empty((n_tokens, config.n_heads, config.head_dim), dtype=np.float32)
        for layer, (qkv, attended, gate_up, down) in enumerate(self._layers):
            heads = (normed(x, epsilon) @ qkv).reshape(n_tokens, -1, config.head_dim)
            # Neighbouring pairs are complex numbers in memory: one product rotates q and k.
            pairs = heads[:, :n_rotated, : config.rope_dims].view(np.complex64)
            pairs *= rotations
            attention.attend(
                layer,
                heads[:, : config.n_heads],
                heads[:, config.n_heads : n_rotated],
                heads[:, n_rotated:],
                out,
            )
            x += out.reshape(n_tokens, -1) @ attended
            gated = normed(x, epsilon) @ gate_up
            x += _silu_product(gated, config.feed_forward) @ down
        return normed(x[-last:], epsilon) @ self._head


def _silu_product(gated, feed_forward):
    """silu(gate) * up of a fused [n_tokens, 2 * feed_forward]; silu(x) = x / (1 + exp(-x))."""
    gate, up = gated[:, :feed_forward], gated[:, feed_forward:]
    result = np.negative(gate)
    with np.errstate(over="ignore"):  # exp overflows to infinity where silu is 0, which is right
        np.exp(result, out=result)
    result += 1.0
    np.divide(gate, result, out=result)
    result *= up
    return result


def _rope_rotations(config):
    """exp(i * position * base^(-2j / dims)) as complex64 [context, rope_dims / 2]."""
    exponents = np.arange(0, config.rope_dims, 2) / config.rope_dims
    angles = np.arange(config.context)[:, None] * config.rope_base ** -exponents[None, :]
    return np.exp(1j * angles).astype(np.complex64)
