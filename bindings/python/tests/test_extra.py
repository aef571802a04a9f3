"""What one attention call may take and return besides: a bias, a mask, weights, lse."""

import numpy as np
import pytest

import kvc
import reference
from dlpack_producer import BOOL, Producer

ml_dtypes = pytest.importorskip("ml_dtypes")


def put(cache, k, v, positions, sequence=0):
    """Begins a pass and puts all its layers."""
    cache.begin(positions, sequence)
    for layer in range(cache.n_layers):
        cache.put(layer, k, v)


def columns(cache, sequence=0):
    """The column of each position of a sequence, in the open pass."""
    history = cache.history(0)
    cells = []
    for run in cache.runs(0, sequence):
        cells += range(run.cell, run.cell + run.length)
    return [history.index(cell) for cell in cells]


@pytest.fixture
def opened(cache, kvq, fill):
    """A cache of 20 tokens with a pass of 5 more: (cache, all 25 keys and values, 5 queries)."""
    old_k, old_v, _ = fill(cache, 20)
    k, v, q = kvq(5)
    put(cache, k, v, np.arange(20, 25))
    return cache, np.concatenate([old_k, k]), np.concatenate([old_v, v]), q


def expected(opened, bias):
    """The result in double, with a bias [4, 5, history] over columns."""
    cache, k, v, q = opened
    by_position = np.broadcast_to(bias, (4, 5, len(cache.history(0))))[:, :, columns(cache)]
    return reference.attention(q, k, v, np.arange(20, 25), np.arange(25), bias=by_position)


@pytest.mark.parametrize("shape", [(4, 5, -1), (1, 5, -1), (4, 1, -1), (5, -1), (1, -1), (-1,)])
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bias_and_mask_agree_with_numpy(opened, random, shape, kind):
    cache, _, _, q = opened
    shape = (*shape[:-1], len(cache.history(0)))
    bias = random.standard_normal(shape).astype(kind)
    mask = random.random(shape) < 0.7
    lse = np.zeros((5, 4), np.float32)
    out = cache.attention(0, q, lse=lse, bias=bias, mask=mask)
    total = np.where(mask, bias.astype(np.float64), -np.inf)
    wanted, wanted_lse = expected(opened, total)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-5)


def test_a_bias_of_bits_means_what_dtype_says(opened, random):
    cache, _, _, q = opened
    bias = random.standard_normal(len(cache.history(0))).astype(ml_dtypes.bfloat16)
    out = cache.attention(0, q, bias=bias.view(np.uint16), dtype="bf16")
    np.testing.assert_array_equal(out, cache.attention(0, q, bias=bias))


def test_a_tree_in_one_pass_is_its_branches(make, kvq):
    """A tree of drafts: token 3, its children 4 and 5, and 6, a child of 4."""
    parent = [-1, 0, 1, 2, 3, 3, 4]
    k, v, q = kvq(7)
    cache = make(max_sequences=5)
    put(cache, k[:3], v[:3], [0, 1, 2])
    cache.reorder([1, 2, 3, 4], [0] * 4)

    paths, branches = [], []
    for leaf in range(3, 7):
        path = [leaf]
        while parent[path[0]] >= 3:
            path.insert(0, parent[path[0]])
        put(cache, k[path], v[path], np.arange(3, 3 + len(path)), leaf - 2)
        branches.append(cache.attention(0, q[path])[-1])
        paths.append(path)

    put(cache, k[3:], v[3:], [3, 4, 5, 6])
    column = np.array(columns(cache))
    mask = np.zeros((4, len(cache.history(0))), bool)
    for row, path in enumerate(paths):
        mask[row, column[[0, 1, 2, *path]]] = True
    weights = np.full((4, *mask.shape), 9, np.float32)
    out = cache.attention(0, q[3:], mask=mask, weights=weights)
    np.testing.assert_allclose(out, branches, rtol=1e-5, atol=1e-6)
    assert ((weights > 0) == mask).all()
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-6)


def test_weights_are_what_the_values_are_summed_with(opened, random):
    cache, _, v, q = opened
    mask = random.random((5, len(cache.history(0)))) < 0.5
    mask[3] = False
    weights = np.full((4, *mask.shape), 9, np.float32)
    out = cache.attention(0, q, mask=mask, weights=weights)
    by_position = weights[:, :, columns(cache)]
    summed = np.einsum("hnc,chd->nhd", by_position, v.repeat(2, axis=1))
    np.testing.assert_allclose(summed, out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=2), np.ones((4, 1)) * [1, 1, 1, 0, 1], rtol=1e-6)
    assert not out[3].any()


class OnlyInterface:
    def __init__(self, array):
        self.array, self.__array_interface__ = array, array.__array_interface__


@pytest.mark.parametrize(
    "wrap",
    [
        OnlyInterface,
        memoryview,
        lambda mask: Producer(mask, BOOL),
        lambda mask: mask.view(np.uint8).view(bool),
        lambda mask: np.repeat(mask, 2, axis=1)[:, ::2],
    ],
    ids=["interface", "buffer", "dlpack", "uint8", "steps"],
)
def test_a_mask_may_be_any_kind_of_array(opened, random, wrap):
    cache, _, _, q = opened
    mask = random.random((5, len(cache.history(0)))) < 0.5
    out = cache.attention(0, q, mask=wrap(mask))
    np.testing.assert_array_equal(out, cache.attention(0, q, mask=mask))
    assert (out != cache.attention(0, q)).any()


