"""kvc.easydel with arrays of JAX, compared with EasyDeL's formulas, which are written here in JAX."""

import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from easydel_cases import empty, sizes

jax = pytest.importorskip("jax")
jnp = jax.numpy

KINDS = [jnp.float32, jnp.bfloat16]


def draw(seed, *shapes, kind=jnp.float32):
    """Random arrays of JAX; NumPy makes the numbers, so that XLA compiles nothing for them."""
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.standard_normal(shape), kind) for shape in shapes]


@jax.jit
def step_of_easydel(cache, index, key, value, attention_mask, causal_mask, token_types):
    """EasyDeL's update of a layer (keys, values), and its mask, for steps within the cache."""
    q_len, length = key.shape[1], cache[0].shape[1]

    def of_row(cache, begin, new, shown, types):
        causal = jax.lax.dynamic_slice(causal_mask[0, 0], (begin, 0), (q_len, length))
        same = (types[:, None] == types[None, :]) & (types[None, :] != 0)
        wide = jax.lax.dynamic_update_slice(jnp.zeros((q_len, length), bool), same, (0, begin))
        mask = shown & (causal | wide) & (jnp.arange(length) < begin + q_len)
        write = jax.lax.dynamic_update_slice
        return [write(old, each, (begin, 0, 0)) for old, each in zip(cache, new)], mask[None]

    return jax.vmap(of_row)(cache, index, [key, value], attention_mask, token_types)


