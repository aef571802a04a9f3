"""Sizes of caches as models describe them: the vectors, JSON, caches that are made of them; and padding."""

import json

import numpy as np
import pytest

import kvc
from vectors import vectors

SIZES = dict(batch_size=2, sequence_length=8, num_hidden_layers=3, num_heads=4, head_dim=16)
LIGHTNING = dict(kind="lightning", batch_size=2, num_hidden_layers=3, num_heads=4, head_dim=16)


def test_the_vectors():
    cases = vectors("metadata")["metadata"]
    assert len(cases) == 14
    for case in cases:
        metadata = kvc.Metadata(**case["arguments"])
        if "result" in case:
            found = vars(metadata.resolve())
            assert found.pop("kind") == "transformer" and found == case["result"]
        else:
            with pytest.raises(kvc.InvalidArgument) as caught:
                metadata.resolve()
            assert case["error"] in str(caught.value), case


def test_padding():
    cases = vectors("metadata")["padding"]
    assert len(cases) == 2
    for case in cases:
        for ids in (case["ids"], np.asfortranarray(case["ids"])):
            starts, ends = kvc.padding(ids, case["pad"])
            assert starts.dtype == ends.dtype == np.int32
            assert starts.tolist() == case["starts"] and ends.tolist() == case["ends"]
    with pytest.raises(kvc.InvalidArgument, match=r"token_ids has shape \(2,\), not \(n_rows, q_len\)"):
        kvc.padding([1, 2])
    with pytest.raises(TypeError, match="token_ids must hold integers"):
        kvc.padding([[1.5]])
    with pytest.raises(kvc.InvalidArgument, match="q_len"):
        kvc.padding(np.zeros((2, 0), int))


@pytest.mark.parametrize(
    "metadata",
    [
        kvc.Metadata(),
        kvc.Metadata(**SIZES, pad_token_id=-1),
        kvc.Metadata(**SIZES, value_heads=2, update_causal_mask=False, create_attention_bias=False),
        kvc.Metadata(**LIGHTNING),
    ],
)
def test_json_is_read_back_as_it_was(metadata):
    text = metadata.to_json()
    fields = json.loads(text)
    assert text == json.dumps(fields)
    for again in (text, text.encode(), json.dumps({**fields, "another": [1, {}]}, indent=2)):
        assert kvc.Metadata.from_json(again, metadata.kind) == metadata
    assert all(fields.get(name, value) in (value, None) for name, value in vars(metadata).items())
    assert ("partition_axis" in fields) == (metadata.kind == "lightning")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "JSON"),
        ("{", "byte"),
        ('{"head_dim": "8"}', "head_dim"),
        (f'{{"head_dim": {2**31}}}', "head_dim"),
    ],
)
def test_text_that_is_no_metadata(text, message):
    with pytest.raises(kvc.CorruptData, match=message):
        kvc.Metadata.from_json(text)


def test_a_cache_is_made_of_metadata(device):
    rows = kvc.Metadata(**SIZES, value_dim=8, update_causal_mask=False, create_attention_bias=False)
    arguments = rows.arguments()
    assert arguments == dict(
        kind="transformer",
        n_layers=3,
        n_kv_heads=4,
        head_dim=16,
        head_dim_v=8,
        max_sequences=2,
        capacity=8,
        value_heads=4,
        mask_dtype="bool",
        causal=False,
    )
    with kvc.Cache(**arguments, dtype="bf16", max_batch=8, device=device) as cache:
        cache.begin_rows(1)
        assert cache.mask(0).dtype == bool and cache.mask(0).shape == (2, 1, 1, 8)
    with kvc.Cache(**kvc.Metadata(**LIGHTNING).arguments(), max_batch=8, device=device) as cache:
        assert (cache.kind, cache.n_layers, cache.max_sequences) == ("lightning", 3, 2)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            dict(kind="causal"),
            kvc.InvalidArgument,
            "kind 'causal' is not one of transformer, lightning",
        ),
        (dict(batch_size=0), kvc.InvalidArgument, "^batch_size must be positive$"),
        (dict(batch_size=1.5), TypeError, "batch_size must be an integer, not float"),
        (dict(head_dim=2**31), kvc.InvalidArgument, "head_dim 2147483648 is no integer of 32 bits"),
        ({**LIGHTNING, "sequence_length": 8}, kvc.InvalidArgument, "sequence_length"),
        ({**LIGHTNING, "sequence_length": 0, "value_heads": 2}, kvc.NotSupported, "heads"),
        (
            {**LIGHTNING, "sequence_length": 0, "update_causal_mask": False},
            kvc.InvalidArgument,
            "flags",
        ),
    ],
)
def test_wrong_metadata(changes, error, message):
    with pytest.raises(error, match=message):
        kvc.Metadata(**{**SIZES, **changes}).arguments()
