"""Lightning caches: linear attention with decay, states in and out. (The vectors have files of their own.)"""

import numpy as np
import pytest

import kvc

HEADS, DIM_K, DIM_V = 2, 8, 4
SLOPES = np.array([[0.25, 0.0], [1.0, 0.5]], np.float32)


@pytest.fixture
def lightning(device, closing):
    """Creates lightning caches of two layers, whose slopes are bound, and closes them."""

    def make(bind=True, **changes):
        sizes = dict(
            kind="lightning", n_layers=2, n_kv_heads=HEADS, head_dim=DIM_K, head_dim_v=DIM_V
        )
        sizes.update(max_sequences=3, max_batch=24, device=device)
        cache = closing(kvc.Cache(**{**sizes, **changes}))
        if bind:
            for layer in range(2):
                cache.bind_decay(SLOPES[layer], layers=layer)
        return cache

    return make


@pytest.fixture
def draw(random):
    """Random (k, v, q)."""

    def make(*extents):
        shapes = [(*extents, HEADS, DIM_K), (*extents, HEADS, DIM_V), (*extents, 4, DIM_K)]
        return [random.standard_normal(shape, dtype=np.float32) for shape in shapes]

    return make


def recurrence(k, v, q, positions, slopes, masked=()):
    """Outputs and the last state of one sequence, in double, token by token."""
    state = np.zeros((HEADS, DIM_K, DIM_V))
    out, now = [], 0
    for i, position in enumerate(positions):
        state *= np.exp(-slopes.astype(float) * (position + 1 - now))[:, None, None]
        now = position + 1
        if i not in masked:
            state += np.einsum("hk,hv->hkv", k[i], v[i])
        out.append(np.einsum("hgk,hkv->hgv", q[i].reshape(HEADS, -1, DIM_K), state))
    return np.array(out).reshape(len(positions), -1, DIM_V), state


@pytest.mark.parametrize("block_tokens", [0, 1, 3])
def test_outputs_and_states_are_those_of_the_recurrence(lightning, draw, block_tokens):
    """Over gaps of time, with tokens that add nothing, prompt and then token by token."""
    cache = lightning(block_tokens=block_tokens)
    positions, masked = [0, 1, 2, 5, 6, 7, 30], [2, 4]
    k, v, q = draw(7)
    outs = [[], []]
    for begin, end in ((0, 5), (5, 6), (6, 7)):
        here = [each - begin for each in masked if begin <= each < end]
        with cache.forward(positions[begin:end], masked=here):
            for layer in range(2):
                part = slice(begin, end)
                out = cache.put_attention(layer, k[part], v[part], q[part])
                np.testing.assert_array_equal(cache.attention(layer, q[part]), out)
                outs[layer].append(out)
    for layer in range(2):
        out, state = recurrence(k, v, q, positions, SLOPES[layer], masked)
        np.testing.assert_allclose(np.concatenate(outs[layer]), out, atol=1e-4)
        found = cache.lightning_read(layer, 0, 1)
        assert found.shape == (1, HEADS, DIM_K, DIM_V) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], state, atol=1e-4)


def test_rows_are_sequences(lightning, draw):
    """Valid lengths and a mask of hidden tokens, beside the same tokens in passes of a list."""
    rows, lists = lightning(), lightning()
    k, v, q = draw(3, 4)
    mask = np.ones((3, 4), bool)
    mask[1, 1] = False
    with rows.begin_rows(4, valid=[4, 3, 0], attention_mask=mask):
        outs = [rows.put_attention(layer, k, v, q) for layer in range(2)]
    for b, n in ((0, 4), (1, 3)):
        with lists.forward(range(n), b, masked=[1] if b else None):
            for layer in range(2):
                out = lists.put_attention(layer, k[b, :n], v[b, :n], q[b, :n])
                np.testing.assert_allclose(out, outs[layer][b, :n], atol=1e-5)
        assert not outs[0][b, n:].any()
    np.testing.assert_allclose(rows.lightning_read(1), lists.lightning_read(1), atol=1e-5)
    assert rows.rows().index.tolist() == [4, 3, 0]
    rows.rows_set([9, 0, 0])  # a label of time
    assert rows.query(0).next == 9 and not rows.lightning_read(0)[1].any()


def test_states_go_out_and_in(lightning, draw):
    cache, other = lightning(), lightning()
    k, v, q = draw(3, 2)
    with cache.begin_rows(2, valid=[2, 1, 0]):
        for layer in range(2):
            cache.put_attention(layer, k, v, q)
    other.rows_set([2, 1])
    for layer in range(2):
        into = np.asfortranarray(np.zeros((2, HEADS, DIM_K, DIM_V), np.float32))
        assert cache.lightning_read(layer, 0, 2, into=into) is into
        other.lightning_write(layer, into)
    assert other.digest() == cache.digest()
    other.lightning_write(1, into[1:], begin=1)
    third = lightning()
    third.insert(cache)
    assert third.digest() == cache.digest()
    with pytest.raises(kvc.BadState, match=r"sequence 2 is empty, .* with rows_set\(\) first"):
        other.lightning_write(0, cache.lightning_read(0))
    with pytest.raises(kvc.ShapeError, match="state has shape"):
        other.lightning_write(0, np.zeros(1, np.float32))
    with pytest.raises(kvc.DtypeError, match="states is float64; kvc takes float32"):
        other.lightning_write(0, np.zeros((1, HEADS, DIM_K, DIM_V)))
    with pytest.raises(kvc.DtypeError, match="into is float16; kvc writes float32"):
        other.lightning_read(0, 0, 1, into=np.zeros((1, HEADS, DIM_K, DIM_V), np.float16))
    with pytest.raises(kvc.InvalidArgument, match="begin 1 and n 3 are no range of sequences"):
        other.lightning_read(0, 1, 4)