@jax.jit
def vanilla_of_easydel(q, k, v, mask, scale):
    """Its definition of attention, for rows that see something."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(each.astype(jnp.float32), group, axis=2) for each in (k, v))
    scores = jnp.einsum("bihd,bjhd->bhij", q.astype(jnp.float32) * scale, k)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhij,bjhd->bihd", weights, v), weights


def create(name, **settings):
    return ed.AttentionRegistry.create(name, ed.AttentionMetadata(**settings))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_attention_agree_with_easydel(kind):
    view = empty(sizes(2, 16, 1, 2, 8), dtype=kind)[0]
    parts = [jnp.asarray(np.zeros((2, 16, 2, 8)), kind)] * 2
    causal = jnp.asarray(np.tri(16, dtype=bool)[None, None])
    mask = jnp.asarray(np.arange(32).reshape(2, 16) != 1)
    index = np.zeros(2, np.int32)
    images = np.array([[0, 1, 1, 0], [2, 2, 0, 1]])
    for seed, q_len in enumerate((4, 1, 4, 1)):
        shapes = (2, q_len, 4, 8), (2, q_len, 2, 8), (2, q_len, 2, 8)
        q, k, v = draw(seed, *shapes, kind=kind)
        types = jnp.asarray(images[:, :q_len] * (q_len > 1))
        found = view.concatenate_to_cache(q, k, v, None, None, mask, None, causal, types)
        parts, seen = step_of_easydel(parts, index, k, v, mask, causal, types)
        index = index + q_len  # a new array: XLA may read the old one later
        np.testing.assert_array_equal(found[2], seen)
        for array, wanted in zip(found, map(np.asarray, parts)):
            np.testing.assert_array_equal(array[:, : index[0]], wanted[:, : index[0]])
        k, v, shown = found
        out, weights = vanilla_of_easydel(q, *parts, seen, 8**-0.5)
        for attention in (create("vanilla"), create("sdpa")):
            output = attention(q=q, k=k, v=v, mask=shown, cache_view=view, need_weights=True)
            pairs = (output.attention_outputs, out), (output.attention_weights, weights)
            for array, wanted in pairs:
                assert isinstance(array, jax.Array)
                np.testing.assert_allclose(array, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_over_arrays_agrees_with_easydel(kind):
    q, k, v = draw(1, (2, 6, 4, 8), (2, 6, 2, 8), (2, 6, 2, 8), kind=kind)
    mask = jnp.asarray(np.tri(6, dtype=bool)[None, None])
    bias = jnp.asarray(np.where(mask, 0, np.finfo(np.float32).min))
    out, _ = vanilla_of_easydel(q, k, v, mask, 0.3)
    for name in ("vanilla", "flash_attn2", "ring"):
        attention = create(name, runtime_dtype=kind, softmax_scale=0.3)
        for output in (
            attention(q=q, k=k, v=v, mask=mask),
            attention(q=q, k=k, v=v, causal=True),
            attention(q=q, k=k, v=v, init_bias=lambda: bias),
        ):
            assert isinstance(output.attention_outputs, jax.Array)
            assert isinstance(output.attention_lse, jax.Array)
            np.testing.assert_allclose(output.attention_outputs, out, rtol=2e-3, atol=2e-4)
    repeated = attention.repeat_kv_heads(k, v, 2)
    for array, wanted in zip(repeated, (k, v)):
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(array, np.repeat(np.asarray(wanted), 2, axis=2))


def test_a_key_of_jax_drops_weights():
    q, k, v = draw(2, *[(1, 4, 2, 8)] * 3)
    attention = create("vanilla", dropout_prob=0.5)
    first, second, third = (
        attention(q=q, k=k, v=v, deterministic=False, dropout_rng=each).attention_weights
        for each in (jax.random.PRNGKey(7), 7, jax.random.PRNGKey(8))
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


@jax.jit
def lightning_of_easydel(q, k, v, slopes):
    """The quadratic form: o_i = sum over j <= i of lambda^(i - j) (q_i k_j) v_j."""
    n = q.shape[1]
    distance = jnp.arange(n)[:, None] - jnp.arange(n)
    decay = jnp.where(distance >= 0, jnp.exp(-slopes[:, None, None] * distance), 0)
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) * decay
    return jnp.einsum("bhij,bjhd->bihd", scores, v)


@jax.jit
def state_of_easydel(k, v, slopes):
    decay = jnp.exp(-slopes[None, :] * jnp.arange(k.shape[1])[::-1, None])
    return jnp.einsum("jh,bjhd,bjhe->bhde", decay, k, v)


def test_lightning_agrees_with_the_quadratic_form():
    q, k, v = draw(3, *[(2, 9, 4, 8)] * 3)
    slopes = kvc.slopes("alibi", 4)
    wanted, state = lightning_of_easydel(q, k, v, slopes), state_of_easydel(k, v, slopes)
    for split in (9, 4, 1):
        cache = ed.LightningCache.init_cache(1, ed.LightningCacheMetaData.create(None, 2, 4, 8))
        outs = []
        for begin in range(0, 9, split):
            part = [jnp.asarray(np.asarray(each)[:, begin : begin + split]) for each in (q, k, v)]
            mask = jnp.asarray(np.ones(part[0].shape[:2]))
            out, states, _ = cache[0].concatenate_to_cache(*part, mask)
            assert isinstance(out, jax.Array)
            outs.append(out)
        np.testing.assert_allclose(np.concatenate(outs, axis=1), wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(states, state, rtol=1e-4, atol=1e-4)


def test_records_of_arrays_of_jax():
    metadata = sizes(1, 4, 1, 2, 4)
    key, value = draw(4, (1, 4, 2, 4), (1, 4, 2, 4))
    record = ed.TransformerCacheView(key, value, jnp.array([3]), jnp.array([0]), metadata, 0)
    cache = ed.TransformerCache([record])
    np.testing.assert_array_equal(cache[0].key[:, :3], np.asarray(key)[:, :3])
    assert cache[0].index.tolist() == [3]
    again = ed.TransformerCacheView.from_json(record.to_json())
    np.testing.assert_array_equal(again.value, value)
    cache.insert_index(jnp.array([2]), 0).insert_starts(jnp.array(1), 0)
    assert cache[0].index.tolist() == [2] and cache[0].starts.tolist() == [1]
    again = ed.AttentionOutput.from_json(ed.AttentionOutput(attention_outputs=key).to_json())
    np.testing.assert_array_equal(again.attention_outputs, key)
