"""kvc.easydel: views of transformer caches, and their steps."""

import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from easydel_cases import Model, empty, figures, sizes, tril

MASKS = [
    "M1_first_decode",
    "M2_second_decode",
    "M3_per_row_index",
    "M4_prefill3",
    "M5_left_pad2_prefill5",
    "M6_left_pad2_decode",
    "M7_overflow_decode_at_capacity",
    "M8_overflow_chunk",
    "M9_token_type_prefill4",
    "M10_causal_mask_larger_than_cache",
]


def ones(view, q_len, value=1.0):
    metadata = view.metadata
    return np.full((metadata.batch_size, q_len, 2, 4), value, np.float32)


def advance(view, index):
    """Rows that continue at index."""
    longest = max(index)
    if longest:
        options = ed.TransformerMetadata(valid=np.array(index))
        x = ones(view, longest)
        view.concatenate_to_cache(x, x, x, None, options, None, None, True)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("causal_mask", ["triangle", True])
def test_masks_and_index_of_the_figures(name, causal_mask):
    case = figures()[name]
    rows, length, q_len = case["B"], case["S"], case["q"]
    cache = empty(sizes(rows, length))
    view = cache.views[0]
    advance(view, case["index"])
    mask = case.get("attention_mask")
    arguments = dict(
        attention_mask=None if mask is None else np.array(mask),
        causal_mask=tril(case.get("causal_rows", length)) if causal_mask == "triangle" else True,
        token_type_ids=case.get("token_type_ids"),
    )
    x = ones(view, q_len, 2.0)
    if "kvc" in case:
        before = cache.kvc_cache.digest()
        with pytest.raises(kvc.CacheFull):
            view.concatenate_to_cache(x, x, x, None, None, partition_manager=None, **arguments)
        assert case["kvc"]["status"] == "CACHE_FULL" and cache.kvc_cache.digest() == before
        return
    _, _, mask = view.concatenate_to_cache(x, x, x, None, None, partition_manager=None, **arguments)
    assert mask.dtype == bool and mask.shape == (rows, 1, q_len, length)
    np.testing.assert_array_equal(mask[:, 0], np.array(case["mask"], bool))
    assert view.index.tolist() == case["new_index"] and view.index.dtype == np.int32
    for row, start in enumerate(case["write_start"]):
        assert (view.key[row, start : start + q_len] == 2).all()


def test_a_view_of_the_documents():
    view = ed.TransformerCacheView.init(
        mesh=None,
        dtype=np.float32,
        metadata=sizes(2, 5, 3, 4, 32),
        quantizer=None,
        partition_manager=None,
        layer_index=1,
    )
    assert repr(view) == str(view)
    assert repr(view) == "TransformerCacheView(key=(2, 5, 4, 32), value=(2, 5, 4, 32), layer_index=1)"
    for array in (view.key, view.value):
        assert array.shape == (2, 5, 4, 32) and array.dtype == np.float32
        assert not array.any() and not array.flags.writeable
    for array in (view.index, view.starts):
        assert array.shape == (2,) and array.dtype == np.int32 and not array.any()
    assert not view.is_empty and view.metadata.num_hidden_layers == 3
    started = ed.TransformerCacheView.init(None, None, sizes(), None, None, starts=[1, 2])
    assert started.starts.tolist() == [1, 2] and started.layer_index is None


def test_two_tokens_of_the_documents():
    """One token at a time: keys 2 and 8, values 3 and 15."""
    cache = empty()
    view = cache.views[0]
    mask, causal = np.ones((2, 8)), tril(8)
    one = np.ones((2, 1, 2, 4), np.float32)
    for token, (key, value) in enumerate([(2.0, 3.0), (8.0, 15.0)]):
        k, v, seen = view.concatenate_to_cache(
            query=one,
            key=one * key,
            value=one * value,
            quantizer=None,
            cache_metadata=None,
            attention_mask=mask,
            partition_manager=None,
            causal_mask=causal,
        )
        assert view.index.tolist() == [token + 1] * 2
        assert (k[:, token] == key).all() and (v[:, token] == value).all()
        assert seen.shape == (2, 1, 1, 8) and seen[..., : token + 1].all()
        assert not seen[..., token + 1 :].any()
    assert (view.key[:, 0] == 2).all() and (view.value[:, 1] == 15).all()


def test_arrays_are_not_copied():
    view = empty().views[0]
    x = ones(view, 1)
    k, v, _ = view.concatenate_to_cache(x, x, x, None, None, None, None, True)
    assert np.shares_memory(k, view.key) and np.shares_memory(v, view.value)
    with pytest.raises(ValueError):
        k[:] = 0


# ---- Steps ---------------------------------------------------------------------------------------


