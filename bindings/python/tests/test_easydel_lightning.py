"""kvc.easydel: lightning caches."""

import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from easydel_cases import figures, tril


def made(n_layers=1, batch=None, **options):
    metadata = ed.LightningCacheMetaData.create(None, batch)
    return ed.LightningCache.init_cache(n_layers, metadata, **options)


def step(cache, q, k, v, **arguments):
    """A step of all layers with the same tokens; returns the outputs and what the last view returned."""
    for view in cache.views:
        result = view.concatenate_to_cache(q, k, v, **arguments)
    return result


def tokens(case, n=None):
    """Queries, keys and values of the figures, the same in both heads: [1, n, 2, 2]."""
    return [
        np.repeat(np.array(case[name], np.float32)[None, :n, None, :], 2, axis=2) for name in "qkv"
    ]


def definition(q, k, v, slopes, counts, shows, scale=1.0):
    """Outputs and states of one row from nothing, in double. counts: tokens that are not padding."""
    n, heads, group = len(k), k.shape[1], q.shape[1] // k.shape[1]
    out = np.zeros((n, q.shape[1], v.shape[2]))
    state = np.zeros((heads, k.shape[2], v.shape[2]))
    for i in range(n):
        if not counts[i]:
            continue
        for h in range(heads):
            state[h] *= np.exp(-float(slopes[h]))
            if shows[i]:
                state[h] += np.outer(k[i, h].astype(float), v[i, h])
            for g in range(group):
                out[i, h * group + g] = scale * (q[i, h * group + g].astype(float) @ state[h])
    return out, state


