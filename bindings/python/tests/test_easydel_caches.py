"""kvc.easydel: whole transformer caches: rows from cache to cache, copies, rings, quantizers."""

import json
import types

import ml_dtypes
import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from easydel_cases import Model, empty, figures, sizes

DTYPES = ["f32", "f16", "bf16"]
QUANTIZED = [
    dict(quantizer="8bit"),
    dict(quantizer="nf4"),
    dict(quantizer="8bit", rotate=True),
    dict(quantizer="nf4", rotate="k"),
    dict(dtype="q8_0"),
    dict(dtype="q4_0"),
]
WIDE = dict(batch=2, length=8, layers=2, heads=2, dim=32)


def filled(seed=0, options=None, **changes):
    """A cache with five tokens in row 0 and three in row 1, starts 1 and 0."""
    metadata = sizes(**{**WIDE, **changes})
    cache = empty(metadata, **{"starts": [1, 0], **(options or {})})
    Model(cache, seed).step(5, options=ed.TransformerMetadata(valid=np.array([5, 3])))
    cache.commit()
    return cache


def same(one, other):
    """Whether two caches hold the same, byte for byte."""
    return one.kvc_cache.digest() == other.kvc_cache.digest()


def test_a_cache_of_the_documents():
    metadata = ed.TransformerCacheMetaData.create(
        batch_size=1,
        sequence_length=10,
        num_hidden_layers=2,
        pad_token_id=0,
        num_heads=8,
        head_dim=64,
    )
    cache = ed.TransformerCache.init_cache(
        mesh=object(), metadata=metadata, partition_manager=object(), dtype=np.float16
    )
    assert len(cache) == len(cache.views) == 2 and [view.layer_index for view in cache] == [0, 1]
    assert cache[1] is cache.views[1] and cache[1].key.dtype == np.float16
    assert cache[1].key.shape == (1, 10, 8, 64)
    shape = "(1, 10, 8, 64)"
    lines = [f"TransformerCacheView(key={shape}, value={shape}, layer_index={i})" for i in range(2)]
    assert repr(cache) == "TransformerCache(\n  " + "\n  ".join(lines) + "\n)"
    default = ed.TransformerCache.init_cache(None, metadata, None)
    assert default[0].key.dtype == ml_dtypes.bfloat16
    unequal = empty(sizes(1, 4, 1, None, None, key_heads=2, value_heads=1, key_dim=4, value_dim=6))
    assert unequal[0].key.shape == (1, 4, 2, 4) and unequal[0].value.shape == (1, 4, 1, 6)


def test_an_empty_cache():
    cache = ed.TransformerCache.init_empty(4)
    assert cache.views == [None] * 4 and len(cache) == 4 and cache[2] is None
    assert repr(cache) == "TransformerCache(\n  None\n  None\n  None\n  None\n)"
    cache[1] = None
    for call in (
        lambda: cache.insert(filled(), 0),
        lambda: filled().insert(cache, 0),
        lambda: cache.insert_index(0, 0),
        lambda: cache.insert_starts(0, 0),
        lambda: cache.to_pure(),
        lambda: cache.commit(),
        lambda: cache.abort(),
        lambda: cache.kvc_cache,
        lambda: cache.__setitem__(0, filled()[0]),
    ):
        with pytest.raises(kvc.InvalidHandle):
            call()
    assert ed.TransformerCache.from_dict(cache.to_dict()).views == [None] * 4


# ---- Rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [dict(dtype=each) for each in DTYPES] + QUANTIZED)
def test_rows_are_inserted_byte_for_byte(storage):
    one = empty(sizes(**{**WIDE, "batch": 1}), **storage)
    Model(one, 3).step(4)  # stays open: insert() commits it
    cache = filled(options=storage)
    quantizer = storage.get("quantizer")
    assert cache.insert(one, 1, quantizer, partition_manager=None) is cache
    assert cache[0].index.tolist() == [5, 4] and cache[1].starts.tolist() == [1, 0]
    for view, other in zip(cache.views, one.views):
        np.testing.assert_array_equal(view.key[1, :4], other.key[0, :4])
        np.testing.assert_array_equal(view.value[1, :4], other.value[0, :4])
    before = cache.kvc_cache.digest()
    for slot in (-1, 2):
        with pytest.raises(kvc.InvalidArgument):
            cache.insert(one, slot)
    with pytest.raises(kvc.InvalidArgument):
        cache.insert(cache, 0)
    with pytest.raises(kvc.InvalidArgument):
        cache.insert(one, 0, "nf4" if quantizer == "8bit" else "8bit")
    with pytest.raises(kvc.InvalidArgument):
        cache.insert(filled(heads=1), 0)
    with pytest.raises(TypeError):
        cache.insert(cache[0], 0)
    assert cache.kvc_cache.digest() == before