def test_all_layers_take_part_in_a_step():
    cache = empty(sizes(2, 8, 3))
    first, second, third = cache.views
    x = ones(first, 2)
    first.concatenate_to_cache(x, x, x, None, None, None, None, True)
    assert [view.index.tolist() for view in cache.views] == [[2, 2], [0, 0], [0, 0]]
    second.concatenate_to_cache(x, x, x, None, None, None, None, True)
    with pytest.raises(kvc.BadState):  # the third layer was not put
        first.concatenate_to_cache(x, x, x, None, None, None, None, True)
    third.concatenate_to_cache(x, x, x, None, None, None, None, True)
    first.concatenate_to_cache(x, x, x, None, None, None, None, True)  # the next step
    assert [view.index.tolist() for view in cache.views] == [[4, 4], [2, 2], [2, 2]]
    cache.abort()
    assert third.index.tolist() == [2, 2]
    with pytest.raises(kvc.BadState):
        cache.abort()
    with pytest.raises(kvc.BadState):
        cache.commit()


def test_other_arguments_begin_another_step():
    cache = empty(sizes(2, 8, 2))
    first, second = cache.views
    x = ones(first, 1)
    first.concatenate_to_cache(x, x, x, None, None, np.ones((2, 8)), None, True)
    with pytest.raises(kvc.BadState):
        second.concatenate_to_cache(x, x, x, None, None, np.zeros((2, 8)), None, True)
    second.concatenate_to_cache(x, x, x, None, None, np.ones((2, 8), int), None, True)
    cache.commit()
    assert first.index.tolist() == second.index.tolist() == [1, 1]


def test_a_view_that_raises_has_put_nothing():
    cache = empty(sizes(2, 8, 2))
    first, second = cache.views
    x, wide = ones(first, 2), np.zeros((2, 2, 2, 5), np.float32)
    before = cache.kvc_cache.digest()
    for q, k, v, error in (
        (x, wide, x, kvc.ShapeError),
        (x, x, wide, kvc.ShapeError),
        (x[:, :1], x, x, kvc.ShapeError),
        (x, x[:1], x[:1], kvc.ShapeError),
        (x, x.astype(int), x, kvc.DtypeError),
        (x, x[0], x, kvc.ShapeError),
    ):
        with pytest.raises(error):
            first.concatenate_to_cache(q, k, v, None, None, None, None, True)
        assert cache.kvc_cache.digest() == before and first.index.tolist() == [0, 0]
    first.concatenate_to_cache(x, x, x, None, None, None, None, True)
    with pytest.raises(kvc.DtypeError):
        second.concatenate_to_cache(x, x.astype(int), x, None, None, None, None, True)
    second.concatenate_to_cache(x, x, x, None, None, None, None, True)  # the step is still open
    assert second.index.tolist() == [2, 2]


def expected(before, q_len, columns, am=None, types=None, valid=None, shows=None):
    """What each token sees, by EasyDeL's formula: bool [rows, q_len, columns]."""
    rows = len(before)
    valid = [q_len] * rows if valid is None else valid
    mask = np.zeros((rows, q_len, columns), bool)
    for b in range(rows):
        for i in range(valid[b]):
            for j in range(before[b] + valid[b]):
                new = j - before[b]
                typed = types is not None and new >= 0 and types[b][i] == types[b][new] != 0
                if shows is None:
                    sees = j <= before[b] + i
                else:
                    sees = shows[b % len(shows), 0, before[b] + i, j]
                mask[b, i, j] = (sees or typed) and (am is None or bool(am[b][j]))
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_random_steps_see_what_the_formula_says(seed):
    random = np.random.default_rng(seed)
    rows, length = int(random.integers(1, 4)), 24
    cache = empty(sizes(rows, length, 2))
    model = Model(cache, seed)
    before = np.zeros(rows, int)
    held = [[np.zeros((rows, length, 2, 4), np.float32) for _ in "kv"] for _ in range(2)]
    while True:
        q_len = int(random.integers(1, 6))
        valid = random.integers(0, q_len + 1, rows) if random.random() < 0.5 else None
        counts = np.full(rows, q_len) if valid is None else valid
        if (before + counts).max() > length:
            break
        am = random.random((rows, length)) < 0.8 if random.random() < 0.5 else None
        types = random.integers(0, 3, (rows, q_len)) if random.random() < 0.5 else None
        shows, kind = None, random.integers(4)
        causal = [True, tril(32), None, random.random((1 + (rows - 1) * (seed % 2), 1, 32, 32)) < 0.6]
        if kind == 2:
            shows = np.ones((1, 1, 32, 32), bool)
        elif kind == 3:
            shows = causal[3]
        options = ed.TransformerMetadata(valid=valid)
        results, given = model.step(q_len, am, causal[kind], types, options)
        for (k, v, mask), (_, new_k, new_v), parts in zip(results, given, held):
            wanted = expected(before, q_len, length, am, types, counts, shows)
            np.testing.assert_array_equal(mask[:, 0], wanted)
            for row in range(rows):
                begin, end = before[row], before[row] + counts[row]
                parts[0][row, begin:end] = new_k[row, : counts[row]]
                parts[1][row, begin:end] = new_v[row, : counts[row]]
            np.testing.assert_array_equal(k, parts[0])
            np.testing.assert_array_equal(v, parts[1])
        before = before + counts
        assert cache.views[1].index.tolist() == before.tolist()
        bias = cache.views[0].attention_bias()
        assert bias.dtype == np.float32
        np.testing.assert_array_equal(bias == 0, results[0][2])