def test_checkpoints_and_drafts(lightning, draw):
    cache = lightning(checkpoints=2, checkpoint_interval=None, draft_states=2)
    k, v, q = draw(3)
    with cache.forward(range(3)):
        for layer in range(2):
            cache.put_attention(layer, k, v, q)
        cache.commit_prefix([0], [2])
    _, state = recurrence(k[:2], v[:2], q[:2], range(2), SLOPES[0])
    np.testing.assert_allclose(cache.lightning_read(0)[0], state, atol=1e-5)
    cache.checkpoint_take(0)
    assert cache.checkpoint_list(0) == [2]
    assert cache.copy_prefix(0, 1) == 2 and cache.resume(0, 1) == 0
    assert cache.query(1).next == 2


def test_slopes_come_first(lightning, draw):
    cache = lightning(bind=False)
    k, v, q = draw(1)
    cache.begin([0])
    with pytest.raises(kvc.BadState, match=r"layer 0 has no slopes, .* call bind_decay\(\)"):
        cache.put_attention(0, k, v, q)
    with pytest.raises(kvc.BadState, match="pass"):
        cache.bind_decay([1, 1])
    cache.abort()
    for wrong, error, message in (
        ([1, 2, 3], kvc.InvalidArgument, r"slopes has shape \(3,\), not \(2,\)"),
        ([1, -1], kvc.InvalidArgument, r"slopes\[1\] is -1"),
        ([1, np.nan], kvc.InvalidArgument, r"slopes\[1\]"),
        ("many", TypeError, "slopes must hold 2 numbers"),
    ):
        with pytest.raises(error, match=message):
            cache.bind_decay(wrong)
    cache.bind_decay(kvc.slopes("alibi", HEADS), layers=range(2))
    with cache.forward([0]):
        for layer in range(2):
            cache.put_attention(layer, k, v, q)
    with pytest.raises(kvc.BadState, match=r"sequence 0 continues at \d+: call bind_decay\(\) while"):
        cache.bind_decay([1, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kvc.slopes("geometric", 4), "'geometric' is not one of alibi, lightning2"),
        (lambda: kvc.slopes("alibi", 0), "n_heads is 0"),
        (lambda: kvc.slopes("alibi", 2**20 + 1), "n_heads is 1048577"),
        (lambda: kvc.slopes("linear", 4, layer=2, n_layers=2), "layer 2"),
    ],
)
def test_slopes_that_nobody_knows(call, message):
    with pytest.raises(kvc.InvalidArgument, match=message):
        call()


def test_what_a_lightning_cache_does_not_do(lightning, make, draw):
    cache = lightning()
    k, v, q = draw(1)
    with pytest.raises(kvc.NotSupported, match="for lightning caches"):
        make().lightning_read(0)
    with pytest.raises(kvc.NotSupported):
        cache.rows_view(0)
    with pytest.raises(kvc.NotSupported):
        cache.begin_rows(1, causal=False)
    cache.begin([0])
    cache.put(0, k, v)
    for call in (cache.get, cache.mask, cache.history, cache.get_codes):
        with pytest.raises(kvc.NotSupported):
            call(0)
    cache.put(1, k, v)
    with pytest.raises(kvc.BadState):  # of the layer that was put last alone
        cache.attention(0, q)
    cache.abort()
    fused = lightning(fused=True)
    fused.begin([0])
    cache.begin([0])
    outs = [each.put_attention(0, k, v, q) for each in (cache, fused)]
    np.testing.assert_array_equal(*outs)
    with pytest.raises(kvc.NotSupported, match="fused=True"):
        fused.attention(0, q)
    cache.abort()
    for options, message in (
        (dict(capacity=8), "take capacity"),
        (dict(dtype="f16"), "take dtype"),
        (dict(reach=4), "only causal and transformer caches take reach"),
        (dict(state_shape=4), "only recurrent caches take state_shape"),
        (dict(kind="recurrent", block_tokens=4), "only lightning caches take block_tokens"),
    ):
        with pytest.raises(kvc.InvalidArgument, match=message):
            lightning(bind=False, **options)
    with pytest.raises(TypeError, match="of kind 'lightning' needs head_dim"):
        lightning(bind=False, head_dim=None)
    causal = make()
    with pytest.raises(
        kvc.InvalidArgument, match="token 0 of the batch has masked, but this cache"
    ):
        causal.begin([0], masked=[0])