def test_what_does_not_fit_is_refused_and_writes_nothing(opened):
    cache, _, _, q = opened
    history = len(cache.history(0))
    out, weights = np.full((5, 4, 16), 9, np.float32), np.full((4, 5, history), 9, np.float32)
    before = cache.digest()
    for wrong, error, message in (
        (dict(mask=np.ones(history, np.uint8)), kvc.DtypeError, r"view\(bool\)"),
        (dict(mask=np.ones(history, np.float32)), kvc.DtypeError, "mask"),
        (dict(bias=np.ones(history, bool)), kvc.DtypeError, "bias"),
        (dict(bias=np.ones(history, np.int32)), kvc.DtypeError, "bias"),
        (dict(mask=np.ones(history + 1, bool)), kvc.ShapeError, "mask"),
        (dict(mask=np.ones((1, 4, 5, history), bool)), kvc.ShapeError, "mask"),
        (dict(mask=np.ones(2 * history, bool)[::-2]), kvc.ShapeError, "mask"),
        (dict(weights=np.ones((5, history), np.float32)), kvc.ShapeError, "weights"),
        (dict(weights=weights.astype(np.float16)), kvc.DtypeError, "weights"),
        (dict(weights=weights, bias=weights), kvc.InvalidArgument, "overlaps"),
        (dict(weights=np.broadcast_to(np.float32(9), weights.shape)), ValueError, "read-only"),
        (dict(mask=[True] * history), TypeError, "mask"),
    ):
        with pytest.raises(error, match=message):
            cache.attention(0, q, out, **{"weights": weights, **wrong})
    assert (out == 9).all() and (weights == 9).all() and cache.digest() == before


def test_put_attention_takes_the_same_extras(opened, random, kvq):
    cache, _, _, _ = opened
    history = len(cache.history(0))
    k, v, q = kvq(5)
    bias = random.standard_normal(history).astype(ml_dtypes.bfloat16)
    mask = random.random(history) < 0.5
    outs, weights = [], np.zeros((2, 4, 5, history), np.float32)
    lses = np.zeros((2, 5, 4), np.float32)
    bits = dict(bias=bias.view(np.uint16), dtype="bf16")
    outs.append(cache.put_attention(0, k, v, q, mask=mask, weights=weights[0], lse=lses[0], **bits))
    cache.put(0, k, v)
    outs.append(cache.attention(0, q, bias=bias, mask=mask, weights=weights[1], lse=lses[1]))
    for pair in (outs, weights, lses):
        np.testing.assert_array_equal(*pair)
    assert weights[0].any() and lses[0].any()


def test_put_attention_may_write_over_what_it_has_stored(opened, kvq):
    cache, _, _, _ = opened
    history = len(cache.history(0))
    k, v, q = kvq(5)
    wanted, wanted_weights = np.zeros((5, 4, 16), np.float32), np.zeros((4, 5, history), np.float32)
    cache.put_attention(0, k, v, q, wanted, weights=wanted_weights)
    memory = np.zeros(max(wanted.size, wanted_weights.size), np.float32)
    keys = memory[: k.size].reshape(k.shape)
    for name, result in (("out", wanted), ("weights", wanted_weights)):
        keys[:] = k
        over = memory[: result.size].reshape(result.shape)
        cache.put_attention(0, keys, v, q, **{name: over})
        np.testing.assert_array_equal(over, result)
    with pytest.raises(kvc.InvalidArgument, match="overlaps q"):
        cache.put_attention(0, k, v, q, q)


def test_history_belongs_to_a_pass(cache, fill):
    with pytest.raises(kvc.BadState):
        cache.history(0)
    fill(cache, 3)
    cache.begin([3])
    history = cache.history(0)
    assert isinstance(history, range) and len(history) == cache.mask(0).shape[1] == 4
    assert [run.cell for run in cache.runs(0, 0)] == [history[0]]
    cache.abort()
    cache.begin_reserve(2)
    assert len(cache.history(0)) == cache.stats().cells


def test_a_result_may_lie_right_behind_a_bias_by_kv_head(cache, kvq):
    """Heads that stand for groups take no more memory than they have."""
    k, v, q = kvq(3)
    cache.begin(range(3))
    for layer in range(2):
        cache.put(layer, k, v)
    columns = len(cache.history(0))
    memory = np.zeros(2 * 3 * columns + q.size, np.float32)
    bias = memory[: 2 * 3 * columns].reshape(2, 3, columns)
    out = memory[bias.size :].reshape(q.shape)
    np.testing.assert_array_equal(cache.attention(0, q, out, bias=bias), cache.attention(0, q))
    with pytest.raises(kvc.InvalidArgument, match="out overlaps bias"):
        cache.attention(0, q, memory[bias.size - 1 : -1].reshape(q.shape), bias=bias)
    cache.abort()
