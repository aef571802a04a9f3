"""Transformer caches: passes of rows, what rows hold, whole layers in and out. (The vectors have files of their own.)"""

import numpy as np
import pytest

import kvc
import reference

BATCH, HEADS, DIM = 3, 2, 16
TYPES = ["f32", "f16", "bf16", "f8_e4m3", "q8_0", "q4_0", "int8", "nf4"]


@pytest.fixture
def rows(device, closing):
    """Creates transformer caches of two layers and three rows, and closes them."""

    def make(**changes):
        sizes = dict(kind="transformer", n_layers=2, n_kv_heads=HEADS, head_dim=DIM, capacity=12)
        sizes.update(max_sequences=BATCH, max_batch=BATCH * 6, device=device)
        return closing(kvc.Cache(**{**sizes, **changes}))

    return make


@pytest.fixture
def draw(random):
    """Random (k, v, q) of rows."""

    def make(q_len, batch=BATCH, n_q_heads=4, dim=DIM):
        shapes = [(batch, q_len, n, dim) for n in (HEADS, HEADS, n_q_heads)]
        return [random.standard_normal(shape, dtype=np.float32) for shape in shapes]

    return make


@pytest.fixture
def feed(draw):
    """A committed pass of rows; returns k and v."""

    def run(cache, q_len, **arguments):
        k, v, _ = draw(q_len, cache.max_sequences, dim=cache.head_dim_k)
        with cache.begin_rows(q_len, **arguments):
            for layer in range(cache.n_layers):
                cache.put(layer, k, v)
        return k, v

    return run


def test_each_row_attends_as_a_sequence_of_its_own(rows, draw, feed):
    """Valid lengths, padding on the left, a window, masks and types, against NumPy, row by row."""
    cache = rows(reach=5)
    k0, v0 = feed(cache, 4, valid=[4, 2, 0])
    cache.rows_set(starts=[1, 0, 0])
    k, v, q = draw(3)
    mask = np.ones((BATCH, 7), int)
    mask[0, 2] = mask[1, 3] = 0
    types = [[0, 7, 7], [0, 0, 0], [3, 3, 0]]
    lse = np.empty((BATCH, 3, 4), np.float32)
    with cache.begin_rows(3, valid=[3, 2, 3], attention_mask=mask, token_types=types) as block:
        assert repr(block) == "<kvc.Pass of 9 tokens, open>"
        assert cache.rows().index.tolist() == [7, 4, 3]  # as if it were committed
        for layer in range(2):
            out = cache.put_attention(layer, k, v, q, lse=lse)
        assert cache.mask(0).shape == (BATCH, 1, 3, 12)
        assert cache.history(0) == range(12)
    for b, (before, n) in enumerate([(4, 3), (2, 2), (0, 3)]):
        held = np.arange(before + n)
        bias = np.where(mask[b, held] != 0, 0.0, -np.inf)
        bias[: [1, 0, 0][b]] = -np.inf
        wanted, wanted_lse = reference.attention(
            q[b, :n],
            np.concatenate([k0[b, :before], k[b, :n]]),
            np.concatenate([v0[b, :before], v[b, :n]]),
            held[before:],
            held,
            reach=5,
            types=types[b][:n],
            bias=np.broadcast_to(bias, (4, n, len(held))),
        )
        np.testing.assert_allclose(out[b, :n], wanted, atol=2e-5)
        np.testing.assert_allclose(lse[b, :n], wanted_lse, atol=2e-5)
        assert not out[b, n:].any() and np.isneginf(lse[b, n:]).all()


def test_tokens_that_see_later_ones(rows, draw):
    """As an option of the cache, of a pass, and by set_causal()."""
    k, v, q = draw(4)

    def run(cache, change=lambda cache: None, **arguments):
        with cache.begin_rows(4, **arguments):
            change(cache)
            outs = [cache.put_attention(layer, k, v, q) for layer in range(2)]
        return outs[1]

    causal, both = run(rows()), run(rows(causal=False))
    assert not np.array_equal(causal, both)
    for same in (
        run(rows(), causal=False),
        run(rows(causal=False), causal=False),
        run(rows(), lambda cache: cache.set_causal(range(12))),
    ):
        np.testing.assert_array_equal(same, both)
    for same in (
        run(rows(), causal=True),
        run(rows(causal=False), causal=True),
        run(rows(causal=False), lambda cache: cache.set_causal()),
    ):
        np.testing.assert_array_equal(same, causal)