def test_options_of_a_step():
    cache = empty(sizes(2, 8, 1))
    view = cache.views[0]
    x = ones(view, 4)
    mask = np.ones((2, 8), bool)
    mask[0, 3:] = mask[1, 1:] = False
    options = ed.TransformerMetadata(postpadded=True)
    _, _, seen = view.concatenate_to_cache(x, x, x, None, options, mask, None, tril(8))
    assert view.index.tolist() == [3, 1]
    assert seen.sum(axis=3)[:, 0].tolist() == [[1, 2, 3, 0], [1, 0, 0, 0]]
    back = ed.TransformerMetadata(index=np.array([2, 1]))
    view.concatenate_to_cache(x[:, :1], x[:, :1], x[:, :1], None, back, None, None, True)
    assert view.index.tolist() == [3, 2]
    back, two = back.replace(index=1), x[:, :2]
    view.concatenate_to_cache(two, two, two, None, back, None, None, True)
    assert view.index.tolist() == [3, 3]
    with pytest.raises(kvc.InvalidArgument):
        view.concatenate_to_cache(x, x, x, None, back.replace(index=9), None, None, True)
    with pytest.raises(TypeError):
        view.concatenate_to_cache(x, x, x, None, back.replace(index=0.5), None, None, True)
    holes = np.array([[1, 0, 1, 0, 0, 0, 0, 0]] * 2)
    with pytest.raises(kvc.InvalidArgument):
        view.concatenate_to_cache(x, x, x, None, options.replace(index=0), holes, None, True)


@pytest.mark.parametrize(
    "changes, error",
    [
        (dict(causal_mask=tril(3, 8)), kvc.InvalidArgument),  # no row for the last token
        (dict(causal_mask=tril(8, 3)), kvc.ShapeError),
        (dict(causal_mask=tril(8)[0]), kvc.ShapeError),
        (dict(causal_mask=np.concatenate([tril(8)] * 3)), kvc.ShapeError),
        (dict(attention_mask=np.ones((2, 3))), kvc.ShapeError),
        (dict(attention_mask=np.ones((2, 9))), kvc.ShapeError),
        (dict(attention_mask=np.ones((2, 2, 4, 8))), ValueError),
        (dict(attention_mask=np.array([[0.0, -np.inf] * 4] * 2)), kvc.InvalidArgument),
        (dict(quantizer="8bit"), kvc.InvalidArgument),
        (dict(quantizer="3bit"), kvc.InvalidArgument),
        (dict(token_type_ids=np.zeros((2, 3), int)), ValueError),
    ],
)
def test_wrong_arguments_are_refused(changes, error):
    cache = empty()
    x = ones(cache.views[0], 4)
    arguments = dict(quantizer=None, attention_mask=None, causal_mask=True, token_type_ids=None)
    before = cache.kvc_cache.digest()
    with pytest.raises(error):
        cache.views[0].concatenate_to_cache(
            x, x, x, cache_metadata=None, partition_manager=None, **{**arguments, **changes}
        )
    assert cache.kvc_cache.digest() == before


def test_masks_that_are_broadcast_and_variables():
    class Variable:
        value = tril(8)

    cache = empty()
    x = ones(cache.views[0], 2)
    hides = np.array([[1, 0, 1, 1, 1, 1, 1, 1]])
    for mask in (hides, hides[None, None], np.broadcast_to(hides, (2, 1, 2, 8)), hides * 1.0):
        _, _, seen = cache.views[0].concatenate_to_cache(x, x, x, None, None, mask, None, Variable())
        assert seen[..., :2].tolist() == [[[[1, 0], [1, 0]]]] * 2
        cache.abort()


def test_update_causal_mask_and_create_attention_bias():
    metadata = sizes(update_causal_mask=False, create_attention_bias=False)
    cache = empty(metadata)
    view = cache.views[0]
    x = ones(view, 2)
    with cache.kvc_cache.begin_rows(2):  # not causal by default
        cache.kvc_cache.put(0, x, x)
        assert cache.kvc_cache.mask(0).dtype == bool and cache.kvc_cache.mask(0)[..., :2].all()
    view.concatenate_to_cache(x, x, x, None, None, None, None, True)
    bias = view.attention_bias()
    assert bias.dtype == bool and bias[0, 0].tolist() == [[1, 1, 1, 0, *[0] * 4], [1] * 4 + [0] * 4]
    cache.commit()
    with pytest.raises(kvc.BadState):
        view.attention_bias()
