#!/usr/bin/env python3
"""Layers that read the K and V of another layer (cross-layer attention, as in Gemma 3n).

The cache has one layer per owner. A layer without K and V of its own computes queries only, and
attends with its owner's number. Nothing else changes.
"""

import numpy as np

import kvc

N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 16
WIDTH = N_HEADS * HEAD_DIM
OWNER = [0, 1, 0, 1, 1, 0]  # by layer of the model: the layer of the cache that it reads
OWNS = [0, 1]  # layers of the model that compute K and V: the first of each owner
GEOMETRY = dict(n_kv_heads=N_KV_HEADS, head_dim=HEAD_DIM, dtype="f16", capacity=16384, max_batch=64)


def forward(weights, cache, x):
    """All layers over hidden states [n_tokens, WIDTH] of the open pass."""
    for layer, owner in enumerate(OWNER):
        q, k, v = ((x @ each).reshape(len(x), -1, HEAD_DIM) for each in weights[layer])
        if layer in OWNS:
            out = cache.put_attention(owner, k, v, q)
        else:
            out = cache.attention(owner, q)  # its owner was put earlier in this pass
        x = x + out.reshape(len(x), WIDTH)
    return x


def main():
    """Computes a text at once and token by token, and compares the results."""
    random = np.random.default_rng(3)
    heads = (N_HEADS, N_KV_HEADS, N_KV_HEADS)
    weights = [
        [random.standard_normal((WIDTH, n * HEAD_DIM), dtype=np.float32) / 8 for n in heads]
        for _ in OWNER
    ]
    text = random.standard_normal((40, WIDTH), dtype=np.float32)
    with kvc.Cache(n_layers=len(OWNS), max_sequences=2, **GEOMETRY) as cache:
        with cache.forward(range(40), 0):
            at_once = forward(weights, cache, text)
        for position in range(40):
            with cache.forward([position], 1):
                step = forward(weights, cache, text[position : position + 1])
            np.testing.assert_allclose(step[0], at_once[position], rtol=1e-2, atol=1e-2)
    shared, own = (kvc.Cache.memory_bytes(n_layers=n, **GEOMETRY) for n in (len(OWNS), len(OWNER)))
    print(
        f"{len(OWNER)} layers, {len(OWNS)} with K and V of their own: {shared / 1e6:.0f} MB "
        f"instead of {own / 1e6:.0f} MB, prefill and decode agree"
    )


if __name__ == "__main__":
    main()
