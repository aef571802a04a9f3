"""A cache of every storage type: what it lends, copies out, restores, and computes with."""

import gc
import sys

import numpy as np
import pytest

import kvc
import reference
from test_storage import QUANTISED, TYPES, bits

F8 = ["f8_e4m3", "f8_e5m2"]


@pytest.fixture
def wide(make):
    """Creates caches of one layer with vectors of 64."""

    def create(**changes):
        return make(**{"head_dim": 64, "n_layers": 1, **changes})

    return create


@pytest.fixture
def drawn(kvq):
    return lambda n, **sizes: kvq(n, **{"head_dim_k": 64, "head_dim_v": 64, **sizes})


def put(cache, k, v=None, start=0, sequence=0):
    cache.begin(np.arange(start, start + len(k)), sequence)
    for layer in range(cache.n_layers):
        cache.put(layer, k, v)


def check_attention(cache, q, k, v, positions):
    """Over K and V as they are stored, decoded and rotated back."""
    found = cache.attention(0, q)
    expected, _ = reference.attention(q, k, v, positions, np.arange(len(k)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(v).max())


# ---- Every type ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rotate", [False, True])
def test_a_cache_stores_what_encode_returns(wide, drawn, dtype, rotate):
    if rotate and dtype not in QUANTISED:
        with pytest.raises(kvc.InvalidArgument, match=f"dtype_k is {dtype}, which gains nothing"):
            wide(dtype=dtype, rotate=True)
        return
    cache = wide(dtype=dtype, rotate=rotate)
    k, v, q = drawn(9)
    put(cache, k, v)
    held = cache.get_codes(0)
    for codes, scales, values in ((held.k, held.k_scales, k), (held.v, held.v_scales, v)):
        expected = kvc.encode(values, dtype, rotate=rotate)
        assert codes.dtype == expected[0].dtype and codes.shape == expected[0].shape
        assert bits(codes) == bits(expected[0]) and bits(scales) == bits(expected[1])
    copies = cache.get_copy(0)
    decoded = [
        kvc.decode(held.k, held.k_scales, dtype, rotate=rotate),
        kvc.decode(held.v, held.v_scales, dtype, rotate=rotate),
    ]
    gathered = cache.gather(0, 0, dtype="f32")
    for copy, expected, gather in zip(copies, decoded, gathered):
        np.testing.assert_array_equal(copy, expected)
        np.testing.assert_array_equal(gather, expected)
    check_attention(cache, q, *decoded, np.arange(9))


@pytest.mark.parametrize("dtype", TYPES)
def test_put_codes_restores_a_cache(wide, drawn, dtype):
    k, v, q = drawn(6)
    of_f8 = {"k_scales": [0.5, 2], "v_scales": [3, 1]} if dtype in F8 else None
    source, target = wide(dtype=dtype), wide(dtype=dtype)
    for cache in (source, target):
        if of_f8:
            cache.bind_scales(**of_f8)
    put(source, k, v)
    held = source.get_codes(0)
    target.begin(range(6))
    target.put_codes(0, *held)
    np.testing.assert_array_equal(target.attention(0, q), source.attention(0, q))
    saved = [None if each is None else np.array(each) for each in held]
    source.commit()
    target.commit()
    assert source.digest() == target.digest()
    again = wide(dtype=dtype)
    if of_f8:
        again.bind_scales(**of_f8)
    with again.forward(range(6)):
        again.put_codes(0, *saved)
    assert again.digest() == source.digest()


@pytest.mark.parametrize("dtype", ["bf16", *F8])
def test_codes_without_ml_dtypes_are_bits(wide, drawn, dtype, monkeypatch):
    cache, other = wide(dtype=dtype), wide(dtype=dtype)
    k, v, _ = drawn(3)
    put(cache, k, v)
    expected = np.array(cache.get_codes(0).k)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    codes, _ = kvc.encode(k, dtype)
    kind = np.uint16 if dtype == "bf16" else np.uint8
    assert codes.dtype == cache.get_codes(0).k.dtype == kind
    assert bits(codes) == bits(expected)
    with other.forward(range(3)):
        other.put_codes(0, codes, None, kvc.encode(v, dtype)[0])
    cache.commit()
    assert other.digest() == cache.digest()
    assert bits(kvc.decode(codes, None, dtype)) == bits(expected.astype(np.float32))


def test_k_and_v_have_types_of_their_own(wide, drawn):
    cache = wide(dtype_k="q8_0", dtype_v="nf4", block=16, rotate="k")
    k, v, q = drawn(5)
    put(cache, k, v)
    held = cache.get_codes(0)
    assert held.k.shape == (5, 2, 64) and held.k_scales.shape == (5, 2, 2)
    assert held.v.shape == (5, 2, 32) and held.v_scales.shape == (5, 2, 4)
    assert bits(held.k) == bits(kvc.encode(k, "q8_0", rotate=True)[0])
    assert bits(held.v) == bits(kvc.encode(v, "nf4", block=16)[0])
    check_attention(cache, q, *cache.get_copy(0), np.arange(5))


def test_get_lends_the_side_that_stores_numbers(wide, drawn):
    k, v, _ = drawn(5)
    for types, wanted in (
        (dict(dtype_k="f16", dtype_v="q8_0"), dict(v=False)),
        (dict(dtype_k="nf4", dtype_v="f16"), dict(k=False)),
    ):
        cache = wide(**types)
        put(cache, k, v)
        for both in ((0,), (0, False, True) if "v" in wanted else (0, True, False)):
            with pytest.raises(kvc.NotSupported, match=r"get_codes\(\) lends"):
                cache.get(*both)
        views = cache.get(0, **wanted)
        lent, missing = views if "v" in wanted else views[::-1]
        assert missing is None
        np.testing.assert_array_equal(lent, (k if "v" in wanted else v).astype(np.float16))
        assert cache.get(0, k=False, v=False) == (None, None)
        cache.commit()
        with pytest.raises(kvc.BadState, match="ended"):
            np.asarray(lent)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_interleaved_rows_hold_the_same_numbers(wide, drawn, dtype):
    k, v, q = drawn(5)
    digests, results = set(), []
    for interleaved in (False, True):
        cache = wide(dtype=dtype, interleaved=interleaved)
        put(cache, k, v)
        results.append(cache.attention(0, q))
        views = cache.get(0)
        apart = views[1]._description[0] - views[0]._description[0]
        assert (apart == views[0].shape[2] * views[0].dtype.itemsize) == interleaved
        cache.commit()
        digests.add(cache.digest())
    np.testing.assert_array_equal(*results)
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", TYPES)
def test_v_may_be_a_part_of_k(wide, drawn, dtype):
    sizes = dict(head_dim_v=32, v_first=32, n_kv_heads=1, block=32 if dtype == "nf4" else 0)
    cache = wide(dtype=dtype, **sizes)
    k, _, q = drawn(7, n_kv_heads=1)
    put(cache, k)
    held = cache.get_codes(0)
    inside = held.v._description[0] - held.k._description[0]
    assert 0 < inside < held.k.strides[0]
    copy_k, copy_v = cache.get_copy(0)
    np.testing.assert_array_equal(copy_v, copy_k[..., 32:])
    check_attention(cache, q, copy_k, copy_v, np.arange(7))
    again = cache.put_attention(0, k, None, q)
    np.testing.assert_array_equal(again, cache.attention(0, q))
    other = wide(dtype=dtype, **sizes)
    with other.forward(range(7)):
        other.put_codes(0, held.k, held.k_scales)
    cache.commit()
    assert other.digest() == cache.digest()
    gathered = cache.gather(0, 0, dtype="f32")
    np.testing.assert_array_equal(gathered[1], gathered[0][..., 32:])


def test_v_in_k_is_rotated_with_k(wide, drawn):
    cache = wide(dtype="q4_0", head_dim_v=64, v_first=128, head_dim=192, n_kv_heads=1, rotate=True)
    k, _, q = drawn(7, n_kv_heads=1, head_dim_k=192)
    put(cache, k)
    check_attention(cache, q, *cache.get_copy(0), np.arange(7))


@pytest.mark.parametrize("dtype", ["q8_0", "f8_e4m3", "nf4"])
def test_an_encoder_cache_stores_codes(wide, drawn, dtype):
    cache = wide(kind="encoder", dtype=dtype, capacity=16)
    k, v, q = drawn(9)
    with cache.forward([0], carries_input=[0]):
        cache.encoder_put(0, 0, k, v)
        codes, scales = kvc.encode(k, dtype)
        held = cache.get_codes(0)
        assert bits(held.k[:9]) == bits(codes)
        assert scales is None or bits(held.k_scales[:9]) == bits(scales)
        copy_k, copy_v = cache.get_copy(0)
        found = cache.attention(0, q[:1])
        expected, _ = reference.attention(q[:1], copy_k[:9], copy_v[:9], [9], np.arange(9))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        other = wide(kind="encoder", dtype=dtype, capacity=16)
        with other.forward([0], carries_input=[0]):
            other.put_codes(0, *(each and each[:9] for each in held))
    assert other.digest() == cache.digest()


# ---- Scales of f8 --------------------------------------------------------------------------------


def test_bound_scales_divide_what_is_stored(wide, drawn):
    cache = wide(dtype="f8_e4m3", n_layers=2)
    cache.bind_scales([0.5, 4], layers=0)
    cache.bind_scales(v_scales=np.array([8, 0.125]), layers=range(1, 2))
    k, v, q = drawn(4)
    put(cache, 100 * k, v)
    for layer, scales_k, scales_v in ((0, (0.5, 4), (1, 1)), (1, (1, 1), (8, 0.125))):
        held = cache.get_codes(layer)
        copies = cache.get_copy(layer)
        for head in range(2):
            for view, copy, values, scale in (
                (held.k, copies[0], 100 * k, scales_k[head]),
                (held.v, copies[1], v, scales_v[head]),
            ):
                codes, _ = kvc.encode(values[:, head], "f8_e4m3", scale=scale)
                assert bits(view[:, head]) == bits(codes)
                decoded = kvc.decode(view[:, head], None, "f8_e4m3", scale=scale)
                np.testing.assert_array_equal(copy[:, head], decoded)
    check_attention(cache, q / 100, *cache.get_copy(0), np.arange(4))
    with pytest.raises(kvc.BadState, match=r"bind_scales\(\)"):
        cache.bind_scales([1, 1])


def test_a_wrapper_binds_scales_of_its_children(model):
    layer = kvc.Layer(n_kv_heads=2, head_dim=16, dtype="f8_e5m2")
    cache = model(layer, kvc.Layer(n_kv_heads=1, head_dim=8, reach=4, dtype="f8_e5m2"))
    cache.bind_scales([0.5, 2], layers=0)
    cache.bind_scales([4], [0.25], layers=1)
    with pytest.raises(kvc.InvalidArgument, match=r"k_scales has shape \(2,\), not \(1,\)"):
        cache.bind_scales([1, 1], layers=1)
    with cache.forward([0]):
        cache.put(0, *[np.full((1, 2, 16), 3, np.float32)] * 2)
        cache.put(1, *[np.full((1, 1, 8), 3, np.float32)] * 2)
        assert np.array(cache.get_codes(0).k, np.float32)[0, :, 0].tolist() == [6, 1.5]
        assert np.array(cache.get_codes(1).v, np.float32)[0, 0, 0] == 12


# ---- Views and copies ----------------------------------------------------------------------------


def test_views_of_codes_end_with_their_pass(wide, drawn):
    cache = wide(dtype="q8_0")
    k, v, _ = drawn(3)
    put(cache, k, v)
    held = cache.get_codes(0)
    assert held.k[1:, 0].shape == (2, 64) and held.k[1:, 0].valid
    array = np.asarray(held.k)
    assert not array.flags.writeable
    np.testing.assert_array_equal(np.from_dlpack(held.k_scales), np.asarray(held.k_scales))
    cache.commit()
    for view in held:
        with pytest.raises(kvc.BadState, match=r"call get_codes\(\) in the next pass"):
            np.asarray(view)
    expected = kvc.encode(k, "q8_0")[0]
    cache.close()
    del cache, held
    gc.collect()
    np.testing.assert_array_equal(array, expected)  # its memory outlives the cache


def test_get_copy_writes_what_is_wanted(wide, drawn):
    cache = wide(dtype="q4_0", capacity=8)
    k, v, _ = drawn(4)
    put(cache, k, v)
    all_k, all_v = cache.get_copy(0)
    assert all_k.dtype == np.float32 and all_k.shape == (4, 2, 64)
    assert cache.get_copy(0, False)[0] is None
    halves, _ = cache.get_copy(0, dtype="f16")
    np.testing.assert_array_equal(halves, all_k.astype(np.float16))
    into = np.zeros((2, 4, 64), np.float32).transpose(1, 0, 2)
    assert cache.get_copy(0, False, into)[1] is into
    np.testing.assert_array_equal(into, all_v)
    bits16 = np.zeros((4, 2, 64), np.uint16)
    cache.get_copy(0, bits16, False, dtype="f16")
    np.testing.assert_array_equal(bits16.view(np.float16), halves)
    with pytest.raises(kvc.ShapeError, match="k has shape"):
        cache.get_copy(0, into[:3], False)


def test_get_copy_turns_keys_and_get_codes_does_not(wide, drawn):
    cache = wide(dtype="q8_0", rotate=True)
    cache.bind_rope()
    k, v, q = drawn(6)
    put(cache, reference.rotated(k, np.arange(6)).astype(np.float32), v)
    before = cache.get_codes(0).k
    kept = np.array(before)[2:]
    decoded = cache.get_copy(0)[0][2:]
    cache.commit()
    cache.remove(0, 0, 2)
    put(cache, k[:1], v[:1], start=4)
    shown = slice(2 - cache.history(0).start, 6 - cache.history(0).start)  # cells 2 to 5
    assert bits(cache.get_codes(0).k[shown]) == bits(kept)
    turned = cache.get_copy(0)[0][shown]
    expected = reference.rotated(decoded, np.full(4, -2))
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-5)


