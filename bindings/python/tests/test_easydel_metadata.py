"""kvc.easydel: sizes of caches."""

import json

import numpy as np
import pytest

import kvc
import kvc.easydel as ed

FIELDS = [
    "batch_size",
    "sequence_length",
    "num_hidden_layers",
    "pad_token_id",
    "num_heads",
    "head_dim",
    "key_heads",
    "value_heads",
    "key_dim",
    "value_dim",
    "update_causal_mask",
    "create_attention_bias",
]


def test_metadata_is_completed():
    metadata = ed.TransformerCacheMetaData.create(4, 10, 2, 0, num_heads=8, head_dim=64)
    assert list(metadata.to_dict()) == FIELDS
    assert list(metadata.to_dict().values()) == [4, 10, 2, 0, 8, 64, 8, 8, 64, 64, True, True]
    metadata = ed.TransformerCacheMetaData.create(
        4, 10, 2, 0, 8, 64, key_heads=2, value_heads=0, value_dim=16, update_causal_mask=False
    )
    assert (metadata.key_heads, metadata.value_heads) == (2, 8)  # 0 is not given
    assert (metadata.key_dim, metadata.value_dim) == (64, 16)
    assert (metadata.update_causal_mask, metadata.create_attention_bias) == (False, True)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=0, sequence_length=0), "batch_size must be positive"),
        (dict(batch_size=-1), "batch_size must be positive"),
        (dict(sequence_length=0, head_dim=None), "sequence_length must be positive"),
        (
            dict(head_dim=None, key_dim=3, num_heads=None),
            "Either head_dim or both key_dim and value_dim must be specified",
        ),
        (
            dict(num_heads=None, value_heads=3, num_hidden_layers=0),
            "Either num_heads or both key_heads and value_heads must be specified",
        ),
        (dict(num_hidden_layers=0, key_heads=-1), "num_hidden_layers must be positive"),
        (dict(key_heads=-1, value_dim=-1), "key_heads must be positive"),
        (dict(value_heads=-1), "value_heads must be positive"),
        (dict(key_dim=-1), "key_dim must be positive"),
        (dict(value_dim=-1), "value_dim must be positive"),
    ],
)
def test_metadata_is_checked_in_order(changes, message):
    sizes = dict(
        batch_size=1, sequence_length=8, num_hidden_layers=1, pad_token_id=0, num_heads=2, head_dim=4
    )
    with pytest.raises(ValueError) as error:
        ed.TransformerCacheMetaData.create(**{**sizes, **changes})
    assert str(error.value) == message and type(error.value) is kvc.InvalidArgument


def test_the_constructor_checks_nothing():
    metadata = ed.TransformerCacheMetaData(0, -1, 0, 5, None, None, None, None, None, None, True, False)
    assert metadata.batch_size == 0 and metadata.head_dim is None
    assert metadata.replace() is metadata
    changed = metadata.replace(num_heads=3)
    assert (changed.num_heads, changed.key_heads, metadata.num_heads) == (3, None, None)
    with pytest.raises(TypeError):
        ed.TransformerCacheMetaData(1, 2, 3)


def test_metadata_is_the_librarys_json():
    metadata = ed.TransformerCacheMetaData.create(2, 5, 3, 1, 4, 32, create_attention_bias=False)
    assert ed.TransformerCacheMetaData.from_json(metadata.to_json()) == metadata
    again = kvc.Metadata.from_json(metadata.to_json())
    assert json.loads(again.to_json()) == metadata.to_dict()
    data = {**metadata.to_dict(), "sliding_window": 7}
    assert ed.TransformerCacheMetaData.from_dict(data) == metadata
    with pytest.raises(TypeError, match="batch_size"):
        ed.TransformerCacheMetaData.from_dict({"sequence_length": 3})


def test_padding():
    metadata = ed.TransformerCacheMetaData.create(3, 8, 1, 9, 2, 4)
    starts, ends = metadata.padding(np.array([[9, 9, 1, 9, 2], [1, 2, 3, 9, 9], [9] * 5], np.int32))
    assert starts.tolist() == [2, 0, 5] and ends.tolist() == [5, 3, 5]
    assert starts.dtype == ends.dtype == np.int32


def test_lightning_metadata():
    empty = ed.LightningCacheMetaData.create(partition_axis=None)
    assert set(empty.to_dict().values()) == {None}
    metadata = ed.LightningCacheMetaData.create(ed.PartitionAxis(), 2, 16, head_dim=64)
    assert metadata.partition_axis == ed.PartitionAxis() and metadata.num_heads == 16
    assert ed.LightningCacheMetaData.from_json(metadata.to_json()) == metadata.replace(
        partition_axis=None
    )
    of_kvc = kvc.Metadata.from_json(metadata.to_json(), kind="lightning")
    assert (of_kvc.batch_size, of_kvc.num_heads, of_kvc.head_dim) == (2, 16, 64)
    ed.LightningCacheMetaData.create(None, -3)  # checks nothing
