"""Layers of hybrid models in plain NumPy, token by token: what a state is made of, and attention.

A layer of a recurrence maps a token and the states before it to an output and the states behind it.
The same code runs on states that kvc keeps and from zeros, so both give the same bits.
"""

import numpy as np

import kvc

WIDTH = 12  # of the model: the elements of a token


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x):
    """A token with a root mean square of 1, which is what every layer reads."""
    return x / np.sqrt((x * x).mean() + 1e-6)


class Recurrence:
    """What the recurrent layers share: a causal convolution 1 + conv_dim wide before the state."""

    state_shape = None

    def __init__(self, random, channels, conv_dim):
        def weights(*shape):
            return random.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)

        self.weights = weights
        self.channels, self.conv_dim = channels, conv_dim
        self.enter = weights(channels, WIDTH)
        self.filter = weights(channels, conv_dim + 1)

    @property
    def layer(self):
        """What it needs of a cache."""
        return kvc.Layer(
            kind="recurrent",
            state_shape=self.state_shape,
            conv_channels=self.channels,
            conv_dim=self.conv_dim,
            draft_states=3,
            checkpoints=3,
            checkpoint_interval=4,
            checkpoint_min_pos=2,
        )

    def zeros(self):
        """The states of an empty sequence."""
        state = None if self.state_shape is None else np.zeros(self.state_shape, np.float32)
        return np.zeros((self.channels, self.conv_dim), np.float32), state

    def inputs(self, x):
        """What the convolution reads of a token [WIDTH]."""
        return self.enter @ normed(x)

    def step(self, x, conv, state):
        """A token: its output and the states behind it. Changes neither argument."""
        window = np.concatenate([conv, self.inputs(x)[:, None]], axis=1)
        mixed = (window * self.filter).sum(axis=1)
        out, state = self.recur(normed(x), mixed, state)
        return x + out, window[:, 1:], state


class ShortConvolution(Recurrence):
    """LFM2: a gated convolution, and no state besides its inputs."""

    def __init__(self, random):
        super().__init__(random, WIDTH, 2)
        self.gate_in, self.gate_out = self.weights(WIDTH, WIDTH), self.weights(WIDTH, WIDTH)
        self.leave = self.weights(WIDTH, WIDTH)

    def inputs(self, x):
        x = normed(x)
        return (self.gate_in @ x) * (self.enter @ x)

    def recur(self, x, mixed, state):
        return self.leave @ ((self.gate_out @ x) * mixed), state


class GatedDeltaRule(Recurrence):
    """Qwen3-Next: per head S <- a S, then S <- S + b k (v - S^T k)^T, and the output S^T q."""

    heads, dim_k, dim_v = 2, 4, 6
    state_shape = (heads, dim_k, dim_v)

    def __init__(self, random):
        super().__init__(random, self.heads * (2 * self.dim_k + self.dim_v), 3)
        self.decay, self.strength = self.weights(self.heads, WIDTH), self.weights(self.heads, WIDTH)
        self.leave = self.weights(WIDTH, self.heads * self.dim_v)

    def recur(self, x, mixed, state):
        keys = self.heads * self.dim_k
        mixed = silu(mixed)
        q, k = (mixed[i * keys : (i + 1) * keys].reshape(self.heads, self.dim_k) for i in (0, 1))
        q, k = (each / np.sqrt((each**2).sum(-1, keepdims=True) + 1e-6) for each in (q, k))
        v = mixed[2 * keys :].reshape(self.heads, self.dim_v)
        a, b = sigmoid(self.decay @ x)[:, None, None], sigmoid(self.strength @ x)[:, None]
        state = state * a
        held = (state * k[:, :, None]).sum(1)
        state = state + k[:, :, None] * (b * (v - held))[:, None, :]
        return self.leave @ (state * q[:, :, None]).sum(1).ravel(), state


class Mamba2(Recurrence):
    """Mamba-2: per head h <- exp(dt A) h + dt x B^T, and the output h C + D x."""

    heads, head_dim, dim_state = 3, 4, 5
    state_shape = (heads, head_dim, dim_state)

    def __init__(self, random):
        super().__init__(random, self.heads * self.head_dim + 2 * self.dim_state, 3)
        self.time, self.gate = self.weights(self.heads, WIDTH), self.weights(12, WIDTH)
        self.decay = -np.exp(self.weights(self.heads))
        self.skip = self.weights(self.heads)
        self.leave = self.weights(WIDTH, self.heads * self.head_dim)

    def recur(self, x, mixed, state):
        mixed = silu(mixed)
        inner = self.heads * self.head_dim
        values = mixed[:inner].reshape(self.heads, self.head_dim)
        b, c = mixed[inner : inner + self.dim_state], mixed[inner + self.dim_state :]
        dt = np.log1p(np.exp(self.time @ x))
        state = state * np.exp(dt * self.decay)[:, None, None]
        state = state + (dt[:, None] * values)[:, :, None] * b
        out = (state * c).sum(-1) + self.skip[:, None] * values
        return self.leave @ (out.ravel() * silu(self.gate @ x)), state


class Attention:
    """Causal attention of two query heads over one KV head. Keys carry no rotation."""

    layer = kvc.Layer(n_kv_heads=1, head_dim=8, position_free=True)

    def __init__(self, random):
        self.q, self.k, self.v = (
            random.standard_normal((n, WIDTH), dtype=np.float32) / 4 for n in (16, 8, 8)
        )
        self.leave = random.standard_normal((WIDTH, 16), dtype=np.float32) / 4

    def project(self, x):
        """Queries, keys and values of tokens [n, WIDTH]."""
        x = [normed(token) for token in x]
        q, k, v = (
            np.stack([weights @ token for token in x]) for weights in (self.q, self.k, self.v)
        )
        return q.reshape(-1, 2, 8), k.reshape(-1, 1, 8), v.reshape(-1, 1, 8)

    def finish(self, x, out):
        """The tokens with what attention gave them."""
        return x + np.stack([self.leave @ each.ravel() for each in out])