def test_an_open_step_must_be_whole_before_rows_move():
    cache = filled()
    view = cache[0]
    x = np.zeros((2, 1, 2, 32), np.float32)
    view.concatenate_to_cache(x, x, x, None, None, None, None, True)
    with pytest.raises(kvc.BadState, match="layer 1"):
        cache.insert_index(0, 0)
    with pytest.raises(kvc.BadState, match="layer 1"):
        empty(sizes(**{**WIDE, "batch": 4})).insert(cache, 0)
    cache.abort()
    cache.insert_index(0, 0)


def test_index_and_starts_of_rows():
    cache = filled()
    assert cache.insert_index(np.array([[4, 2]]), 0, None) is cache
    assert [view.index.tolist() for view in cache.views] == [[4, 2]] * 2
    cache.insert_index(1, 1).insert_starts(3, 1)
    cache.insert_starts([2], 0, partition_manager=None)
    assert cache[1].index.tolist() == [4, 1] and cache[0].starts.tolist() == [2, 3]
    for call in (
        lambda: cache.insert_index(5, 0),
        lambda: cache.insert_index([1, 1, 1], 0),
        lambda: cache.insert_index(-1, 0),
        lambda: cache.insert_index(0, 2),
        lambda: cache.insert_starts(9, 0),
        lambda: cache.insert_starts(0, -1),
    ):
        with pytest.raises(kvc.InvalidArgument):
            call()
    assert cache[0].index.tolist() == [4, 1] and cache[0].starts.tolist() == [2, 3]


def test_starts_hide_what_is_below():
    cache = empty(sizes(2, 8), starts=[0, 2])
    (_, _, mask), = Model(cache).step(4)[0]
    assert mask.sum(axis=3)[:, 0].tolist() == [[1, 2, 3, 4], [0, 0, 1, 2]]


def test_a_prefill_with_padding_on_its_right_ends_with_insert_index():
    cache = empty(sizes(2, 8, 2))
    Model(cache).step(5)
    cache.insert_index([3, 5], 0, None)
    (_, _, mask), _ = Model(cache).step(1)[0]
    assert mask[:, 0, 0].tolist() == [[1, 1, 1, 1, *[0] * 4], [*[1] * 6, 0, 0]]


# ---- Records and copies --------------------------------------------------------------------------


def test_records_are_copies():
    cache = filled()
    record = cache[0].replace()
    assert record.key.shape == (2, 8, 2, 32) and record.index.tolist() == [5, 3]
    assert record.layer_index == 0 and record.metadata is cache[0].metadata
    before = record.key.copy()
    Model(cache, 5).step(1)
    np.testing.assert_array_equal(record.key, before)
    assert cache[0].replace(layer_index=7, index=None).layer_index == 7
    assert record.replace() is record and record.replace(starts=3).starts == 3
    with pytest.raises(TypeError, match="no field"):
        record.replace(queries=1)
    with pytest.raises(kvc.InvalidHandle):
        record.concatenate_to_cache(None, None, None, None, None, None, None)
    nothing = ed.TransformerCacheView(None, None, None, None, None)
    assert nothing.is_empty and not record.is_empty and not cache[0].is_empty
    assert repr(nothing) == "TransformerCacheView(key=None, value=None, layer_index=None)"
    record.key = 5
    assert record.key == 5


@pytest.mark.parametrize("storage", [dict(dtype=each) for each in DTYPES] + QUANTIZED)
def test_layers_are_filled_from_records_and_views(storage):
    one, other = filled(1, storage), filled(2, storage)
    for layer in range(2):
        other[layer] = one[layer].replace() if layer else one[layer]
    assert same(one, other)
    other.views[0] = other.views[0]
    other[0] = one[1].replace(index=None, starts=None)
    np.testing.assert_array_equal(other[0].value[0, :5], one[1].value[0, :5])
    before = other.kvc_cache.digest()
    for record, error in (
        (one[0].replace(index=np.array([5, 2])), kvc.InvalidArgument),
        (one[0].replace(starts=np.array([0, 0])), kvc.InvalidArgument),
        (one[0].replace(key=np.zeros((2, 8, 3, 32), np.float32)), kvc.ShapeError),
        (None, TypeError),
    ):
        with pytest.raises(error):
            other[0] = record
    assert other.kvc_cache.digest() == before


