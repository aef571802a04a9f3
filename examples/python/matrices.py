"""The matrices of a transformer's layers, laid out for NumPy."""

import numpy as np


class Matrices:
    """Four matrices for each layer: (qkv, attended, gate_up, down).

    All are in one block, in the order in which a token reads them: generating a token reads the
    block once, at memory speed, and the system gives a block this large huge pages. They are stored
    as [inputs, outputs], with which OpenBLAS multiplies a single row fastest. Matrices that read
    the same input are fused, and the gain of the norm before them is folded into them, so that a
    layer is four products.

    file      gguf_file.GgufFile
    config    model.Config
    progress  called with the layers done and the layers in all
    n_more    float32 elements that take() may add behind the layers
    """

    def __init__(self, file, config, progress, n_more=0):
        heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        shapes = [
            (config.embedding, heads),
            (config.n_heads * config.head_dim, config.embedding),
            (config.embedding, 2 * config.feed_forward),
            (config.feed_forward, config.embedding),
        ]
        count = config.n_layers * sum(rows * columns for rows, columns in shapes)
        self._block = np.empty(count + n_more, dtype=np.float32)
        self._used = 0
        self._layers = []
        for index in range(config.n_layers):
            self._layers.append([self.take(shape) for shape in shapes])
            _read_layer(file, index, config.feed_forward, *self._layers[-1])
            progress(index + 1, config.n_layers)

    def __iter__(self):
        return iter(self._layers)

    def take(self, shape):
        """The next part of the block, as a matrix to be filled."""
        size = shape[0] * shape[1]
        part = self._block[self._used : self._used + size].reshape(shape)
        self._used += size
        return part


def _read_layer(file, index, feed_forward, qkv, attended, gate_up, down):
    """Fills one layer's four matrices."""

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
    np.multiply(tensor("ffn_gate").T, gain, out=gate_up[:, :feed_forward])
    np.multiply(tensor("ffn_up").T, gain, out=gate_up[:, feed_forward:])
    down[:] = tensor("ffn_down").T


def normed(x, epsilon):
    """RMS norm over the last axis, without its gain."""
    squares = np.einsum("...e,...e->...", x, x)
    return x * (1.0 / np.sqrt(squares / x.shape[-1] + np.float32(epsilon)))[..., None]
