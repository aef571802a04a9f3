"""A Llama transformer in NumPy: all of it except attention.

`Llama.forward` passes the queries, keys and values of each layer to an object that computes
attention: `CachedAttention` (kvc) or `RecomputedAttention` (NumPy alone).
"""

import dataclasses

import numpy as np

from demo import DemoError


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
    def of(cls, file):
        """Reads the metadata of a GgufFile."""
        architecture = file.field("general.architecture")
        if architecture != "llama":
            raise DemoError(
                f"{file.path} holds a model of architecture {architecture}; this demo runs llama"
            )
        embedding = file.field("llama.embedding_length")
        n_heads = file.field("llama.attention.head_count")
        head_dim = file.field("llama.attention.key_length", embedding // n_heads)
        return cls(
            n_layers=file.field("llama.block_count"),
            n_heads=n_heads,
            n_kv_heads=file.field("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            embedding=embedding,
            feed_forward=file.field("llama.feed_forward_length"),
            context=file.field("llama.context_length"),
            rope_base=file.field("llama.rope.freq_base", 10000.0),
            rope_dims=file.field("llama.rope.dimension_count", head_dim),
            norm_epsilon=file.field("llama.attention.layer_norm_rms_epsilon"),
        )


class Llama:
    """The weights, and the forward pass of a batch of tokens.

    All matrices are in one block, in the order in which a token reads them: generating a token
    reads the block once, at memory speed, and the system gives a block this large huge pages. They
    are stored as [inputs, outputs], with which OpenBLAS multiplies a single row fastest. Matrices
    that read the same input are fused, and the gain of each norm is folded into the matrix that
    follows it, so that a layer is four products.
    """

    def __init__(self, file, progress=lambda done, total: None):
        self.config = config = Config.of(file)
        self._progress = progress
        heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        attended = config.n_heads * config.head_dim
        shapes = [
            (config.embedding, heads),
            (attended, config.embedding),
            (config.embedding, 2 * config.feed_forward),
            (config.feed_forward, config.embedding),
        ]
        self._embeddings = file.tensor("token_embd.weight")  # [vocabulary, embedding]
        self.vocabulary = len(self._embeddings)
        head_shape = (config.embedding, self.vocabulary)
        count = config.n_layers * sum(rows * columns for rows, columns in shapes)
        block = _Block(count + head_shape[0] * head_shape[1])
        self._layers = []
        for index in range(config.n_layers):
            self._layers.append([block.take(shape) for shape in shapes])
            self._read_layer(file, index, *self._layers[-1])
            progress(index + 1, config.n_layers)
        output = file.tensor("output.weight") if "output.weight" in file else self._embeddings
        self._head = block.take(head_shape)
        np.multiply(output.T, file.tensor("output_norm.weight")[:, None], out=self._head)
        self._rotations = _rope_rotations(config)

    def _read_layer(self, file, index, qkv, attended, gate_up, down):
        """Fills one layer's four matrices."""
        config = self.config

        def tensor(name):
            return file.tensor(f"blk.{index}.{name}.weight")

        gain = tensor("attn_norm")[:, None]
        column = 0
        for name in ("attn_q", "attn_k", "attn_v"):
            part = tensor(name)
            np.multiply(part.T, gain, out=qkv[:, column : column + len(part)])
            column += len(part)
        attended[:] = tensor("attn_output").T
        gain = tensor("ffn_norm")[:, None]
        np.multiply(tensor("ffn_gate").T, gain, out=gate_up[:, : config.feed_forward])
        np.multiply(tensor("ffn_up").T, gain, out=gate_up[:, config.feed_forward :])
        down[:] = tensor("ffn_down").T

    def forward(self, tokens, positions, attention):
        """The logits that follow the last token of a batch: float32 [vocabulary].

        tokens, positions  [n_tokens] integers, positions ascending
        attention          object with attend(layer, q, k, v, out), see RecomputedAttention
        """
        config = self.config
        n_tokens = len(tokens)
        n_rotated = config.n_heads + config.n_kv_heads
        rotations = self._rotations[positions][:, None, :]  # [n_tokens, 1, rope_dims / 2]
        x = self._embeddings[tokens]  # [n_tokens, embedding]
        out = np.empty((n_tokens, config.n_heads, config.head_dim), dtype=np.float32)
        for layer, (qkv, attended, gate_up, down) in enumerate(self._layers):
            heads = (self._normed(x) @ qkv).reshape(n_tokens, -1, config.head_dim)
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
            gated = self._normed(x) @ gate_up
            x += _silu_product(gated, config.feed_forward) @ down
        return self._normed(x[-1:])[0] @ self._head

    def _normed(self, x):
        """RMS norm of [n_tokens, embedding] without its gain, which the next matrix holds."""
        squares = np.einsum("te,te->t", x, x)
        return x * (1.0 / np.sqrt(squares / x.shape[1] + self.config.norm_epsilon))[:, None]


class _Block:
    """One float32 allocation that is divided into matrices."""

    def __init__(self, count):
        self._values = np.empty(count, dtype=np.float32)
        self._used = 0

    def take(self, shape):
        size = shape[0] * shape[1]
        part = self._values[self._used : self._used + size].reshape(shape)
        self._used += size
        return part


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
