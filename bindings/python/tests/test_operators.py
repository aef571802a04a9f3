"""Operators by name: the registry, settings, layers that attend with them, and attention without a cache."""

import copy
import threading

import numpy as np
import pytest

import kvc
import reference

BOUNDS = dict(max_rows=2, max_q_len=6, max_kv_len=9, n_kv_heads=2, max_q_heads=4, head_dim=16)
NAMES = ["flash", "vanilla", "decode", "ring", "lightning"]


@pytest.fixture
def draw(random):
    """Random (q, k, v) without a cache."""

    def make(q_len=5, kv_len=9, rows=2, dim_v=16):
        shapes = [(rows, q_len, 4, 16), (rows, kv_len, 2, 16), (rows, kv_len, 2, dim_v)]
        return [random.standard_normal(shape, dtype=np.float32) for shape in shapes]

    return make


def test_the_registry(device):
    found = kvc.operators(device)
    infos = list(found)
    assert len(found) == len(infos)
    assert [info.name for info in infos if info.name == info.canonical] == NAMES
    aliases = {info.name: info.canonical for info in infos}
    assert aliases["sdpa"] == "flash" and aliases["autoregressive_decodeattn"] == "decode"
    flash, vanilla = found.find("flash_attn2"), found.find("vanilla")
    assert (flash.name, flash.canonical, flash.devices) == ("flash_attn2", "flash", {"cpu"})
    assert vanilla.features - flash.features == {"dropout"} and "f64" in vanilla.softmax_dtypes
    assert {"f32", "q8_0", "nf4"} <= flash.storage and "f32" in flash.runtime_dtypes
    assert found.find("decode").modes == {"autoregressive"}
    assert repr(found).startswith("<kvc.Operators flash, ")
    with pytest.raises(kvc.NotFound, match="no operator cudnn; it has flash, "):
        found.find("cudnn")
    with pytest.raises(TypeError, match="name must be a string"):
        found.find(1)


def test_who_can(device):
    found = kvc.operators(device)
    assert found.supports(mode="prefill", features=["window", "sinks"]) == "flash"
    assert found.supports(mode="train", features="dropout", softmax_dtype="f64") == "vanilla"
    assert (
        found.supports(
            "sdpa", mode="prefill", dtype_k="q8_0", dtype_v="f16", n_q_heads=8, n_kv_heads=2
        )
        == "flash"
    )
    with pytest.raises(kvc.NotSupported, match="prefill"):
        found.supports("decode", mode="prefill")
    with pytest.raises(kvc.NotSupported, match="dropout"):
        found.supports("flash", mode="train", features=["dropout"])
    with pytest.raises(
        kvc.InvalidArgument, match="features names 'colour', which is not one of mask, "
    ):
        found.supports(features=["colour"])
    with pytest.raises(kvc.InvalidArgument, match="mode names 'decode'"):
        found.supports(mode="decode")
    with pytest.raises(kvc.DtypeError, match="dtype_k 'int4' is not one of"):
        found.supports(dtype_k="int4")
    with pytest.raises(TypeError, match="did you mean features"):
        found.supports(feature=["mask"])


def test_settings(device):
    base = kvc.OperatorSettings(softmax_dtype="f64", dropout_prob=0.25, head_dim=8, scan=False)
    assert kvc.OperatorSettings(dropout_prob=0.5).resolve(base) == kvc.OperatorSettings(
        "f32", "f64", dropout_prob=0.5, head_dim=8, scan=False
    )
    assert kvc.OperatorSettings().resolve() == kvc.OperatorSettings("f32", "f32")
    multiple = kvc.operators(device).find("flash").block_k_multiple
    with kvc.Operator("sdpa", block_k=multiple - 1, **BOUNDS, device=device) as operator:
        assert operator.settings.block_k == multiple
        assert operator.settings.max_q_len == 6 and operator.settings.head_dim_v in (0, 16)
        assert (operator.info.name, operator.info.canonical) == ("sdpa", "flash")
        assert operator.device is device and repr(operator) == "<kvc.Operator sdpa>"
        for copying in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a kvc.Operator cannot be copied"):
                copying(operator)
    operator.close()
    assert operator.closed and repr(operator) == "<kvc.Operator closed>"
    for call in (lambda: operator.info, lambda: operator.settings, operator.__enter__):
        with pytest.raises(kvc.InvalidHandle, match="the operator is closed"):
            call()
    with kvc.Operator("ring", runtime_dtype="bf16", device=device) as rounding:
        assert rounding.settings.runtime_dtype == "bf16"
    base = kvc.OperatorSettings(softmax_dtype="f64", dropout_prob=0.25)
    with kvc.Operator("vanilla", base=base, device=device) as derived:
        assert derived.settings.softmax_dtype == "f64" and derived.settings.dropout_prob == 0.25


