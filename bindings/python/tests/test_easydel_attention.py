"""kvc.easydel: attention operators over arrays and straight from caches."""

import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from easydel_cases import Model, dense, empty, figures, sizes

NAMES = ["vanilla", "flash_attn2", "ring", "autoregressive_decodeattn", "auto"]
MANY = ["vanilla", "flash_attn2", "ring", "auto"]  # operators for more than one query


def create(name, **settings):
    return ed.AttentionRegistry.create(name, ed.AttentionMetadata(**settings))


def draw(seed=0, rows=2, q_len=5, kv_len=9, n_q_heads=4, heads=2, dim=8, dim_v=6):
    random = np.random.default_rng(seed)
    shapes = (q_len, n_q_heads, dim), (kv_len, heads, dim), (kv_len, heads, dim_v)
    return [random.standard_normal((rows, *shape), dtype=np.float32) for shape in shapes]


def check(output, wanted, names=("outputs", "lse")):
    """Compares an AttentionOutput with what dense() returned."""
    out, weights, lse = wanted
    parts = {"outputs": out, "weights": weights, "lse": lse}
    for name in names:
        found = getattr(output, f"attention_{name}")
        assert found.dtype == np.float32 and found.shape == parts[name].shape, name
        np.testing.assert_allclose(found, parts[name], rtol=2e-5, atol=2e-5, err_msg=name)


def causal(q_len, kv_len, window=None):
    p, j = np.arange(kv_len - q_len, kv_len)[:, None], np.arange(kv_len)
    return (j <= p) & (j > p - (window or kv_len))


# ---- Figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_decode_of_the_figures(name):
    """Over starts and index, from a cache and over arrays."""
    figure = figures()["A_decode"]
    q = np.array(figure["q"], np.float32)[None, None, None]
    k, v = (np.array(figure[each], np.float32)[None, :, None] for each in "KV")
    for case in figure["cases"]:
        wanted = case.get("kvc", case)
        seen = np.zeros((1, 1, 1, 4), bool)
        seen[..., case["start"] : case["index"]] = True
        attention = create(name)
        output = attention(q=q, k=k, v=v, mask=seen, need_weights=True)
        np.testing.assert_allclose(output.attention_outputs[0, 0, 0], wanted["out"], rtol=1e-6)
        np.testing.assert_allclose(output.attention_weights[0, 0, 0], wanted["weights"], rtol=1e-6)
        view = ed.TransformerCacheView.init(None, "f32", sizes(1, 4, 1, 1, 2), None, None)
        for token in range(case["index"]):
            new = [each[:, token : token + 1] for each in (k, v)]
            _, _, mask = view.concatenate_to_cache(q, *new, None, None, seen, None, True)
        output = attention(q, None, None, cache_view=view, need_weights=True)
        np.testing.assert_allclose(output.attention_outputs[0, 0, 0], wanted["out"], rtol=1e-6)
        np.testing.assert_allclose(output.attention_weights[0, 0, 0], wanted["weights"], rtol=1e-6)


@pytest.mark.parametrize("name", MANY)
def test_sinks_and_softcap_of_the_figures(name):
    """They are constants of the layers, which are bound to the kvc.Cache."""
    figure = figures()
    q = np.array(figure["A_decode"]["q"], np.float32)[None, None, None]
    k, v = (np.array(figure["A_decode"][each], np.float32)[None, :, None] for each in "KV")
    for constants, wanted in (
        (dict(sinks=np.array([figure["A_sink"]["sink"]], np.float32)), figure["A_sink"]),
        (dict(softcap=1.0), figure["A_softcap1"]),
    ):
        cache = empty(sizes(1, 4, 1, 1, 2))
        cache.kvc_cache.bind_attention(1, **constants)
        queries = np.repeat(q, 4, axis=1)
        cache[0].concatenate_to_cache(queries, k, v, None, None, None, None, None)
        output = create(name)(queries, cache_view=cache[0], need_weights=True)
        np.testing.assert_allclose(output.attention_outputs[0, 3, 0], wanted["out"], rtol=1e-6)
        np.testing.assert_allclose(output.attention_weights[0, 0, 3], wanted["weights"], rtol=1e-6)


