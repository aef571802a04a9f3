"""kvc.easydel: settings of attention, and their shardings."""

import json
import types

import numpy as np
import pytest

import kvc
import kvc.easydel as ed


def test_settings_have_defaults():
    metadata = ed.AttentionMetadata()
    assert metadata.runtime_dtype == "f32" and metadata.runtime_softmax_dtype is None
    assert (metadata.softmax_scale, metadata.dropout_prob) == (None, 0.0)
    assert (metadata.blocksize_q, metadata.blocksize_k, metadata.blocksize_b) == (0, 0, 0)
    assert (metadata.sequence_axis_name, metadata.mesh, metadata.platform) == ("sp", None, "kvc")
    assert metadata.backend is None and metadata.base_config is None
    assert metadata.scan_ring_attention is True
    assert metadata.partition_axis == ed.PartitionAxis()
    assert metadata.partition_manager == ed.PartitionManager(ed.PartitionAxis())


CONFIG = types.SimpleNamespace(
    attn_dtype=np.float16,
    attn_softmax_dtype=np.float32,
    sequence_axis_name="ring",
    mesh="a mesh",
    platform="triton",
    backend="cpu",
    partition_axis=ed.PartitionAxis(head_axis="h"),
    scan_ring_attention=False,
    scan_attention_layers=True,
    blocksize_q=128,
    blocksize_k=256,
    blocksize_b=1,
)


def test_settings_of_a_configuration():
    metadata = ed.AttentionMetadata.from_config(CONFIG, 0.5, 0.1)
    for name in ("mesh", "platform", "backend", "partition_axis", "blocksize_q", "blocksize_k"):
        assert getattr(metadata, name) == getattr(CONFIG, name), name
    assert metadata.runtime_dtype is np.float16 and metadata.runtime_softmax_dtype is np.float32
    assert (metadata.softmax_scale, metadata.dropout_prob) == (0.5, 0.1)
    assert metadata.scan_ring_attention is False  # not scan_attention_layers
    assert metadata.sequence_axis_name == "ring" and metadata.base_config is CONFIG
    assert metadata.partition_manager.paxis.head_axis == "h"
    alone = ed.AttentionMetadata(base_config=CONFIG, blocksize_q=16, runtime_dtype="bf16")
    assert (alone.blocksize_q, alone.blocksize_k, alone.runtime_dtype) == (16, 256, "bf16")
    assert alone.sequence_axis_name == "sp"  # from_config() reads it alone
    bare = ed.AttentionMetadata.from_config(object(), None)
    assert bare.runtime_dtype == "f32" and bare.softmax_scale is None


def test_set_attrs_carefully():
    metadata = ed.AttentionMetadata(base_config=CONFIG)
    metadata.set_attrs_carefully("blocksize_q", 7)
    assert metadata.blocksize_q == 128  # it has a value
    metadata.blocksize_q = ...
    metadata.set_attrs_carefully("blocksize_q", 7, use_base_config=False)
    assert metadata.blocksize_q == 7
    metadata.set_attrs_carefully("own", 8, pickup_name="blocksize_k")
    metadata.set_attrs_carefully("blocksize", 9)
    assert (metadata.own, metadata.blocksize) == (256, 9)


@pytest.mark.parametrize(
    "changes, error",
    [
        (dict(runtime_dtype="f64"), kvc.DtypeError),
        (dict(runtime_dtype=np.int32), kvc.DtypeError),
        (dict(runtime_softmax_dtype="i8"), kvc.DtypeError),
        (dict(dropout_prob=1.0), ValueError),
        (dict(dropout_prob=-0.1), ValueError),
        (dict(dropout_prob=float("nan")), ValueError),
    ],
)
def test_wrong_settings_are_refused(changes, error):
    with pytest.raises(error):
        ed.AttentionMetadata(**changes)
    with pytest.raises(error):
        ed.AttentionMetadata().replace(**changes)


def test_settings_survive_json():
    metadata = ed.AttentionMetadata.from_config(CONFIG, 0.5).replace(runtime_softmax_dtype=np.float64)
    shown = json.loads(metadata.to_json())
    assert shown["runtime_dtype"] == "f16" and shown["runtime_softmax_dtype"] == "f64"
    assert shown["mesh"] is None and shown["base_config"] is None
    again = ed.AttentionMetadata.from_dict(shown)
    assert again.to_dict() == shown and again.partition_axis == metadata.partition_axis
    foreign = ed.AttentionMetadata(partition_axis=object(), partition_manager=object())
    assert ed.AttentionMetadata.from_json(foreign.to_json()).partition_axis == ed.PartitionAxis()
    assert metadata.replace() is metadata
    assert ed.AttentionMetadata.from_dict({"blocksize_k": 64}).to_dict()["blocksize_k"] == 64
    assert repr(ed.AttentionMetadata(blocksize_k=64)).count("blocksize") == 1


BATCH = ("fsdp", "dp")
QUERY = (BATCH, "sp", "tp", None)
KEY = (BATCH, "sp", None, None)


@pytest.mark.parametrize(
    "mode", ["__autoregressive__", "__prefill__", "__train__", "__insert__"]
)
def test_shardings(mode):
    metadata = ed.AttentionMetadata()
    assert metadata.get_shardings(mode) == (
        QUERY,
        KEY,
        KEY,
        (BATCH, None, "sp", None),
        (BATCH, None, "sp", None),
        QUERY,
    )
    swapped = metadata.get_shardings(mode, BTHD=False)
    assert swapped[0] == swapped[5] == (BATCH, "tp", "sp", None)
    assert swapped[1] == swapped[2] == (BATCH, None, "sp", None)
    q, k, v, *_ = metadata.get_shardings(mode, qkv_mni_sharding=True)
    assert q == k == v == QUERY
    with pytest.raises(ValueError):
        metadata.get_shardings("__decode__")


def test_shardings_of_generation():
    axis = ed.PartitionAxis(decode_query_sequence_axis="x", bias_key_sequence_axis="y")
    metadata = ed.AttentionMetadata(partition_axis=axis)
    query, _, _, bias, mask, _ = metadata.get_shardings("__autoregressive__")
    assert query[1] == bias[2] == mask[2] == "x" and bias[3] == mask[3] == "y"
    assert metadata.get_shardings("__train__")[0][1] == "sp"
