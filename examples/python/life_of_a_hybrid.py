#!/usr/bin/env python3
"""The sequences of a hybrid model: states with checkpoints, a window, and speech for cross attention.

python -m kvc inspect -o hybrid.svg examples/python/life_of_a_hybrid.py
"""

import numpy as np

import kvc

WINDOW = kvc.Layer(n_kv_heads=2, head_dim=16, sliding_window=32, memory=64)
DELTA = kvc.Layer(
    kind="recurrent",
    state_shape=(2, 16, 16),
    conv_channels=32,
    conv_dim=3,
    checkpoints=8,
    checkpoint_interval=24,
)
CROSS = kvc.Layer(kind="encoder", n_kv_heads=2, head_dim=16, capacity=100)
LAYERS = [DELTA, DELTA, WINDOW, CROSS]


def rows(count, *shape):
    """What a model would compute."""
    return np.ones((count, *shape), np.float32)


def feed(cache, sequence, count, speech=0):
    """Passes the next `count` tokens of a sequence through every layer, eight at a time. The first of
    them carries an input if there is one."""
    start = cache.query(sequence).next
    for first in range(start, start + count, 8):
        positions = np.arange(first, min(first + 8, start + count))
        carries = [0] if speech and first == start else None
        with cache.forward(positions, sequence, carries_input=carries):
            for number, layer in enumerate(LAYERS):
                if layer is WINDOW:
                    cache.put(number, rows(len(positions), 2, 16), rows(len(positions), 2, 16))
                elif layer is DELTA:
                    cache.state_put(number, "recurrent", rows(1, 2, 16, 16))
                    cache.state_conv(number, rows(len(positions), 32))
                elif carries:
                    cache.encoder_put(number, sequence, rows(speech, 2, 16), rows(speech, 2, 16))


def main():
    """One prompt with speech, two continuations, one of which is edited, and a second conversation."""
    with kvc.Cache.from_layers(LAYERS, capacity=256, max_sequences=4, max_batch=8) as cache:
        feed(cache, 0, 50, speech=80)  # a prompt
        cache.checkpoint_take(0)  # both continuations begin here
        cache.copy_prefix(0, 1)
        feed(cache, 0, 70)
        feed(cache, 1, 20)
        got = cache.resume(1, 60)  # an edit: the user wants to go back to 60
        feed(cache, 1, 30)
        feed(cache, 2, 14, speech=30)
        print(f"wanted 60, continued at {got}: states continue at checkpoints only")
        print(f"checkpoints of sequence 0: {cache.checkpoint_list(0)}")
        print(cache.stats())


if __name__ == "__main__":
    main()
