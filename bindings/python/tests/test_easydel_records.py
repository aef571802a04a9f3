"""kvc.easydel: records, base classes, and names of mesh axes."""

import json
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from kvc.easydel.records import Record

ARRAYS = [
    np.arange(12, dtype=np.int32).reshape(3, 4),
    np.array([[0.1, np.nan, -np.inf]], np.float32),
    np.ones((2, 0, 3), np.float16),
    np.array(5, np.uint16),
    np.array([True, False]),
    np.array([1.5, -2], ml_dtypes.bfloat16),
    np.array([0.5], ml_dtypes.float8_e4m3fn),
    np.arange(6).reshape(2, 3)[:, ::2],
]


@dataclass
class Pair(Record):
    first: Any
    second: Any = 7


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.dtype.name)
def test_arrays_come_back_bit_for_bit(array):
    found = Pair.from_json(Pair(array, [array]).to_json())
    for each in (found.first, found.second[0]):
        assert each.dtype == array.dtype and each.shape == array.shape
        assert each.tobytes() == array.tobytes()


def test_values_of_json():
    pair = Pair((1, None, "a"), {"x": np.float32(0.5), "y": Pair(True, ())})
    shown = {"first": [1, None, "a"], "second": {"x": 0.5, "y": {"first": True, "second": []}}}
    assert pair.to_dict() == shown == json.loads(pair.to_json())
    assert pair.to_json(indent=1).startswith('{\n "first"')
    assert Pair.from_dict(shown).first == [1, None, "a"]
    with pytest.raises(TypeError, match="first is object"):
        Pair(object()).to_dict()


def test_fields_of_a_dict():
    assert Pair.from_dict({"first": 1, "third": 2}) == Pair(1, 7)
    assert Pair.from_json(b'{"first": 1, "second": null}') == Pair(1, None)
    with pytest.raises(TypeError, match="first"):
        Pair.from_dict({})


def test_replace_copies():
    pair = Pair([1])
    assert pair.replace() is pair
    changed = pair.replace(second=2)
    assert (changed.first, changed.second, pair.second) == ([1], 2, 7) and changed.first is pair.first
    with pytest.raises(TypeError, match="Pair has no field 'third': it has first, second"):
        pair.replace(third=1)


# ---- Base classes --------------------------------------------------------------------------------


def test_base_classes_are_abstract():
    for base in (ed.BaseCacheMetadata, ed.BaseCacheView, ed.BaseCache):
        with pytest.raises(TypeError, match="abstract"):
            base()
    assert ed.BaseRunTimeMetadata().to_dict.__doc__


def test_a_cache_of_the_callers():
    @dataclass
    class Metadata(ed.BaseCacheMetadata):
        size: int

        @classmethod
        def create(cls, size):
            return cls(size)

    class View(ed.BaseCacheView):
        def __init__(self, metadata, layer_index=None):
            self.metadata, self.layer_index = metadata, layer_index

        @classmethod
        def init(cls, metadata, layer_index=None):
            return cls(metadata, layer_index)

        def concatenate_to_cache(self, x):
            return x

        def __repr__(self):
            return f"View({self.layer_index})"

    class Cache(ed.BaseCache):
        def __init__(self, views):
            self.views = views

        @classmethod
        def init_cache(cls, metadata, n):
            return cls([View.init(metadata, i) for i in range(n)])

        @classmethod
        def init_empty(cls, n):
            return cls([None] * n)

    cache = Cache.init_cache(Metadata.create(3), 2)
    assert len(cache) == 2 and cache[1].layer_index == 1 and cache[0].metadata == Metadata(3)
    cache[1] = None
    assert cache.views[1] is None and repr(cache) == "Cache(\n  View(0)\n  None\n)"
    assert Metadata(3).replace(size=4).to_dict() == {"size": 4}
    assert Cache.init_empty(3).views == [None] * 3


def test_caches_of_kvc_are_caches(make):
    assert isinstance(make(), ed.BaseCache)
    assert isinstance(kvc.Metadata(), ed.BaseCacheMetadata)
    assert issubclass(ed.TransformerMetadata, ed.BaseRunTimeMetadata)
    assert issubclass(ed.LightningMetadata, ed.BaseRunTimeMetadata)


def test_options_of_a_step():
    options = ed.TransformerMetadata(True, 3)
    assert options.to_dict() == {"postpadded": True, "index": 3, "valid": None}
    assert ed.TransformerMetadata() == ed.TransformerMetadata(postpadded=False, index=None, valid=None)
    found = ed.TransformerMetadata.from_json(options.replace(valid=np.array([1, 2])).to_json())
    assert found.valid.tolist() == [1, 2] and found.postpadded
    assert ed.LightningMetadata().to_dict() == {"valid": None, "token_mask": None}


# ---- Mesh axes -----------------------------------------------------------------------------------

BATCH = ("fsdp", "dp")
AXES = ["BATCH", "QUERY_LENGTH", "KV_LENGTH", "HEAD", "KV_HEAD", "HEAD_DIM", "KV_HEAD_DIM"]
AXES += ["BIAS_HEAD_SEQ", "BIAS_KV_SEQ", "EMPTY", None]
MODES = ["__train__", "__prefill__", "__autoregressive__", "__insert__"]


@pytest.mark.parametrize("mode", MODES)
def test_default_axes(mode):
    spec = ed.PartitionManager().resolve(AXES, mode)
    assert spec == (BATCH, "sp", "sp", "tp", *[None] * 7)
    assert isinstance(spec, tuple) and isinstance(spec, ed.PartitionSpec)


def test_axes_of_generation_override_the_others_unless_they_are_none():
    axis = ed.PartitionAxis(
        batch_axis="dp", head_axis="tp", decode_batch_axis="x", decode_head_axis=None, kv_head_axis="y"
    )
    manager = ed.PartitionManager(axis)
    names = ["BATCH", "HEAD", "KV_HEAD"]
    for mode in ("__train__", "__prefill__"):
        assert manager.resolve(names, mode) == ("dp", "tp", "y")
    for mode in ("__autoregressive__", "__insert__"):
        assert manager.resolve(names, mode) == ("x", "tp", "y")


def test_a_dimension_chooses_the_mode():
    manager = ed.PartitionManager(ed.PartitionAxis(decode_batch_axis="x"))
    assert manager.resolve(["BATCH"], 1, (4, 1, 8)) == ("x",)
    assert manager.resolve(["BATCH"], -2, (4, 2, 8)) == (BATCH,)
    for mode, shape in ((3, (1, 1, 1)), (0, None)):
        with pytest.raises(kvc.InvalidArgument, match="mode is dimension"):
            manager.resolve(["BATCH"], mode, shape)


def test_unknown_axes_and_modes_are_value_errors():
    for axes, mode in ((["COLOUR"], "__train__"), (["BATCH"], "decode")):
        with pytest.raises(ValueError, match="is not one of"):
            ed.PartitionManager().resolve(axes, mode)


def test_axes_survive_json():
    manager = ed.PartitionManager(ed.PartitionAxis(kv_head_axis=("a", "b")))
    assert ed.PartitionManager.from_json(manager.to_json()) == manager
    assert ed.PartitionAxis().replace(head_axis="x").head_axis == "x"


def test_a_spec_is_shown_and_copied():
    import copy
    import pickle

    spec = ed.PartitionSpec(("a", "b"), None, "c")
    assert repr(spec) == "PartitionSpec(('a', 'b'), None, 'c')"
    for again in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert again == spec and type(again) is ed.PartitionSpec
