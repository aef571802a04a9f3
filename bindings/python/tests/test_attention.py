"""Attention agrees with NumPy and does not depend on how tokens are split over passes."""

import numpy as np
import pytest

import kvc
import reference

SETUPS = {
    "causal": dict(),
    "window": dict(reach=5),
    "window with memory": dict(reach=5, memory=12),
    "window that keeps the first": dict(reach=5, keep_first=3),
    "chunked": dict(chunk=7),
    "chunked window": dict(reach=5, chunk=7),
}


def visibility(setup):
    return {name: value for name, value in setup.items() if name != "memory"}


def run(cache, k, v, q, splits, layer=0):
    """Runs a sequence in passes that end at `splits`. Returns out and lse of all its tokens."""
    out = np.zeros((len(q), q.shape[1], v.shape[2]), np.float32)
    lse = np.zeros(q.shape[:2], np.float32)
    start = 0
    for end in (*splits, len(q)):
        part = slice(start, end)
        with cache.forward(np.arange(start, end)):
            for index in range(cache.n_layers):
                cache.put(index, k[part], v[part])
            cache.attention(layer, q[part], out[part], lse=lse[part])
        start = end
    return out, lse


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
@pytest.mark.parametrize(
    "splits", [(), (20,), range(1, 40), range(3, 40, 6)], ids=["prefill", "two", "decode", "sixes"]
)
def test_prefill_and_decode_agree_with_numpy(make, kvq, setup, splits):
    k, v, q = kvq(40)
    cache = make(max_batch=40, **setup)
    out, lse = run(cache, k, v, q, splits)
    positions = np.arange(40)
    expected, expected_lse = reference.attention(q, k, v, positions, positions, **visibility(setup))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_kv_heads, n_q_heads", [(1, 4), (2, 4), (4, 4), (3, 9)])
@pytest.mark.parametrize("head_dims", [(16, 16), (24, 8), (7, 33)])
def test_heads_of_every_kind(make, kvq, n_kv_heads, n_q_heads, head_dims):
    k, v, q = kvq(12, n_kv_heads, n_q_heads, *head_dims)
    cache = make(
        n_kv_heads=n_kv_heads, head_dim=head_dims[0], head_dim_v=head_dims[1], max_q_heads=n_q_heads
    )
    out, _ = run(cache, k, v, q, (5, 6))
    expected, _ = reference.attention(q, k, v, np.arange(12), np.arange(12))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        dict(scale=0.5),
        dict(softcap=2.0),
        dict(alibi_slopes=[0.5, 0.25, 0.125, 0.0625]),
        dict(sinks=np.array([0.5, -1.0, 3.0, 0.0])),
        dict(scale=0.3, softcap=5.0, alibi_slopes=[0.1] * 4, sinks=[1.0] * 4),
    ],
    ids=lambda options: "+".join(options),
)
def test_constants_of_the_model(cache, kvq, options):
    k, v, q = kvq(20)
    cache.bind_attention(4, **options)
    out, lse = run(cache, k, v, q, (11, 12))
    expected, expected_lse = reference.attention(
        q,
        k,
        v,
        np.arange(20),
        np.arange(20),
        scale=options.get("scale"),
        softcap=options.get("softcap", 0),
        slopes=options.get("alibi_slopes"),
        sinks=options.get("sinks"),
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_constants_are_bound_per_layer(cache, kvq):
    k, v, q = kvq(6)
    for layers in (1, range(1, 2), (1, 2)):
        cache.bind_attention(4, layers=layers, scale=1.0)
        plain, scaled = (
            run(cache, k, v, q, (), layer)[0] for layer in range(2) if not cache.remove(0)
        )
        positions = np.arange(6)
        expected, _ = reference.attention(q, k, v, positions, positions)
        expected_scaled, _ = reference.attention(q, k, v, positions, positions, scale=1.0)
        np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scaled, expected_scaled, rtol=1e-5, atol=1e-6)
        cache.remove(0)


def test_frequency_factors_are_counted_from_the_first_dimension(cache):
    cache.bind_rope(first_dim=4, frequency_factors=[1.0] * 6)
    cache.bind_rope(first_dim=3, frequency_factors=[1.0] * 6)  # of 13 dimensions 12 are rotated
    cache.bind_rope(first_dim=4, n_dims=8, frequency_factors=[1.0] * 4)
    for wrong in (
        dict(first_dim=4, frequency_factors=[1.0] * 8),
        dict(first_dim=16),
        dict(first_dim=-1),
        dict(first_dim=6, n_dims=12),
        dict(first_dim=4, n_dims=3),
    ):
        with pytest.raises(kvc.InvalidArgument):
            cache.bind_rope(**wrong)