@pytest.mark.parametrize("split", [5, 3, 1])
def test_outputs_and_states_of_the_figures(split):
    case = figures()["L_lightning"]
    q, k, v = tokens(case)
    slopes = [head["slope"] for head in case["heads"]]
    cache = made(slopes=slopes)
    outs = []
    for begin in range(0, 5, split):
        part = [each[:, begin : begin + split] for each in (q, k, v)]
        out, states, mask = step(cache, *part)
        outs.append(out)
        assert mask.shape == part[0].shape[:2] and mask.all()
        if split != 5 and begin + split == 3:
            wanted = [head["state_after3"] for head in case["heads"]]
            np.testing.assert_allclose(states[0], wanted, rtol=1e-6)
    outs = np.concatenate(outs, axis=1)
    for h, head in enumerate(case["heads"]):
        np.testing.assert_allclose(outs[0, :, h], head["out"], rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(states[0, h], head["state"], rtol=2e-6, atol=1e-7)
    assert cache[0].index.tolist() == [5]


@pytest.mark.parametrize("shape", ["2d", "4d", "positions", "token_mask"])
def test_a_hidden_token_of_the_figures(shape):
    case, masked = figures()["L_lightning"], figures()["L_masked_token1"]
    cache = made(slopes=[head["slope"] for head in case["heads"]])
    mask = np.array([[1, 0, 1, 1, 1]])
    wide = np.pad(mask, ((0, 0), (0, 3)))
    arguments = {
        "2d": dict(attention_mask=mask),
        "4d": dict(attention_mask=np.tri(5, 8, 3)[None, None] * wide[None, None]),
        "positions": dict(attention_mask=wide),
        "token_mask": dict(cache_metadata=ed.LightningMetadata(token_mask=mask)),
    }[shape]
    out, states, counted = step(cache, *tokens(case), **arguments)
    np.testing.assert_allclose(out[0, :, 0], masked["out"], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(states[0, 0], masked["state"], rtol=2e-6, atol=1e-7)
    assert counted.tolist() == [[True, False, True, True, True]]


def test_slopes_of_the_figures():
    for heads, slopes in figures()["L_slopes"].items():
        heads = int(heads)
        x = np.ones((1, 1, heads, 2), np.float32)
        cache = made()
        step(cache, x, x, x)
        _, states, _ = step(cache, x, x, x)
        np.testing.assert_allclose(states[0, :, 0, 0], 1 + np.exp(-np.array(slopes)), rtol=1e-6)
    case = figures()["L_minimax_layer"]
    x = np.ones((1, 1, case["H"], 1), np.float32)
    cache = made(case["num_layers"], slopes="minimax")
    for _ in range(2):
        step(cache, x, x, x)
    base = 2.0 ** -np.arange(1, case["H"] + 1)
    for layer, factor in zip(case["layer_idx"], case["factor"]):
        slopes = -np.log(cache[layer].key_value[0, :, 0, 0].astype(float) - 1)
        np.testing.assert_allclose(slopes, base * factor, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("seed", range(8))
def test_random_steps_agree_with_the_definition(seed):
    random = np.random.default_rng(seed)
    rows, heads, group, dim_k, dim_v = 2, int(random.integers(1, 4)), 2, 5, 3
    slopes = random.random((2, heads)).astype(np.float32)
    cache = made(2, slopes=slopes, scale=0.5)
    texts = [[[], [], [], [], []] for _ in range(rows)]  # q, k, v, counts, shows
    outs = [[[] for _ in range(rows)] for _ in range(2)]
    for _ in range(4):
        q_len = int(random.integers(1, 7))
        q = random.standard_normal((rows, q_len, heads * group, dim_k), dtype=np.float32)
        k = random.standard_normal((rows, q_len, heads, dim_k), dtype=np.float32)
        v = random.standard_normal((rows, q_len, heads, dim_v), dtype=np.float32)
        valid = random.integers(0, q_len + 1, rows) if random.random() < 0.5 else None
        mask = random.random((rows, q_len)) < 0.7 if random.random() < 0.5 else None
        options = ed.LightningMetadata(valid=valid)
        counts = np.arange(q_len) < (np.full(rows, q_len) if valid is None else valid)[:, None]
        shows = counts if mask is None else counts & mask
        for layer, view in enumerate(cache.views):
            out, states, counted = view.concatenate_to_cache(q, k, v, mask, cache_metadata=options)
            np.testing.assert_array_equal(counted, shows)
            for row in range(rows):
                outs[layer][row].append(out[row])
                assert not out[row][~counts[row]].any()
        for row in range(rows):
            for part, new in zip(texts[row], (q[row], k[row], v[row], counts[row], shows[row])):
                part.append(new)
    for layer in range(2):
        for row in range(rows):
            q, k, v, counts, shows = map(np.concatenate, texts[row])
            wanted, state = definition(q, k, v, slopes[layer], counts, shows, 0.5)
            found = np.concatenate(outs[layer][row])
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(cache[layer].key_value[row], state, rtol=1e-4, atol=1e-4)
            assert cache[layer].index[row] == counts.sum()


# ---- Making and steps ----------------------------------------------------------------------------


def test_storage_is_made_at_the_first_use():
    metadata = ed.LightningCacheMetaData.create(
        partition_axis=ed.PartitionAxis(), batch_size=2, num_heads=16, head_dim=64
    )
    cache = ed.LightningCache.init_cache(num_hidden_layers=12, metadata=metadata)
    assert len(cache) == 12 and cache[3].layer_index == 3 and cache[3].metadata is metadata
    assert cache[3].key_value is None and cache[3].index is None
    assert repr(cache[3]) == "LightningCacheView(key_value=None, layer_index=3)"
    with pytest.raises(kvc.InvalidHandle):
        cache.kvc_cache
    x = np.ones((2, 3, 16, 64), np.float32)
    step(cache, x, x, x)
    assert cache[3].key_value.shape == (2, 16, 64, 64) and cache[3].key_value.dtype == np.float32
    assert str(cache[3]) == "LightningCacheView(key_value=(2, 16, 64, 64), layer_index=3)"
    assert cache.kvc_cache.kind == "lightning"
    with pytest.raises(kvc.ShapeError):
        step(cache, x[:1], x[:1], x[:1])
    with pytest.raises(kvc.NotSupported):  # a state has one number of heads
        other = ed.LightningCacheMetaData.create(None, 2, key_heads=2, value_heads=1)
        step(ed.LightningCache.init_cache(1, other), x, x, x)


def test_an_empty_cache():
    cache = ed.LightningCache.init_empty(3)
    assert cache.views == [None] * 3 and repr(cache) == "LightningCache(\n  None\n  None\n  None\n)"
    for call in (cache.commit, cache.abort, cache.to_pure, lambda: cache.insert(made(), 0)):
        with pytest.raises(kvc.InvalidHandle):
            call()
    with pytest.raises(kvc.InvalidHandle):
        cache[0] = ed.LightningCacheView(None, None)
    with pytest.raises(TypeError, match="no option 'slope'"):
        made(slope=1)


def test_layers_take_part_in_steps():
    cache = made(2)
    x = np.ones((1, 2, 1, 2), np.float32)
    cache[0].concatenate_to_cache(x, x, x)
    assert cache[0].index.tolist() == [2] and cache[1].index.tolist() == [0]
    with pytest.raises(kvc.BadState):
        cache[0].concatenate_to_cache(x, x, x)
    cache[1].concatenate_to_cache(x, x, x)
    cache[0].concatenate_to_cache(x, x, x)
    cache.abort()
    assert [view.index.tolist() for view in cache.views] == [[2], [2]]


@pytest.mark.parametrize(
    "arguments, error",
    [
        (dict(causal_mask=False), kvc.NotSupported),
        (dict(causal_mask=np.ones((1, 1, 4, 4))), kvc.NotSupported),
        (dict(causal_mask=tril(1, 8)), kvc.InvalidArgument),
        (dict(token_type_ids=[[1, 1]]), kvc.NotSupported),
        (dict(quantizer="8bit"), kvc.NotSupported),
        (dict(attention_mask=np.ones((1, 1))), kvc.ShapeError),
        (dict(attention_mask=np.ones((3, 2))), kvc.ShapeError),
        (dict(attention_mask=np.array([[0.5, 1]])), kvc.InvalidArgument),
    ],
)
def test_what_linear_attention_does_not_do(arguments, error):
    cache = made()
    x = np.ones((1, 2, 1, 2), np.float32)
    step(cache, x, x, x)
    cache.commit()
    before = cache.kvc_cache.digest()
    with pytest.raises(error):
        step(cache, x, x, x, **arguments)
    assert cache.kvc_cache.digest() == before
    step(cache, x, x, x, causal_mask=tril(8), kv_sharding="any")


def test_wrong_shapes_are_refused():
    x = np.ones((1, 2, 2, 4), np.float32)
    for q, k, v in ((x[:, :1], x, x), (x, x, x[:, :1]), (x, x, x[:, :, :1]), (x[0], x, x)):
        with pytest.raises(kvc.ShapeError):
            step(made(), q, k, v)
    for slopes in ([1.0], [[1.0, 1.0]] * 3):
        with pytest.raises(kvc.ShapeError, match="slopes"):
            step(made(slopes=slopes), x, x, x)
    with pytest.raises(kvc.InvalidArgument):
        step(made(slopes="beta"), x, x, x)


# ---- Rows and copies -----------------------------------------------------------------------------


def filled(seed=0, batch=2, n_layers=2, **options):
    random = np.random.default_rng(seed)
    cache = made(n_layers, batch, **options)
    x = random.standard_normal((batch, 4, 2, 3), dtype=np.float32)
    step(cache, x, x, x, cache_metadata=ed.LightningMetadata(valid=np.arange(1, batch + 1)))
    cache.commit()
    return cache


def test_rows_are_inserted():
    cache, one = filled(0), filled(1, 1)
    assert cache.insert(one, 1) is cache
    assert cache[0].index.tolist() == [1, 1]
    np.testing.assert_array_equal(cache[1].key_value[1], one[1].key_value[0])
    for slot in (-1, 2):
        with pytest.raises(kvc.InvalidArgument):
            cache.insert(one, slot)
    with pytest.raises(kvc.InvalidArgument):
        cache.insert(filled(1, 1, slopes=[0.5, 0.25]), 0)
    with pytest.raises(kvc.InvalidHandle):
        cache.insert(made(), 0)
    with pytest.raises(kvc.NotSupported):
        cache.insert(one, 0, "8bit")
    with pytest.raises(TypeError):
        cache.insert(one[0], 0)


def test_states_survive():
    cache = filled(3, slopes="lightning2")
    pure, metadata = cache.to_pure()
    for again in (
        ed.LightningCache.from_pure(pure, metadata, slopes="lightning2"),
        ed.LightningCache.from_json(cache.to_json()),
        ed.LightningCache([view.replace() for view in cache.views], slopes="lightning2"),
    ):
        assert again[0].index.tolist() == [1, 2] and again[1].layer_index == 1
        assert again.kvc_cache.digest() == cache.kvc_cache.digest()
        x = np.ones((2, 1, 2, 3), np.float32)
        other = ed.LightningCache.from_pure(pure, metadata, slopes="lightning2")
        for found, wanted in zip(step(again, x, x, x), step(other, x, x, x)):
            np.testing.assert_array_equal(found, wanted)
    view = ed.LightningCacheView.from_json(cache[1].to_json())
    np.testing.assert_array_equal(view.key_value, cache[1].key_value)
    assert view.metadata == metadata and view.index.tolist() == [1, 2]
    lazy = ed.LightningCache.from_json(made(2, slopes=[0.5]).to_json())
    assert lazy[0].key_value is None and len(lazy) == 2
    with pytest.raises(kvc.InvalidArgument):  # a state of a row that is empty
        ed.LightningCache.from_pure([[pure[0][0], np.array([0, 2])]], metadata)


def test_records_and_views():
    cache, other = filled(1), filled(2)
    record = cache[0].replace(layer_index=5)
    assert record.layer_index == 5 and record.replace() is record
    assert record.index.tolist() == [1, 2]
    other[0] = record
    other[1] = cache[1]
    np.testing.assert_array_equal(other[0].key_value, cache[0].key_value)
    assert other.kvc_cache.digest() == cache.kvc_cache.digest()
    other[1] = other[1]
    other[1].key_value = np.zeros_like(record.key_value)
    assert not other[1].key_value.any()
    with pytest.raises(kvc.InvalidArgument):
        other[0] = record.replace(index=np.array([9, 9]))
    with pytest.raises(TypeError):
        other[0] = 3
    with pytest.raises(kvc.InvalidHandle):
        record.concatenate_to_cache(None, None, None)
    with pytest.raises(kvc.InvalidHandle):
        made()[0].key_value = record.key_value
    assert cache.replace() is cache and cache.replace(views=cache.views).kvc_cache is cache.kvc_cache
    alone = ed.LightningCacheView.init(cache[0].metadata, 4, slopes=[0.1])
    x = np.ones((2, 1, 1, 3), np.float32)
    alone.concatenate_to_cache(x, x, x)
    assert alone.layer_index == 4 and alone.key_value.shape == (2, 1, 3, 3)
    for changes in (dict(index=np.array([1, 1])), dict(metadata=None)):
        with pytest.raises(kvc.InvalidArgument, match=next(iter(changes))):
            ed.LightningCache([record, cache[1].replace(**changes)])
    with pytest.raises(kvc.ShapeError):
        ed.LightningCache([record, record.replace(key_value=np.zeros((2, 1, 3, 3)))])
