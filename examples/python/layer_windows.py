"""A cache for a model in which some layers see a window and some see everything."""

import kvc
from cached import MAX_BATCH
from recomputed import RecomputedAttention


def new_cache(model, *, storage, step_back, threads, rotate=False):
    """One cache of two that move as one: the windows of all layers that have one, and the others.

    model      its `windows` has an entry for each layer: positions that a token sees, or None
    storage    "f16", "q8_0" …: how keys and values are stored
    step_back  positions behind the window that are kept too, so that a sequence may be taken back
               by as many. A window alone can only go on: what it would see further back is gone
    threads    threads of the device
    rotate     whether they are stored rotated
    """
    config = model.config
    layers = [
        kvc.Layer(
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            max_q_heads=config.n_heads,
            rotate=rotate,
            sliding_window=window,
            memory=None if window is None else window + step_back,
        )
        for window in model.windows
    ]
    with kvc.Device("cpu", n_threads=threads) as device:
        return kvc.Cache.from_layers(
            layers,
            capacity=config.context,
            dtype=storage,
            max_batch=MAX_BATCH,
            prefault=True,
            device=device,
        )


def bytes_without_windows(config, storage):
    """What a cache takes that keeps every position in every layer."""
    return kvc.Cache.memory_bytes(
        n_layers=config.n_layers,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        max_q_heads=config.n_heads,
        capacity=config.context,
        dtype=storage,
        max_batch=MAX_BATCH,
    )


class RecomputedLayers:
    """RecomputedAttention in which each layer has a window of its own, or none."""

    def __init__(self, storage, windows):
        self._layers = [RecomputedAttention(storage, window) for window in windows]

    def attend(self, layer, q, k, v, out):
        self._layers[layer].attend(layer, q, k, v, out)