def test_a_length_read_off_the_mask(rows, feed):
    cache = rows()
    feed(
        cache,
        4,
        attention_mask=np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool),
        postpadded=True,
    )
    assert cache.rows().index.tolist() == [2, 4, 0]


def test_masks_may_be_bool_or_integers_of_any_strides(rows, draw):
    k, v, q = draw(3)
    shown = np.array([[1, 0, 1], [1, 1, 1], [1, 1, 0]])
    each = np.broadcast_to(shown[:, None, None], (BATCH, 1, 3, 3))
    outs = []
    for mask in (
        shown.tolist(),
        shown.astype(bool),
        shown.astype(np.uint8),
        np.asfortranarray(shown.astype(np.int32)),
        each,
        each.astype(bool),
    ):
        cache = rows()
        with cache.begin_rows(3, attention_mask=mask):
            outs.append([cache.put_attention(layer, k, v, q) for layer in range(2)][0])
        np.testing.assert_array_equal(outs[0], outs[-1])


@pytest.mark.parametrize("dtype", TYPES)
def test_a_layer_goes_out_and_into_another_cache(rows, feed, dtype):
    """Codes of views are the same bytes; so are numbers that are stored again."""
    sizes = dict(dtype=dtype, head_dim=32)
    cache = rows(**sizes)
    k, v = feed(cache, 5, valid=[5, 2, 0])
    copy, again = rows(**sizes), rows(**sizes)
    for each in (copy, again):
        each.begin_rows(5, valid=[5, 2, 0])
        each.commit()  # zeros
    for layer in range(2):
        held = cache.rows_view(layer)
        assert held.k.shape[:3] == (BATCH, 12, HEADS)
        assert (held.k_scales is None) == (dtype not in ("q8_0", "q4_0", "int8", "nf4"))
        copy.rows_fill(layer, held.k, held.v, k_scales=held.k_scales, v_scales=held.v_scales)
        again.rows_fill(layer, k[1:], begin=1)
        again.rows_fill(layer, v=v)
        again.rows_fill(layer, k[:1].astype(np.float32))
    assert copy.digest() == again.digest() == cache.digest()
    np.testing.assert_array_equal(copy.gather(0, 0)[0], cache.gather(0, 0)[0])


def test_bare_bits_of_a_layer_are_what_is_stored_or_what_the_caller_says(rows, feed):
    cache, other = rows(dtype="bf16"), rows(dtype="bf16")
    feed(cache, 2)
    before = cache.digest()
    k, v = (np.array(part).view(np.uint16) for part in cache.rows_view(0)[::2])
    cache.rows_fill(0, k, v)
    assert cache.digest() == before
    half = np.linspace(-2, 2, k.size).astype(np.float16).reshape(k.shape)
    for each, given in ((cache, half), (other, half.view(np.uint16))):
        each.rows_set([0] * BATCH)
        each.begin_rows(2)
        each.commit()
        each.rows_fill(1, given, dtype="f16")
    assert cache.digest() == other.digest() != before


def test_views_of_rows_end_with_a_pass_and_need_none(rows, feed):
    cache = rows()
    k, _ = feed(cache, 2)
    view = cache.rows_view(1)
    np.testing.assert_array_equal(np.asarray(view.k)[:, :2], k)
    assert cache.rows_view(1).k[0, 1].shape == (HEADS, DIM)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(view.k)[0, 0, 0, 0] = 1
    cache.begin_rows(1)
    with pytest.raises(kvc.BadState, match=r"call rows_view\(\) again"):
        np.asarray(view.k)
    cache.abort()