def test_assigning_to_a_view_fills_the_layer():
    cache = filled()
    key = np.full((2, 8, 2, 32), 3, np.float32)
    cache[1].key = key
    cache[1].value = key[:, :4] * 2
    assert (cache[1].key[0, :5] == 3).all() and (cache[1].value[0, :4] == 6).all()
    with pytest.raises(ValueError):
        cache[1].key = key[0]
    with pytest.raises(AttributeError):
        cache[1].index = 3


@pytest.mark.parametrize("storage", [dict(dtype=each) for each in DTYPES] + QUANTIZED)
def test_pure_arrays_make_the_same_cache(storage):
    cache = filled(4, storage)
    pure, metadata = cache.to_pure()
    assert len(pure) == 2 and metadata is cache[1].metadata
    quantised = storage.get("quantizer") or storage["dtype"] in ("q8_0", "q4_0")
    assert isinstance(pure[0][0], tuple) == bool(quantised)
    dtype = {"8bit": "int8"}.get(storage.get("quantizer"), storage.get("quantizer"))
    options = {"rotate": storage["rotate"]} if "rotate" in storage else {}
    again = ed.TransformerCache.from_pure(
        pure, metadata, dtype or (storage["dtype"] if quantised else None), **options
    )
    assert same(cache, again) and [view.layer_index for view in again] == [0, 1]
    if quantised:
        with pytest.raises(kvc.InvalidArgument, match="dtype"):
            ed.TransformerCache.from_pure(pure, metadata)


@pytest.mark.parametrize("storage", [dict(dtype=each) for each in DTYPES] + QUANTIZED)
def test_caches_survive_json(storage):
    cache = filled(6, {**storage, "reach": 3, "max_batch": 14})
    again = ed.TransformerCache.from_json(cache.to_json())
    assert same(cache, again)
    for one in (cache, again):
        (_, _, mask), _ = Model(one, 7).step(1)[0]
        assert mask.sum() == 4 + 4  # the reach
    assert same(cache, again)
    view = ed.TransformerCacheView.from_json(cache[1].to_json())
    assert view.metadata == cache[1].metadata and view.layer_index == 1
    np.testing.assert_array_equal(np.asarray(view.key)[0, :6], cache[1].key[0, :6])
    assert view.index.tolist() == [6, 4] and view.index.dtype == np.int32
    shown = json.loads(cache[0].to_json())["starts"]
    assert shown["dtype"] == "int32" and shown["shape"] == [2]


def test_caches_of_views():
    cache = filled()
    assert cache.replace() is cache
    assert cache.replace(views=cache.views).kvc_cache is cache.kvc_cache
    copied = ed.TransformerCache([view.replace() for view in cache.views], max_batch=4)
    assert same(cache, copied) and copied.kvc_cache is not cache.kvc_cache
    alone = [ed.TransformerCacheView.init(None, "f32", sizes(), None, None, None, i) for i in range(3)]
    joined = ed.TransformerCache([alone[0], None, alone[1], alone[2]])
    assert joined.kvc_cache.n_layers == 3 and joined[1] is None and joined[2].layer_index == 1
    Model(ed.TransformerCache([joined[0], joined[2], joined[3]])).step(2)
    assert joined[0].index.tolist() == [2, 2] and alone[0].index.tolist() == [0, 0]
    records = [view.replace() for view in cache.views]
    for changes in (
        dict(index=np.array([1, 1])),
        dict(starts=np.array([0, 0])),
        dict(metadata=sizes(2, 9, 2, 2, 32)),
    ):
        with pytest.raises(kvc.InvalidArgument, match=next(iter(changes))):
            ed.TransformerCache([records[0], records[1].replace(**changes)])
    with pytest.raises(kvc.InvalidArgument, match="no keys"):
        ed.TransformerCache([records[0].replace(key=None, value=None)])
    with pytest.raises(TypeError, match="no field"):
        cache.replace(layers=1)
    with pytest.raises(TypeError, match="no option 'colour': there are dtype, .*device"):
        empty(colour=1)
    with pytest.raises(kvc.DtypeError):
        empty(dtype="f8_e4m3")


