#!/usr/bin/env python3
"""Sequences that share, slide and shift: what `python -m kvc inspect` draws.

python -m kvc inspect -o cache.svg examples/python/life_of_a_cache.py
"""

import numpy as np

import kvc

N_KV_HEADS, HEAD_DIM = 2, 16


def feed(cache, sequence, count):
    """Puts the next `count` tokens of a sequence. A model would compute their K and V."""
    start = cache.query(sequence).next
    for first in range(start, start + count, 8):
        positions = np.arange(first, min(first + 8, start + count))
        rows = np.ones((len(positions), N_KV_HEADS, HEAD_DIM), np.float32)
        with cache.forward(positions, sequence):
            cache.put(0, rows, rows)


def main():
    """One prompt, three continuations, and a text that outgrows its window."""
    with kvc.Cache(
        n_layers=1,
        n_kv_heads=N_KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=128,
        max_sequences=5,
        max_batch=8,
        cells=384,
        reach=95,
    ) as cache:
        cache.bind_rope(base=10000.0)  # lets positions move
        feed(cache, 0, 48)  # a prompt
        cache.copy_prefix(0, 1)
        cache.copy_prefix(0, 2, 32)
        for _ in range(4):  # three conversations that take turns
            for sequence, count in ((0, 5), (1, 8), (2, 3)):
                feed(cache, sequence, count)
        feed(cache, 3, 150)  # its window slides: the last 95 positions stay
        feed(cache, 4, 60)
        cache.remove(4, 12, 28)  # later positions move down, and their keys have a pending rotation
        feed(cache, 4, 8)
        print(cache.stats())


if __name__ == "__main__":
    main()