def test_dlpack_names_the_type_of_codes(wide, drawn):
    cache = wide(dtype="q4_0")
    put(cache, *drawn(2)[:2])
    held = cache.get_codes(0)
    assert np.from_dlpack(held.k).dtype == np.uint8
    assert np.from_dlpack(held.k_scales).dtype == np.float16


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dtype="q8_0", head_dim=40), "dtype_k is q8_0, which takes multiples of 32"),
        (dict(dtype="q8_0", block=32), "block 32 of dtype_k, which is q8_0: only nf4"),
        (dict(dtype="nf4", block=24), "block 24 of dtype_k: nf4 has 16, 32, 64 or 128"),
        (dict(dtype_v="f16", dtype="q8_0", rotate=True), "dtype_v is f16, which gains nothing"),
        (dict(dtype="q8_0", rotate="K"), 'rotate is \'K\'; it must be True, False, "k" or "v"'),
        (dict(dtype="q8_0", rotate=1), "rotate is 1; it must be"),
        (dict(dtype="q8_0", interleaved=True), "^interleaved=True with dtype_k q8_0 and dtype_v"),
        (dict(dtype="q8_0", v_first=40), "v_first \\+ head_dim_v must be at most head_dim_k"),
        (dict(dtype="q8_0", v_first=8, head_dim_v=32), "cuts a block of 32"),
        (dict(v_first=0, dtype_v="f16"), "dtype_v is f16 .*with v_first, neither is given"),
        (
            dict(v_first=0, interleaved=True),
            "^v_first must not be set with interleaved=True: V is a part of K",
        ),
        (
            dict(v_first=0, dtype="int8", rotate="v"),
            '^v_first must not be set with rotate="v": V is a part of K',
        ),
        (dict(kind="encoder", v_first=0), "only causal and transformer caches take v_first"),
        (
            dict(kind="encoder", interleaved=True),
            "only causal and transformer caches take interleaved",
        ),
        (
            dict(kind="recurrent", state_shape=4, rotate=True, block=16),
            "only causal, encoder and transformer caches take .*block, rotate",
        ),
    ],
)
def test_a_storage_that_does_not_exist_is_refused(wide, changes, message):
    with pytest.raises(kvc.InvalidArgument, match=message) as caught:
        wide(**changes)
    assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, call, error, message",
    [
        (dict(), lambda c, k: c.put(0, k), TypeError, "v must be an array, not None"),
        (dict(), lambda c, k: c.put_attention(0, k, None, k), TypeError, "v must be an array, not"),
        (dict(), lambda c, k: c.put_codes(0, k), TypeError, "v must be an array, not None"),
        (dict(), lambda c, k: c.put(0, k, k) or c.get(0), kvc.NotSupported, r"get_codes\(\) lends"),
        (dict(), lambda c, k: c.get_codes(0), kvc.BadState, r"call put\(\) for it first"),
        (dict(), lambda c, k: c.get_copy(0), kvc.BadState, r"call put\(\) for it first"),
        (dict(), lambda c, k: c.put_codes(0, k, None, k), kvc.DtypeError, "k is f32, not i8"),
        (
            dict(),
            lambda c, k: c.put_codes(0, k.astype(np.int8), None, k.astype(np.int8)),
            kvc.InvalidArgument,
            "k_scales is null|k_scales",
        ),
        (
            dict(),
            lambda c, k: c.put_codes(0, k > 0, None, k),
            kvc.DtypeError,
            "k is bool; kvc takes",
        ),
        (
            dict(v_first=0),
            lambda c, k: c.put(0, k, k),
            kvc.InvalidArgument,
            "v must be None: with v_first, V is a part of K",
        ),
        (
            dict(dtype="f16"),
            lambda c, k: c.put_codes(0, k.astype("f2"), k, k.astype("f2")),
            kvc.InvalidArgument,
            "k_scales must be None: the type stores no scales",
        ),
        (
            dict(),
            lambda c, k: c.abort() or c.bind_scales([1, 1]),
            kvc.NotSupported,
            "k_scales: dtype_k is q8_0; scales are bound for f8_e4m3 and f8_e5m2 alone",
        ),
        (
            dict(dtype="f8_e4m3"),
            lambda c, k: c.abort() or c.bind_scales([1, 0]),
            kvc.InvalidArgument,
            r"k_scales\[1\]",
        ),
        (
            dict(dtype="f8_e4m3"),
            lambda c, k: c.abort() or c.bind_scales([1, 1, 1]),
            kvc.InvalidArgument,
            r"k_scales has shape \(3,\), not \(2,\)",
        ),
        (
            dict(dtype="f8_e4m3", v_first=0),
            lambda c, k: c.abort() or c.bind_scales([1, 1], [1, 1]),
            kvc.InvalidArgument,
            "v_scales must be None: with v_first, V is a part of K",
        ),
    ],
)
def test_what_a_storage_does_not_take_is_refused(wide, changes, call, error, message):
    cache = wide(**{"dtype": "q8_0", **changes})
    cache.begin([0, 1])
    with pytest.raises(error, match=message) as caught:
        call(cache, np.ones((2, 2, 64), np.float32))
    assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)


def test_a_block_over_codes_names_the_layers_that_it_left_out(wide, drawn):
    cache = wide(dtype="q8_0", n_layers=3)
    k, v, _ = drawn(2)
    with pytest.raises(kvc.BadState, match="1 of 3 layers were put, without layers 0, 2,"):
        with cache.forward([0, 1]):
            cache.put(1, k, v)


def test_threads_may_encode_at_the_same_time(drawn):
    from concurrent.futures import ThreadPoolExecutor

    k = drawn(200)[0]
    expected = bits(kvc.encode(k, "nf4")[0])
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: bits(kvc.encode(k, "nf4")[0]), range(32))
    assert set(found) == {expected}