# ---- Over arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_options_agree_with_the_definition(name, seed):
    random = np.random.default_rng(seed)
    q_len = 1 if name in ("autoregressive_decodeattn",) else int(random.integers(1, 6))
    q, k, v = draw(seed, q_len=q_len)
    shape = (2, 1, q_len, 9)
    mask = random.random(shape) < 0.7
    biases = [
        random.standard_normal((2, heads, q_len, 9)).astype(np.float32) for heads in (1, 2, 4)
    ]
    segments = random.integers(0, 2, (2, q_len)), random.integers(0, 2, (2, 9))
    same = segments[0][:, None, :, None] == segments[1][:, None, None, :]
    attention = create(name)
    check(attention(q, k, v), dense(q, k, v))
    check(attention(q, k, v, causal=True), dense(q, k, v, causal(q_len, 9)))
    check(attention(q, k, v, mask, causal=True), dense(q, k, v, mask & causal(q_len, 9)))
    for window in (1, 2, 4):
        output = attention(q, k, v, causal=True, sliding_window=window)
        check(output, dense(q, k, v, causal(q_len, 9, window)))
    for bias, heads in zip(biases, (1, 2, 4)):
        wide = np.repeat(bias, 4 // heads, axis=1)
        check(attention(q, k, v, bias=bias), dense(q, k, v, True, wide))
        check(attention(q, k, v, mask, bias), dense(q, k, v, mask, wide))  # both count
    check(attention(q, k, v, init_bias=lambda: biases[0]), dense(q, k, v, True, biases[0]))
    check(attention(q, k, v, mask, init_bias=lambda: 1 / 0), dense(q, k, v, mask))
    check(attention(q, k, v, segment_ids=segments), dense(q, k, v, same))
    check(attention(q, k, v, mask, segment_ids=segments), dense(q, k, v, mask & same))
    output = attention(q, k, v, mask, need_weights=True)
    check(output, dense(q, k, v, mask), ("outputs", "weights", "lse"))
    hidden = np.zeros(shape, bool)
    check(attention(q, k, v, hidden), dense(q, k, v, hidden))
    scaled = create(name, softmax_scale=0.25)
    check(scaled(q, k, v), dense(q, k, v, scale=0.25))


def test_weights_are_returned_where_they_are_asked_for():
    q, k, v = draw()
    assert create("vanilla")(q, k, v).attention_weights is not None
    assert create("flash_attn2")(q, k, v).attention_weights is None


@pytest.mark.parametrize("name", MANY)
def test_bounds_of_arrays_grow(name):
    attention = create(name)
    for seed, shape in enumerate([(1, 1, 3, 2), (3, 4, 5, 4), (2, 2, 30, 2), (1, 1, 1, 2)]):
        q, k, v = draw(seed, *shape)
        check(attention(q, k, v), dense(q, k, v))
    q, k, v = draw(9, heads=4, dim=16)
    check(attention(q, k, v), dense(q, k, v))


@pytest.mark.parametrize("blocks", [(16, 384), (100, 1), (384, 1536)])
def test_blocks_change_no_key(blocks):
    q, k, v = draw(q_len=33, kv_len=700)
    attention = create("blockwise", blocksize_q=blocks[0], blocksize_k=blocks[1], blocksize_b=1)
    check(attention(q, k, v, causal=True), dense(q, k, v, causal(33, 700)))


def test_blocks_that_an_operator_lacks():
    q, k, v = draw(q_len=1)
    for name, block in (("vanilla", "q"), ("ring", "k"), ("decode", "q"), ("flash", "b")):
        attention = create(name, **{f"blocksize_{block}": 16})
        with pytest.raises(kvc.NotSupported, match=f"block_{block}"):
            attention(q, k, v)
    with pytest.raises(kvc.NotSupported, match="block_q"):
        create("flash", blocksize_q=512)(q, k, v)

    class Config:
        blocksize_q, blocksize_k, blocksize_b = 512, 1024, 1

    metadata = ed.AttentionMetadata.from_config(Config, None)
    for name in NAMES:  # those of a configuration are for operators that have such blocks
        check(ed.AttentionRegistry.create(name, metadata)(q, k, v), dense(q, k, v))
    with pytest.raises(kvc.NotSupported):
        ed.AttentionRegistry.create("ring", metadata.replace(blocksize_k=64))(q, k, v)


@pytest.mark.parametrize("scan", [True, False])
def test_stretches_of_a_ring(scan):
    q, k, v = draw(q_len=3, kv_len=300)
    output = create("ring", scan_ring_attention=scan)(q, k, v, causal=True)
    check(output, dense(q, k, v, causal(3, 300)))
    other = create("ring", scan_ring_attention=not scan)(q, k, v, causal=True)
    np.testing.assert_array_equal(other.attention_outputs, output.attention_outputs)


def test_types_that_may_be_asked_for():
    q, k, v = draw()
    for name in MANY:
        for dtype in ("f32", "bf16", np.float16):
            output = create(name, runtime_dtype=dtype, runtime_softmax_dtype=dtype)(q, k, v)
            check(output, dense(q, k, v))
    exact = create("vanilla", runtime_softmax_dtype=np.float64)(q, k, v)
    check(exact, dense(q, k, v))
    with pytest.raises(kvc.NotSupported):
        create("flash", runtime_softmax_dtype="f64")(q, k, v)
    check(create("auto", runtime_softmax_dtype="f64")(q, k, v), dense(q, k, v))


# ---- Dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla", "auto"])
def test_dropout(name):
    q, k, v = draw(q_len=8, kv_len=8)
    attention = create(name, dropout_prob=0.25)
    check(attention(q, k, v, causal=True), dense(q, k, v, causal(8, 8)))
    seed = 3 << 32 | 5
    _, weights, _ = dense(q, k, v, causal(8, 8))
    kept = np.stack(
        [
            kvc.dropout_mask(
                seed,
                0.25,
                n_heads=4,
                q_positions=range(8),
                k_positions=range(8),
                layer=2,
                sequence=row,
            )
            for row in range(2)
        ]
    )
    wanted = np.where(kept, weights / 0.75, 0)
    for key in (seed, np.array([3, 5], np.uint32)):
        output = attention(
            q, k, v, causal=True, deterministic=False, dropout_rng=key, layer=2, need_weights=True
        )
        np.testing.assert_allclose(output.attention_weights, wanted, rtol=1e-4, atol=1e-6)
    for key in (None, np.zeros(3, np.uint32), np.zeros(2)):
        with pytest.raises(kvc.InvalidArgument, match="dropout_rng"):
            attention(q, k, v, deterministic=False, dropout_rng=key)
    with pytest.raises(kvc.NotSupported, match="dropout"):
        create("flash", dropout_prob=0.25)(q, k, v, deterministic=False, dropout_rng=1)
    none = create("flash")(q, k, v, deterministic=False, dropout_rng=1)  # keeps all
    check(none, dense(q, k, v))


def test_dropout_from_a_cache_is_that_of_positions():
    cache = empty(sizes(2, 16, 2))
    model = Model(cache)
    model.step(3)
    _, given = model.step(4)
    attention = create("vanilla", dropout_prob=0.5)
    for layer, view in enumerate(cache.views):
        q = given[layer][0]
        plain = attention(q, cache_view=view).attention_weights
        output = attention(q, cache_view=view, deterministic=False, dropout_rng=7)
        for row in range(2):
            kept = kvc.dropout_mask(
                7,
                0.5,
                n_heads=4,
                q_positions=range(3, 7),
                k_positions=range(16),
                layer=layer,
                sequence=row,
            )
            wanted = np.where(kept, plain[row] * 2, 0)
            np.testing.assert_allclose(output.attention_weights[row], wanted, rtol=1e-5, atol=1e-7)


# ---- From caches ---------------------------------------------------------------------------------

STORAGE = [
    dict(dtype="f32"),
    dict(dtype="bf16"),
    dict(quantizer="8bit"),
    dict(quantizer="nf4", rotate=True),
]


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", MANY)
def test_attention_straight_from_a_cache(name, storage):
    cache = empty(sizes(2, 12, 2, 2, 32), starts=[1, 0], **storage)
    model = Model(cache, 1)
    attention = create(name, softmax_scale=0.2)
    images = np.array([[0, 1, 1, 0], [2, 0, 2, 0]])
    for q_len, options in ((4, {"types": images}), (1, {}), (3, {"causal_mask": None}), (1, {})):
        for view in cache.views:
            q, k, v = model.draw(q_len)
            causal_mask, types = options.get("causal_mask", True), options.get("types")
            k, v, mask = view.concatenate_to_cache(
                q, k, v, None, None, None, None, causal_mask, types
            )
            wanted = dense(q, k, v, mask, scale=0.2)
            check(attention(q, k, v, mask, cache_view=view), wanted)
            check(attention(q=q, mask=mask.copy(), cache_view=view, need_weights=True), wanted)
            narrow = mask & (np.arange(12) % 3 != 1)
            output = attention(q, k, v, narrow, cache_view=view, need_weights=True)
            check(output, dense(q, k, v, narrow, scale=0.2), ("outputs", "weights", "lse"))


@pytest.mark.parametrize("name", MANY)
def test_options_from_a_cache(name):
    cache = empty(sizes(2, 12, 1))
    model = Model(cache, 2)
    model.step(3)
    (((k, v, mask),), ((q, _, _),)) = model.step(4)
    random = np.random.default_rng(3)
    attention, view = create(name), cache[0]
    bias = random.standard_normal((2, 2, 4, 12)).astype(np.float32)
    output = attention(q, k, v, mask, bias, cache_view=view)
    check(output, dense(q, k, v, mask, np.repeat(bias, 2, 1)))
    segments = random.integers(0, 2, (2, 4)), random.integers(0, 2, (2, 12))
    same = segments[0][:, None, :, None] == segments[1][:, None, None, :]
    output = attention(q, k, v, mask, segment_ids=segments, cache_view=view)
    check(output, dense(q, k, v, mask & same))
    positions = np.arange(3, 7)[:, None]
    for window in (1, 2, 5):
        output = attention(q, k, v, causal=True, sliding_window=window, cache_view=view)
        check(output, dense(q, k, v, mask & (np.arange(12) > positions - window)))


def test_a_mask_of_the_callers_counts_in_attention():
    """A causal_mask that is not triangular is and-ed into the attention of the step."""
    cache = empty(sizes(2, 8, 1))
    view, model = cache[0], Model(cache)
    shows = np.random.default_rng(0).random((2, 1, 8, 8)) < 0.5
    q, k, v = model.draw(4)
    k, v, mask = view.concatenate_to_cache(q, k, v, None, None, None, None, shows)
    for name in MANY:
        check(create(name)(q, k, v, cache_view=view), dense(q, k, v, mask))


def test_the_window_of_a_ring_is_its_reach():
    cache = empty(sizes(1, 6, 1), ring=True, max_batch=3, reach=3)
    model = Model(cache)
    for _ in range(5):
        (((k, v, mask),), ((q, _, _),)) = model.step(2)
    output = create("flash")(q, k, v, mask, causal=True, sliding_window=4, cache_view=cache[0])
    check(output, dense(q, k, v, mask))
    assert mask.sum() == 8
    with pytest.raises(kvc.NotSupported, match="sliding_window"):
        create("flash")(q, k, v, sliding_window=2, cache_view=cache[0])


def test_operators_of_layers_may_differ():
    """Each is bound once; binding one changes neither the cache nor other layers."""
    cache, plain = (empty(sizes(2, 16, 3, 2, 32), quantizer="8bit") for _ in range(2))
    models = Model(cache), Model(plain)
    operators = [create(name) for name in ("vanilla", "ring", "flash")]
    for q_len in (3, 1, 1):
        for layer in range(3):
            results = []
            for model, attention in zip(models, (operators[layer], create("flash"))):
                q, k, v = model.draw(q_len)
                view = model.cache[layer]
                k, v, mask = view.concatenate_to_cache(q, k, v, None, None, None, None, True)
                results.append(attention(q, k, v, mask, cache_view=view).attention_outputs)
            np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
        assert cache.kvc_cache.digest() == plain.kvc_cache.digest()
    decode = create("decode")
    for layer in range(3):
        q, k, v = models[0].draw(2)
        cache[layer].concatenate_to_cache(q, k, v, None, None, None, None, True)
    before = cache.kvc_cache.digest()
    with pytest.raises(kvc.NotSupported):  # it has no passes of two tokens
        decode(q, cache_view=cache[1])
    assert cache.kvc_cache.digest() == before and cache[0].index.tolist() == [7, 7]
    operators[0](q, cache_view=cache[0])


def test_wrong_calls_with_a_cache():
    cache = empty(sizes(2, 8, 1))
    view, attention = cache[0], create("flash")
    q, k, v = Model(cache).draw(2)
    with pytest.raises(kvc.BadState):
        attention(q, cache_view=view)
    held, _, mask = view.concatenate_to_cache(q, k, v, None, None, None, None, None)
    with pytest.raises(kvc.NotSupported, match="causal_mask=True"):
        attention(q, causal=True, cache_view=view)
    with pytest.raises(kvc.ShapeError):
        attention(q, k, v, cache_view=view)
    with pytest.raises(kvc.ShapeError):
        attention(q, held, held, segment_ids=np.zeros((2, 2)), cache_view=view)
    with pytest.raises(kvc.InvalidArgument, match="bool"):
        pair = np.zeros((2, 2)), np.zeros((2, 8))
        attention(q, mask=np.ones((2, 1, 2, 8)), segment_ids=pair, cache_view=view)
    with pytest.raises(kvc.InvalidHandle):
        attention(q, cache_view=view.replace())
    with pytest.raises(TypeError):
        attention(q, cache_view=cache)
    with pytest.raises(TypeError):
        attention(q)
    with pytest.raises(kvc.InvalidArgument):
        attention(q, k, v, sliding_window=0)
    with pytest.raises(TypeError, match="colour"):
        attention(q, k, v, colour=1)
    unequal = empty(sizes(1, 4, 1, None, None, key_heads=2, value_heads=1, key_dim=4, value_dim=4))
    q, k, v = Model(unequal).draw(1)
    unequal[0].concatenate_to_cache(q, k, v, None, None, None, None, True)
    with pytest.raises(kvc.NotSupported):
        attention(q, cache_view=unequal[0])


def test_lightning_attention():
    cache = ed.LightningCache.init_cache(2, ed.LightningCacheMetaData.create(None))
    random = np.random.default_rng(0)
    q = random.standard_normal((2, 3, 4, 5), dtype=np.float32)
    k = random.standard_normal((2, 3, 2, 5), dtype=np.float32)
    attention = create("lightning")
    with pytest.raises(kvc.BadState):
        attention(q, cache_view=cache[0])
    for view in cache.views:
        out, _, _ = view.concatenate_to_cache(q, k, k)
        np.testing.assert_array_equal(attention(q, cache_view=view).attention_outputs, out)
    with pytest.raises(kvc.BadState):  # another layer was put last
        attention(q, cache_view=cache[0])
    view = cache[1]
    for arguments in (
        dict(mask=np.ones((2, 1, 3, 3), bool)),
        dict(bias=np.ones((2, 1, 3, 3), np.float32)),
        dict(sliding_window=2),
        dict(segment_ids=np.zeros((2, 3))),
        dict(need_weights=True),
    ):
        with pytest.raises(kvc.NotSupported, match=next(iter(arguments))):
            attention(q, cache_view=view, **arguments)
    with pytest.raises(kvc.NotSupported):
        create("lightning", softmax_scale=0.5)(q, cache_view=view)
    with pytest.raises(kvc.NotSupported):
        create("flash")(q, cache_view=view)
    with pytest.raises(kvc.NotSupported):
        attention(q, cache_view=empty()[0])
    with pytest.raises(kvc.NotSupported):
        attention(q, k, k)