@pytest.mark.parametrize(
    "name, settings, error, message",
    [
        ("cudnn", {}, kvc.NotFound, "it has flash"),
        ("flash", dict(block_b=2), kvc.NotSupported, "block_b"),
        ("flash", dict(softmax_dtype="f64"), kvc.NotSupported, "f64"),
        ("vanilla", dict(stretches=2), kvc.NotSupported, "stretches"),
        ("flash", dict(runtime_dtype="q8_0"), kvc.DtypeError, "runtime_dtype 'q8_0' is not one of"),
        ("flash", dict(dropout_prob=1.0), kvc.InvalidArgument, "dropout_prob"),
        ("flash", dict(max_rows=2), kvc.InvalidArgument, "max_q_len"),
        ("flash", {**BOUNDS, "max_rows": 1 << 28}, kvc.SizeOverflow, "max_rows"),
        ("flash", dict(block_q=1.5), TypeError, "block_q must be an integer, not float"),
        ("flash", dict(blocks=1), TypeError, "did you mean block_"),
        (1, {}, TypeError, "name must be a string"),
    ],
)
def test_wrong_settings(device, name, settings, error, message):
    with pytest.raises(error, match=message):
        kvc.Operator(name, **settings, device=device)


@pytest.mark.parametrize("name", ["flash", "vanilla", "ring"])
def test_attention_without_a_cache(device, draw, name):
    q, k, v = draw(dim_v=8)
    slopes, sinks = np.array([0.5, 0.25, 0.1, 0]), np.array([0.3, -1, 2, 0])
    lse = np.empty((2, 5, 4), np.float32)
    with kvc.Operator(name, **{**BOUNDS, "head_dim_v": 8}, device=device) as operator:
        out = operator.forward(
            q,
            k,
            v,
            causal=True,
            sliding_window=4,
            softcap=5.0,
            alibi_slopes=slopes,
            sinks=sinks,
            lse=lse,
        )
        assert out.shape == (2, 5, 4, 8) and out.dtype == np.float32
        for row in range(2):
            wanted, sums = reference.attention(
                q[row],
                k[row],
                v[row],
                range(4, 9),
                range(9),
                reach=3,
                softcap=5.0,
                slopes=slopes,
                sinks=sinks,
            )
            np.testing.assert_allclose(out[row], wanted, atol=2e-5)
            np.testing.assert_allclose(lse[row], sums, atol=2e-5)
        into = np.empty((2, 5, 4, 8), np.float16)
        assert operator.forward(q, k, v, into, chunk=3, causal=True, query_offset=0) is into
        for row in range(2):
            wanted, _ = reference.attention(q[row], k[row], v[row], range(5), range(9), chunk=3)
            np.testing.assert_allclose(into[row], wanted, atol=2e-3)


def test_arguments_of_forward(device, draw):
    q, k, v = draw()
    flash = kvc.Operator("flash", **BOUNDS, device=device)
    for arguments, error, message in (
        (dict(reach=0), kvc.InvalidArgument, "reach 0 is below 1"),
        (dict(reach=1, sliding_window=2), kvc.InvalidArgument, "mean the same"),
        (dict(query_offset=-1), kvc.InvalidArgument, "query_offset is -1"),
        (dict(chunk=-1), kvc.InvalidArgument, "chunk"),
        (dict(dropout_seed=1), kvc.NotSupported, "dropout"),
        (dict(dropout_seed=-1), kvc.InvalidArgument, "dropout_seed is -1"),
        (dict(sinks=[1.0]), kvc.InvalidArgument, r"sinks has shape \(1,\), not \(4,\)"),
        (
            dict(mask=np.ones((5, 9), np.uint8)),
            kvc.DtypeError,
            r"mask is uint8; .* mask.view\(bool\)",
        ),
        (dict(out=q), kvc.InvalidArgument, "overlap"),
        (dict(q=q[:, :, 0]), kvc.ShapeError, "q has 3"),
        (dict(k=np.concatenate([k, k], 1)), kvc.ShapeError, "max_kv_len"),
        (dict(v=v[..., :7]), kvc.ShapeError, "v has shape"),
    ):
        with pytest.raises(error, match=message):
            flash.forward(**{"q": q, "k": k, "v": v, **arguments})
    with pytest.raises(kvc.NotSupported, match="without bounds"):
        kvc.Operator("flash", device=device).forward(q, k, v)
    with pytest.raises(kvc.NotSupported, match="train"):
        kvc.Operator("decode", **BOUNDS, device=device).forward(q, k, v)
    flash.close()
    with pytest.raises(kvc.InvalidHandle, match="the operator is closed"):
        flash.forward(q, k, v)


def test_calls_on_an_operator_exclude_each_other(device, draw):
    """Both threads get what one alone gets, or Busy."""
    q, k, v = draw()
    operator = kvc.Operator("vanilla", **BOUNDS, device=device)
    wanted, seen = operator.forward(q, k, v), []

    def run():
        for _ in range(20):
            try:
                seen.append(np.array_equal(operator.forward(q, k, v), wanted))
            except kvc.Busy:
                seen.append(True)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(seen) == 40 and all(seen)


