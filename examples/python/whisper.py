"""The Whisper transformer in NumPy: all of it except the decoder's attention.

The encoder reads 30 seconds of sound. For each layer of the decoder, it leaves keys and values that
every token of the text sees. `Whisper.forward` passes the queries, keys and values of the text to an
object that computes attention: with kvc (`whisper_cached.py`) or with NumPy alone
(`whisper_recomputed.py`).
"""

import dataclasses

import numpy as np

import log_mel
from demo import DemoError


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a model, from its file."""

    n_bands: int  # of the log-mel spectrogram
    n_encoder_layers: int
    n_layers: int  # of the decoder
    n_heads: int
    head_dim: int
    n_sounds: int  # positions of the encoder's output
    n_positions: int  # of the text
    vocabulary: int

    @classmethod
    def of(cls, file):
        """Reads the shapes of a CTranslate2File."""
        width = len(file.tensor("decoder/layer_norm/gamma"))
        n_heads = file.number("decoder/num_heads")
        config = cls(
            n_bands=file.tensor("encoder/conv1/weight").shape[1],
            n_encoder_layers=file.count("encoder/layer_{}/self_attention/linear_0/weight"),
            n_layers=file.count("decoder/layer_{}/self_attention/linear_0/weight"),
            n_heads=n_heads,
            head_dim=width // n_heads,
            n_sounds=len(file.tensor("encoder/position_encodings/encodings")),
            n_positions=len(file.tensor("decoder/position_encodings/encodings")),
            vocabulary=len(file.tensor("decoder/embeddings/weight")),
        )
        if config.n_sounds != log_mel.FRAMES // 2:
            raise DemoError(
                f"{file.path} reads {config.n_sounds} frames, this demo {log_mel.FRAMES // 2}"
            )
        return config


class Whisper:
    """The weights, the encoder, and the forward pass of a batch of tokens."""

    def __init__(self, file):
        self.config = config = Config.of(file)
        self._convolutions = [_Linear(file, f"encoder/conv{number}") for number in (1, 2)]
        self._sound_positions = file.tensor("encoder/position_encodings/encodings")
        self._encoder = [
            _EncoderLayer(file, f"encoder/layer_{layer}")
            for layer in range(config.n_encoder_layers)
        ]
        self._encoder_norm = _Norm(file, "encoder/layer_norm")
        # [width, vocabulary]: OpenBLAS multiplies a single row fastest with it.
        self._embeddings = np.ascontiguousarray(file.tensor("decoder/embeddings/weight").T)
        self._positions = file.tensor("decoder/position_encodings/encodings")
        self._decoder = [
            _DecoderLayer(file, f"decoder/layer_{layer}") for layer in range(config.n_layers)
        ]
        self._decoder_norm = _Norm(file, "decoder/layer_norm")

    def encode(self, samples):
        """What the decoder's layers see of up to 30 seconds of sound: a list of (k, v), each
        [n_sounds, n_heads, head_dim]."""
        x = log_mel.log_mel(samples, self.config.n_bands).T  # [frames, bands]
        for stride, convolution in zip((1, 2), self._convolutions):
            # Three neighbouring frames side by side, silence beyond both ends.
            around = np.pad(x, ((1, 1), (0, 0)))
            neighbours = np.lib.stride_tricks.sliding_window_view(around, 3, axis=0)[::stride]
            x = _gelu(convolution(neighbours.reshape(len(neighbours), -1)))
        x += self._sound_positions
        for layer in self._encoder:
            q, k, v = self._heads(layer.qkv(layer.attention_norm(x)), 3)
            x += layer.attended(_full_attention(q, k, v).reshape(x.shape))
            x += layer.feed_forward(x)
        x = self._encoder_norm(x)
        return [tuple(self._heads(layer.sound_kv(x), 2)) for layer in self._decoder]

    def forward(self, tokens, positions, attention, last):
        """The logits that follow some tokens of a batch: float32 [len(last), vocabulary].

        tokens, positions  [n_tokens] integers; the tokens may belong to several texts
        attention          object with text(layer, q, k, v) and sound(layer, q), which return
                           [n_tokens, n_heads, head_dim]; see RecomputedDecoder
        last               indexes of the tokens whose successors are wanted
        """
        x = self._embeddings[:, tokens].T + self._positions[positions]  # [n_tokens, width]
        for index, layer in enumerate(self._decoder):
            q, k, v = self._heads(layer.qkv(layer.attention_norm(x)), 3)
            x += layer.attended(attention.text(index, q, k, v).reshape(x.shape))
            (q,) = self._heads(layer.sound_q(layer.sound_norm(x)), 1)
            x += layer.sound_attended(attention.sound(index, q).reshape(x.shape))
            x += layer.feed_forward(x)
        return self._decoder_norm(x[last]) @ self._embeddings

    def _heads(self, fused, parts):
        """Divides [n, parts * width] into `parts` arrays [n, n_heads, head_dim]."""
        shape = (len(fused), parts, self.config.n_heads, self.config.head_dim)
        return fused.reshape(shape).swapaxes(0, 1)


class _EncoderLayer:
    """The weights that every layer has."""

    def __init__(self, file, name):
        self.attention_norm = _Norm(file, f"{name}/self_attention/layer_norm")
        self.qkv = _Linear(file, f"{name}/self_attention/linear_0")
        self.attended = _Linear(file, f"{name}/self_attention/linear_1")
        self._forward_norm = _Norm(file, f"{name}/ffn/layer_norm")
        self._wider = _Linear(file, f"{name}/ffn/linear_0")
        self._narrower = _Linear(file, f"{name}/ffn/linear_1")

    def feed_forward(self, x):
        return self._narrower(_gelu(self._wider(self._forward_norm(x))))


class _DecoderLayer(_EncoderLayer):
    """Those, and the weights of its cross attention."""

    def __init__(self, file, name):
        super().__init__(file, name)
        self.sound_norm = _Norm(file, f"{name}/attention/layer_norm")
        self.sound_q = _Linear(file, f"{name}/attention/linear_0")
        self.sound_kv = _Linear(file, f"{name}/attention/linear_1")
        self.sound_attended = _Linear(file, f"{name}/attention/linear_2")


class _Linear:
    """x @ weight + bias; the weight of a convolution over three neighbours is one matrix too."""

    def __init__(self, file, name):
        weight = file.tensor(f"{name}/weight")
        self._weight = np.ascontiguousarray(weight.reshape(len(weight), -1).T)
        self._bias = file.tensor(f"{name}/bias")

    def __call__(self, x):
        result = x @ self._weight
        result += self._bias
        return result


class _Norm:
    """Layer norm of [n, width]."""

    def __init__(self, file, name):
        self._gain = file.tensor(f"{name}/gamma")
        self._bias = file.tensor(f"{name}/beta")

    def __call__(self, x):
        centred = x - x.mean(axis=1, keepdims=True)
        variance = np.einsum("nw,nw->n", centred, centred) / x.shape[1]
        centred *= (1 / np.sqrt(variance + 1e-5))[:, None]
        centred *= self._gain
        centred += self._bias
        return centred


def _full_attention(q, k, v):
    """softmax(q k^T / sqrt(head_dim)) v where everything sees everything: [n, n_heads, head_dim]."""
    out = np.empty(q.shape, dtype=np.float32)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head].T
        scores *= np.float32(q.shape[2] ** -0.5)
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        out[:, head] = scores @ v[:, head]
    return out


def _gelu(x):
    """x times the probability that a normal number is below x, to 2e-7 (Abramowitz, Stegun 7.1.26)."""
    size = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series += np.float32(coefficient)
        series *= t
    error = 1 - series * np.exp(-size * size)
    return 0.5 * x * (1 + np.copysign(error, x))
