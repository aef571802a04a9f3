"""kvc itself: K and V of the new tokens stored, then attended to, in one call."""

from __future__ import annotations

import numpy as np

import kvc
from cases import HEAD_DIM, KV_HEADS, Q_HEADS, Tensors

NAME = "kvc"
VERSION = kvc.build_info().removeprefix("kvc ")
CHUNK = 512


class Peer:
    def __init__(self, tensors: Tensors, n_threads: int) -> None:
        case = tensors.case
        self.case = case
        self.cache = kvc.Cache(
            device=kvc.Device(n_threads=n_threads),
            n_layers=tensors.layers,
            n_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=case.storage,
            capacity=case.total,
            max_sequences=case.sequences,
            max_batch=max(CHUNK, case.tokens * case.sequences),
            prefault=True,
        )
        for s in range(case.sequences):
            for at in range(0, case.past, CHUNK):
                end = min(at + CHUNK, case.past)
                with self.cache.forward(np.arange(at, end), s):
                    for layer in range(tensors.layers):
                        self.cache.put(layer, tensors.k[s, at:end], tensors.v[s, at:end])
        positions = np.tile(np.arange(case.past, case.total), case.sequences)
        self.cache.begin(positions, np.repeat(np.arange(case.sequences), case.tokens))
        new = tensors.k[:, case.past :], tensors.v[:, case.past :], tensors.q
        self.k, self.v, self.q = (
            x.reshape(len(positions), -1, HEAD_DIM).astype(np.float32) for x in new
        )
        self.out = np.zeros_like(self.q)

    def run(self, layer: int) -> None:
        self.cache.put_attention(layer, self.k, self.v, self.q, self.out)

    def result(self, layer: int) -> np.ndarray:
        return self.out.reshape(self.case.sequences, self.case.tokens, Q_HEADS, HEAD_DIM)