def test_rows_of_another_cache(rows, feed):
    cache, other = rows(), rows(max_sequences=2, max_batch=8, capacity=6)
    feed(cache, 3)
    k, _ = feed(other, 4, valid=[4, 1])
    other.rows_set(starts=[2, 0])
    view = cache.rows_view(0).k
    cache.insert(other, 1)
    assert [each.tolist() for each in cache.rows()] == [[3, 4, 1], [0, 2, 0]]
    np.testing.assert_array_equal(cache.gather(1, 1)[0], k[0])
    assert not view.valid
    for slot in (-1, 2):
        with pytest.raises(kvc.InvalidArgument):
            cache.insert(other, slot)
    with pytest.raises(kvc.InvalidArgument, match="the cache itself"):
        cache.insert(cache)
    with pytest.raises(TypeError, match="other must be a kvc.Cache, not str"):
        cache.insert("other")
    other.close()
    with pytest.raises(kvc.InvalidHandle):
        cache.insert(other)


def test_index_and_starts(rows, feed):
    cache = rows()
    feed(cache, 5)
    cache.rows_set([2, 3], [1, 0], begin=1)
    found = cache.rows()
    assert found.index.dtype == found.starts.dtype == np.int32
    assert found.index.tolist() == [5, 2, 3] and found.starts.tolist() == [0, 1, 0]
    assert cache.rows(1, 2).index.tolist() == [2] and len(cache.rows(3).index) == 0
    cache.rows_set(np.array([4], np.int64))
    assert cache.query(0).next == 4
    for wrong, message in (
        (dict(), "neither index nor starts"),
        (dict(index=[1], starts=[1, 2]), "different lengths"),
        (dict(index=[[1]]), r"index has shape \(1, 1\), not \(n,\)"),
        (dict(index=[9]), "index"),
        (dict(starts=[13]), "starts"),
        (dict(index=[2**31]), r"index has the element 2147483648"),
        (dict(index=[1], begin=3), "begin"),
    ):
        with pytest.raises(kvc.InvalidArgument, match=message):
            cache.rows_set(**wrong)
    with pytest.raises(TypeError, match="index must hold integers, not float64"):
        cache.rows_set([1.5])
    with pytest.raises(kvc.InvalidArgument, match="no rows"):
        cache.rows(2, 4)
    with pytest.raises(kvc.InvalidArgument, match="begin is 5, behind end, which is 3"):
        cache.rows(5)
    with pytest.raises(kvc.InvalidArgument, match="attention_mask is no array"):
        cache.begin_rows(2, attention_mask=[[1, 1], [1], [1, 1]])


def test_a_ring_goes_on(rows, feed, draw):
    cache = rows(ring=True, capacity=4)
    for _ in range(5):
        feed(cache, 3)
    assert cache.query(0) == kvc.SequenceInfo(11, 15, 4, 2**31 - 2 - 15, 11)
    with pytest.raises(kvc.NotSupported, match="in a ring columns are reused"):
        cache.begin_rows(1, attention_mask=np.ones((BATCH, 4), bool))
    with pytest.raises(kvc.WindowLost):
        cache.rows_set([12])


def test_full_rows(rows, feed):
    cache = rows()
    feed(cache, 6, valid=[6, 1, 0])
    feed(cache, 6, valid=[4, 0, 0])
    assert cache.fits_rows(3, valid=[2, 3, 3]) and not cache.fits_rows(3)
    before = cache.digest()
    with pytest.raises(kvc.CacheFull, match="row 0"):
        cache.begin_rows(3)
    assert cache.digest() == before
    with pytest.raises(kvc.InvalidArgument, match="q_len 7"):
        cache.fits_rows(7)