def test_layers_attend_with_an_operator(make, kvq, device):
    """Of a layer and of modes; what one lacks is named when it is bound or called."""
    cache = make()
    vanilla = kvc.Operator("vanilla", softmax_dtype="f64", dropout_prob=0.5, device=device)
    decode = kvc.Operator("decode", device=device)
    cache.bind_operator(vanilla, layers=0)
    cache.bind_operator(decode, layers=range(1, 2), modes="autoregressive")
    cache.bind_operator(None, layers=(1, 2), modes=["prefill"])
    vanilla.close()  # the layer keeps what it needs
    k, v, q = kvq(4)
    with cache.forward(range(4)):
        outs = [cache.put_attention(layer, k, v, q) for layer in range(2)]
        np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)
        weights = np.empty((4, 4, 4), np.float32)
        dropped = cache.attention(0, q, weights=weights, dropout_seed=7)
        kept = kvc.dropout_mask(7, 0.5, n_heads=4, q_positions=range(4), k_positions=range(4))
        assert ((weights != 0) <= kept).all() and not np.array_equal(dropped, outs[0])
        assert np.array_equal(dropped, cache.attention(0, q, dropout_seed=7))
        with pytest.raises(kvc.NotSupported, match='layer 1 has none for "train"'):
            cache.attention(1, q, dropout_seed=7)
        with pytest.raises(kvc.InvalidArgument, match="dropout_seed is -1"):
            cache.attention(0, q, dropout_seed=-1)
        with pytest.raises(kvc.BadState, match="pass"):
            cache.bind_operator(decode)
    with pytest.raises(kvc.NotSupported, match="prefill"):
        cache.bind_operator(decode, modes="prefill")
    with pytest.raises(TypeError, match="operator must be a kvc.Operator or None, not str"):
        cache.bind_operator("vanilla")
    with pytest.raises(kvc.InvalidHandle, match="the operator is closed"):
        cache.bind_operator(vanilla)
    with pytest.raises(kvc.InvalidArgument, match="modes names 'decode'"):
        cache.bind_operator(decode, modes=["decode"])


def test_partial_results(make, kvq, random):
    """Keys in two caches, merged, and the sinks once: as in one cache."""
    k, v, q = kvq(6)
    sinks = np.array([0.5, -1, 2, 0], np.float32)
    whole, parts = make(), [make(), make()]
    for cache in (whole, *parts):
        cache.bind_attention(4, sinks=sinks)
    with whole.forward(range(6)):
        for layer in range(2):
            wanted = whole.put_attention(layer, k, v, q)[-1:]
    results = []
    for cache, tokens in zip(parts, (slice(0, 3), slice(3, 6))):
        lse = np.empty((6, 4), np.float32)
        padded = np.where(np.arange(6) < 3, 0, kvc.PADDING)
        cache.begin([0, 1, 2, 0, 0, 0], padded)
        cache.put(0, np.concatenate([k[tokens]] * 2), np.concatenate([v[tokens]] * 2))
        last = np.repeat(q[-1:], 6, axis=0)
        out = cache.attention(0, last, lse=lse, no_sinks=True)
        results.append((out[2:3].copy(), lse[2:3].copy()))
        cache.abort()
    (o, lse), (o2, lse2) = results
    kvc.merge_attention(o, lse, o2, lse2)
    kvc.apply_sinks(o, lse, sinks)
    np.testing.assert_allclose(o, wanted, atol=1e-5)
    for call, error, message in (
        (lambda: kvc.merge_attention(o, lse, o2[:, :1], lse2), kvc.ShapeError, "o2"),
        (
            lambda: kvc.merge_attention(o, lse.astype(np.float64), o2, lse2),
            kvc.DtypeError,
            "lse is float64",
        ),
        (
            lambda: kvc.apply_sinks(o, lse, [1.0]),
            kvc.InvalidArgument,
            r"sinks has shape \(1,\), not \(4,\)",
        ),
        (lambda: kvc.apply_sinks(o, lse, [1, 2, 3, np.inf]), kvc.InvalidArgument, r"sinks\[3\]"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8, bool, "bfloat16"])
def test_repeated_heads(random, dtype):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    x = random.integers(0, 2, (3, 2, 5)).astype(dtype)
    found = kvc.repeat_kv_heads(x, 3)
    np.testing.assert_array_equal(found, np.repeat(x, 3, axis=-2))
    assert found.dtype == x.dtype
    out = np.empty((3, 4, 5), dtype)
    assert kvc.repeat_kv_heads(x, 2, out) is out
    np.testing.assert_array_equal(out, np.repeat(x, 2, axis=-2))
    with pytest.raises(kvc.ShapeError, match="out"):
        kvc.repeat_kv_heads(x, 3, out)
    with pytest.raises(kvc.InvalidArgument, match="n "):
        kvc.repeat_kv_heads(x, 0)


def test_modes_go_by_the_length():
    q = np.zeros((2, 1, 3, 4), np.float32)
    assert kvc.mode_of(q) == "autoregressive" and kvc.mode_of(q, bthd=False) == "train"
    with pytest.raises(kvc.ShapeError, match="q has 3"):
        kvc.mode_of(q[0])