# ---- Storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, quantizer", [("Q8", "8bit"), ("NF4", "nf4")])
def test_codes_of_the_figures(name, quantizer):
    for case in figures()[name]:
        values = np.array(case["input"], np.float32)
        block = None
        if quantizer == "nf4":  # whole blocks of 16, whose other numbers are zeros
            values = np.concatenate([values, np.zeros(16 - len(values), np.float32)])
            block = types.SimpleNamespace(
                quantization_method=types.SimpleNamespace(value="nf4"), block_size=256
            )
        cache = empty(sizes(1, 4, 1, 1, len(values)), quantizer=block or quantizer)
        x = values.reshape(1, 1, 1, -1)
        cache[0].concatenate_to_cache(x, x, x, quantizer, None, None, None, True)
        (codes, scales), _, _, _ = cache.to_pure()[0][0]
        n = len(case["input"])
        if name == "Q8":
            assert np.abs(codes[0, 0, 0].astype(int) - case["q"]).max() <= 1  # .5 is a tie
            if any(case["input"]):
                np.testing.assert_allclose(scales[0, 0, 0], case["scale"], rtol=1e-6)
        else:
            assert codes[0, 0, 0, : n // 2].tolist() == case["packed"]
            assert scales[0, 0, 0, 0] == np.float32(case["absmax"])
        error = 1.01 * max(case.get("scale", 0), 1e-7)
        np.testing.assert_allclose(cache[0].key[0, 0, 0, :n], case["deq"], atol=error)


def test_quantizers():
    method = types.SimpleNamespace(quantization_method="none", block_size=64)
    assert empty(dtype="f16", quantizer=method)[0].key.dtype == np.float16
    cache = empty(sizes(**WIDE), quantizer="nf4")
    x = np.random.default_rng(0).standard_normal((2, 1, 2, 32), dtype=np.float32)
    k, _, mask = cache[0].concatenate_to_cache(x, x, x, "nf4", None, None, None, True)
    assert k.dtype == np.float32 and k.shape == (2, 8, 2, 32) and not k[:, 1:].any()
    np.testing.assert_array_equal(k[:, :1], cache[0].key[:, :1])
    stored = cache[0].replace().key
    assert isinstance(stored, ed.StoredArray) and stored.shape == (2, 8, 2, 32)
    assert (stored.dtype, stored.block, stored.rotate) == ("nf4", 32, False)
    with pytest.raises(kvc.InvalidArgument, match="unknown quantization_method"):
        empty(quantizer="3bit")
    with pytest.raises(kvc.InvalidArgument, match="8bit"):
        cache[1].concatenate_to_cache(x, x, x, "8bit", None, None, None, True)
    with pytest.raises(kvc.InvalidArgument, match="none"):
        cache[1].concatenate_to_cache(x, x, x, method, None, None, None, True)


def test_interleaved_caches_hold_the_same():
    plain, mixed = empty(sizes(**WIDE)), empty(sizes(**WIDE), interleaved=True)
    for cache in (plain, mixed):
        Model(cache).step(3)
    assert mixed[0].key.strides[1] == 2 * plain[0].key.strides[1]
    np.testing.assert_array_equal(mixed[1].value[:, :3], plain[1].value[:, :3])


# ---- Rings ---------------------------------------------------------------------------------------


def held(cache, row, length):
    """The newest positions of a row, by what was put as its key."""
    index = int(cache[0].index[row])
    columns = cache[0].key.shape[1]
    return [float(cache[0].key[row, p % columns, 0, 0]) for p in range(max(0, index - length), index)]


def test_windows_of_the_figures():
    for case in figures()["S_sliding"]:
        window = case["window"]
        cache = empty(sizes(1, window, 1, 1, 4), ring=True, max_batch=5)
        index = case["index"]
        for value in range(1, index + 1):
            x = np.full((1, 1, 1, 4), value, np.float32)
            cache[0].concatenate_to_cache(x, x, x, None, None, None, None, True)
        new = np.array(case["new"], np.float32)[None, :, None, None].repeat(4, axis=3)
        cache[0].concatenate_to_cache(new, new, new, None, None, None, None, True)
        assert held(cache, 0, window) == [each for each in case["correct"] if each]


def test_a_ring_goes_on_and_comes_back():
    cache = empty(sizes(2, 6, 2, 2, 4), ring=True, max_batch=6)
    model = Model(cache)
    for _ in range(5):
        results, _ = model.step(2)
    assert cache[0].index.tolist() == [10, 10] and cache[0].key.shape[1] == 9
    assert results[0][2].sum(axis=3)[:, 0].tolist() == [[6, 6]] * 2
    cache.commit()
    before = cache.kvc_cache.digest()
    model.step(3)
    cache.abort()
    assert cache.kvc_cache.digest() == before
    pure, metadata = cache.to_pure()
    again = ed.TransformerCache.from_pure(pure, metadata, ring=True)
    assert same(cache, again)
    assert same(cache, ed.TransformerCache.from_json(cache.to_json()))
    x = np.zeros((2, 1, 2, 4), np.float32)
    for arguments in (dict(causal_mask=np.ones((1, 1, 9, 9))), dict(attention_mask=np.ones((2, 9)))):
        with pytest.raises(kvc.NotSupported):
            cache[0].concatenate_to_cache(
                x, x, x, None, None, partition_manager=None, **{"attention_mask": None, **arguments}
            )