def test_tokens_that_see_later_ones(cache, kvq):
    k, v, q = kvq(6)
    positions = np.arange(6)
    expected, _ = reference.attention(q, k, v, positions, positions, sees_later=[1, 4])
    by_set, _ = reference.attention(q, k, v, positions, positions, sees_later=[2])
    causal, _ = reference.attention(q, k, v, positions, positions)
    with cache.forward(positions, sees_later=[4, 1]):
        for layer in range(2):
            cache.put(layer, k, v)
        np.testing.assert_allclose(cache.attention(0, q), expected, rtol=1e-5, atol=1e-6)
        cache.set_causal(iter([2, 2]))
        np.testing.assert_allclose(cache.attention(0, q), by_set, rtol=1e-5, atol=1e-6)
        cache.set_causal()
        np.testing.assert_allclose(cache.attention(0, q), causal, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limits", [{}, {"reach": 2}, {"chunk": 4}])
def test_tokens_of_a_type_see_each_other(make, kvq, limits):
    cache = make(**limits)
    k, v, q = kvq(8)
    positions, types = np.arange(8), [0, 7, 7, 7, 7, 7, 65535, 65535]
    expected, _ = reference.attention(q, k, v, positions, positions, types=types, **limits)
    assert cache.fits(positions, types=types)
    with cache.forward(positions, types=types):
        for layer in range(2):
            cache.put(layer, k, v)
        np.testing.assert_allclose(cache.attention(0, q), expected, rtol=1e-5, atol=1e-6)
    for wrong, words in (
        ([1, 0, 1], "type 1"),
        ([1], "1 elements"),
        ([0, 0, 65536], "65536"),
    ):
        with pytest.raises(kvc.InvalidArgument, match=words):
            cache.begin([8, 9, 10], types=wrong)


def test_sequences_do_not_see_each_other(cache, kvq):
    k, v, q = kvq(8)
    sequences = np.array([0, 1, 0, 2, 1, 0, 1, 2])
    positions = np.array([0, 0, 1, 5, 1, 2, 2, 6])
    with cache.forward(positions, sequences):
        for layer in range(2):
            out = cache.put_attention(layer, k, v, q)
    for sequence in range(3):
        own = sequences == sequence
        expected, _ = reference.attention(q[own], k[own], v[own], positions[own], positions[own])
        np.testing.assert_allclose(out[own], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
@pytest.mark.parametrize("mask_dtype", ["f32", "f16"])
def test_get_and_mask_with_a_textbook_attention(make, kvq, setup, mask_dtype):
    """Callers with kernels of their own get the same result."""
    cache = make(mask_dtype=mask_dtype, cell_padding=8, **setup)
    for start in range(0, 30, 6):
        k, v, q = kvq(6)
        with cache.forward(np.arange(start, start + 6)):
            for layer in range(2):
                out = cache.put_attention(layer, k, v, q)
            seen_k, seen_v = map(np.asarray, cache.get(1))
            mask = cache.mask(0)
            assert mask.dtype == {"f32": np.float32, "f16": np.float16}[mask_dtype]
            assert mask.shape == (6, len(seen_k)) and len(seen_k) % 8 == 0
            into, seen = np.ones((len(seen_k), 6), np.float32).T, np.zeros(mask.shape, bool)
            assert cache.mask(1, into) is into and cache.mask(1, seen) is seen
            np.testing.assert_array_equal(into, mask)
            np.testing.assert_array_equal(seen, mask == 0)
            for head in range(4):
                logits = q[:, head] @ seen_k[:, head // 2].T / 4 + mask
                weights = np.exp(logits - logits.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                np.testing.assert_allclose(
                    out[:, head], weights @ seen_v[:, head // 2], rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize("mask_dtype", ["bool", bool, np.bool_])
def test_a_boolean_mask_may_be_proposed(make, fill, mask_dtype):
    cache = make(mask_dtype=mask_dtype)
    fill(cache, 3)
    cache.begin([3, 4])
    mask = cache.mask(0)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, reference.mask([3, 4], range(5)))
    cache.abort()


def test_hugging_faces_window_counts_the_token_itself(make, kvq):
    k, v, q = kvq(20)
    results = [
        run(make(**setup), k, v, q, (9,))[0] for setup in (dict(sliding_window=6), dict(reach=5))
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("pairs", ["neighbours", "halves"])
@pytest.mark.parametrize("dims", [dict(n_dims=12), dict(first_dim=4), dict(first_dim=2, n_dims=10)])
def test_a_shift_rotates_keys_exactly(make, kvq, pairs, dims):
    """After a middle part was removed, attention is as if the rest had always been there."""
    cache = make()
    rope = dict(base=500.0, pairs=pairs, **dims)
    cache.bind_rope(**rope)
    k, v, q = kvq(20)
    with cache.forward(range(20)):
        for layer in range(2):
            cache.put(layer, reference.rotated(k, range(20), **rope).astype(np.float32), v)
    cache.remove(0, 3, 10)
    kept = np.r_[0:3, 10:20]
    positions = np.arange(14)
    assert cache.query(0).next == 13
    assert {run.offset for run in cache.runs(0, 0)} == {0, -7}
    now = np.append(k[kept], k[:1], axis=0)
    held = np.append(v[kept], v[:1], axis=0)
    with cache.forward([13]):
        for layer in range(2):
            cache.put(layer, reference.rotated(k[:1], [13], **rope).astype(np.float32), v[:1])
        out = cache.attention(0, reference.rotated(q[:1], [13], **rope).astype(np.float32))
    expected, _ = reference.attention(
        reference.rotated(q[:1], [13], **rope),
        reference.rotated(now, positions, **rope),
        held,
        [13],
        positions,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        cache.gather(0, 0)[0], reference.rotated(now, positions, **rope), rtol=1e-5, atol=1e-5
    )