def test_blocks_of_rows(rows, draw):
    """They commit, abort, and refuse a layer that was not put, as those of forward()."""
    cache = rows()
    k, v, _ = draw(2)
    with pytest.raises(kvc.BadState, match="1 of 2 layers were put, without layer 1"):
        with cache.begin_rows(2):
            cache.put(0, k, v)
    with pytest.raises(KeyError):
        with cache.begin_rows(2):
            raise KeyError
    assert cache.rows().index.tolist() == [0, 0, 0]
    with cache.begin_rows(2, valid=0) as block:  # rows that are all finished: nothing need be put
        pass
    assert not block.open
    with cache.begin_rows(2, valid=1):
        cache.commit()
    assert cache.rows().index.tolist() == [1, 1, 1]
    cache.begin_rows_reserve(6)
    assert cache.stats().state == "reserve"
    cache.abort()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(valid=[1, 2]), kvc.InvalidArgument, r"valid has shape \(2,\), not \(3,\)"),
        (dict(valid=[3, 0, 0]), kvc.InvalidArgument, r"valid\[0\] is 3"),
        (dict(valid=1.5), TypeError, "valid must hold integers, not float64"),
        (
            dict(token_types=[1, 2]),
            kvc.InvalidArgument,
            r"token_types has shape \(2,\), not \(3, 2\)",
        ),
        (dict(attention_mask=[[1, 1]] * 2), kvc.ShapeError, "attention_mask"),
        (
            dict(attention_mask=np.ones((3, 2))),
            kvc.DtypeError,
            "attention_mask is float64; .* bool",
        ),
        (dict(postpadded=True), kvc.InvalidArgument, "attention_mask is None, and postpadded=True"),
        (
            dict(postpadded=True, valid=1, attention_mask=[[1, 1]] * 3),
            kvc.InvalidArgument,
            "valid must be None with postpadded=True",
        ),
    ],
)
def test_wrong_arguments_of_a_pass(rows, arguments, error, message):
    cache = rows()
    for call in (cache.begin_rows, cache.fits_rows):
        with pytest.raises(error, match=message):
            call(2, **arguments)
    assert cache.stats().state == "idle"


def test_what_a_transformer_cache_does_not_take(rows, make):
    cache = rows()
    with pytest.raises(kvc.NotSupported, match=r"a transformer cache takes .* call begin_rows\(\)"):
        cache.begin([0])
    with pytest.raises(kvc.NotSupported, match='kind="transformer" and kind="lightning"'):
        make().begin_rows(1)
    for options, message in (
        (dict(cells=1), "only causal caches take cells"),
        (dict(inputs=1), "only encoder caches take inputs"),
        (dict(draft_states=1), "only recurrent and lightning caches take draft_states"),
        (dict(kind="encoder", ring=True), "only transformer caches take ring"),
        (
            dict(kind="recurrent", capacity=4),
            "only causal, encoder and transformer caches take capacity",
        ),
    ):
        with pytest.raises(kvc.InvalidArgument, match=message):
            rows(**options)
    with pytest.raises(TypeError, match="of kind 'transformer' needs capacity"):
        rows(capacity=None)
    with pytest.raises(kvc.InvalidArgument, match="neither k nor v"):
        cache.rows_fill(0)
    with pytest.raises(kvc.ShapeError, match="k has shape"):
        cache.rows_fill(0, np.float32(1))


def test_values_with_heads_of_their_own(rows, random):
    cache = rows(value_heads=1, n_layers=1)
    k, v = (random.standard_normal((BATCH, 2, n, DIM), dtype=np.float32) for n in (HEADS, 1))
    with cache.begin_rows(2):
        cache.put(0, k, v)
        with pytest.raises(kvc.NotSupported, match="value_heads"):
            cache.attention(0, k)
        assert cache.get_copy(0)[1].shape == (BATCH, 12, 1, DIM)
    assert cache.rows_view(0).v.shape == (BATCH, 12, 1, DIM)


def test_rows_of_a_wrapper(device, random):
    """A transformer layer beside a lightning one: a pass reaches both, and insert() too."""
    layers = [
        kvc.Layer(kind="transformer", n_kv_heads=1, head_dim=8, capacity=8, causal=False),
        kvc.Layer(kind="lightning", n_kv_heads=1, head_dim=8),
    ]
    made = [
        kvc.Cache.from_layers(layers, max_sequences=2, max_batch=8, device=device) for _ in "ab"
    ]
    k = random.standard_normal((2, 3, 1, 8), dtype=np.float32)
    for cache in made:
        cache.bind_decay([0.5], layers=1)
    with made[0].begin_rows(3, valid=[3, 2], causal=True):
        for layer in range(2):
            made[0].put_attention(layer, k, k, k)
    assert made[0].rows().index.tolist() == [3, 2]
    made[1].insert(made[0])
    assert made[1].digest() == made[0].digest()
    np.testing.assert_array_equal(np.asarray(made[1].rows_view(0).k)[0, :3], k[0])
    with pytest.raises(kvc.BadState):
        made[0].children[0].begin_rows(1)
    for cache in made:
        cache.check()
        cache.close()
