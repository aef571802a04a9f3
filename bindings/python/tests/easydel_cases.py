"""What tests of kvc.easydel share: small caches, arrays, and the figures of easydel.json."""

import json
import pathlib

import numpy as np
import pytest

import kvc.easydel as ed

PATH = pathlib.Path(__file__).resolve().parents[3] / "tests" / "conformance" / "vectors"


def figures():
    """The figures computed from EasyDeL's formulas; skips the test outside the source tree."""
    path = PATH / "easydel.json"
    if not path.is_file():
        pytest.skip("outside the source tree")
    return json.loads(path.read_text())


def sizes(batch=2, length=8, layers=1, heads=2, dim=4, **others):
    return ed.TransformerCacheMetaData.create(batch, length, layers, 0, heads, dim, **others)


def empty(metadata=None, dtype="f32", **options):
    """A transformer cache."""
    return ed.TransformerCache.init_cache(None, metadata or sizes(), None, dtype, **options)


def tril(n, columns=None):
    return np.tri(n, columns or n, dtype=bool)[None, None]


class Model:
    """Random queries, keys and values of new tokens for the layers of a cache, and a list of what each
    row holds."""

    def __init__(self, cache, seed=0, n_q_heads=4):
        self.cache = cache
        self.random = np.random.default_rng(seed)
        self.n_q_heads = n_q_heads

    def draw(self, q_len, dtype=np.float32):
        metadata = self.cache.views[0].metadata
        shapes = (
            (self.n_q_heads, metadata.key_dim),
            (metadata.key_heads, metadata.key_dim),
            (metadata.value_heads, metadata.value_dim),
        )
        return [
            self.random.standard_normal((metadata.batch_size, q_len, *shape)).astype(dtype)
            for shape in shapes
        ]

    def step(self, q_len=1, attention_mask=None, causal_mask=True, types=None, options=None):
        """A step of all layers. Returns what the views returned, and (q, k, v) of each."""
        results, given = [], []
        for view in self.cache.views:
            q, k, v = self.draw(q_len)
            results.append(
                view.concatenate_to_cache(
                    q, k, v, None, options, attention_mask, None, causal_mask, types
                )
            )
            given.append((q, k, v))
        return results, given


def dense(q, k, v, visible=True, bias=0.0, scale=None):
    """Attention in double: (out [B, q, Hq, Dv], weights [B, Hq, q, S], lse [B, q, Hq]). Rows that see
    nothing are 0 and minus infinity."""
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    scores = np.einsum("bihd,bjhd->bhij", q, k) * scale + bias
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(axis=3, keepdims=True)
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0].transpose(0, 2, 1)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("bhij,bjhd->bihd", weights, v), weights, lse
