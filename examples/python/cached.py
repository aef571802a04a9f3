"""The demo's attention: every key and value in a kvc cache, every attention computed by kvc."""

import time

import numpy as np

import kvc

MAX_BATCH = 512  # tokens of a prompt that go through the model at once


def new_cache(config, *, storage, window, capacity, sequences, threads, rotate=False):
    """A cache for all layers of a model.

    config     model.Config
    storage    "f16", "q8_0" …: how keys and values are stored
    window     positions that a token sees, its own included; None: all before it
    capacity   positions that one sequence may hold
    sequences  how many there may be
    threads    threads of the device
    rotate     whether they are stored rotated
    """
    with kvc.Device("cpu", n_threads=threads) as device:
        cache = kvc.Cache(
            device=device,
            n_layers=config.n_layers,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            dtype=storage,
            rotate=rotate,
            max_sequences=sequences,
            capacity=capacity,
            max_batch=min(MAX_BATCH, capacity),
            max_q_heads=config.n_heads,
            sliding_window=window,
            prefault=True,
        )
    # The model rotates keys and queries; kvc needs these constants to move positions.
    cache.bind_rope(base=config.rope_base, n_dims=config.rope_dims, pairs="neighbours")
    return cache


class CachedAttention:
    """Attention of a model in a cache that has its layers, and the time spent in kvc.

    cache    a kvc.Cache, or several wrapped in one
    n_heads  query heads of the model
    """

    def __init__(self, cache, n_heads):
        self.cache = cache
        self.cache.bind_attention(n_heads)
        self.seconds = 0.0  # spent in kvc since the caller last set it to 0

    def feed(self, model, tokens, sequence):
        """Runs tokens at the end of a sequence and returns the logits after the last of them."""
        start = self.cache.query(sequence).next
        logits = None
        for first in range(0, len(tokens), MAX_BATCH):
            batch = tokens[first : first + MAX_BATCH]
            positions = np.arange(start + first, start + first + len(batch), dtype=np.int32)
            self._timed(self.cache.begin, positions, sequence)
            logits = model.forward(batch, positions, self)[-1]
            self._timed(self.cache.commit)
        return logits

    def attend(self, layer, q, k, v, out):
        """Called by the model: stores k and v, writes the attention of q to out."""
        self._timed(self.cache.put_attention, layer, k, v, q, out)

    def copy_prefix(self, source, length, target):
        """Makes `target` a copy of the first positions of `source`. Returns how many it has."""
        return self._timed(self.cache.copy_prefix, source, target, length)

    def _timed(self, call, *arguments):
        start = time.perf_counter()
        result = call(*arguments)
        self.seconds += time.perf_counter() - start
        return result
