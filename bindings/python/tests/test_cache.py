"""Every method of a cache, and that results are plain Python."""

import os
from dataclasses import astuple

import numpy as np
import pytest

import kvc
from kvc import kvc_capi

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(kvc.__file__)))


def test_memory_bytes_predicts_what_a_cache_reserves(device):
    geometry = dict(
        device=device, n_layers=2, n_kv_heads=2, head_dim=16, capacity=4096, dtype="f16"
    )
    predicted = kvc.Cache.memory_bytes(**geometry)
    with kvc.Cache(**geometry) as cache:
        assert cache.stats().bytes == predicted
    assert kvc.Cache.memory_bytes(**{**geometry, "dtype": np.float32}) > predicted


def test_types_by_any_name(make):
    for name in ("f16", "float16", np.float16, np.dtype(np.float16)):
        with kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, dtype=name) as cache:
            with cache.forward([0]):
                cache.put(0, np.ones((1, 1, 8), np.float32), np.ones((1, 1, 8), np.float32))
            assert cache.gather(0, 0)[0].dtype == np.float16


def test_caches_are_causal(make, fill):
    named, unnamed = make(kind="causal"), make()
    fill(named, 3)
    assert named.stats().bytes == unnamed.stats().bytes


@pytest.mark.parametrize("kind", ["Causal", "", None, 1])
def test_kinds_that_do_not_exist(make, kind):
    with pytest.raises(kvc.InvalidArgument, match="kind .* is not one of causal, encoder"):
        make(kind=kind)


def test_k_and_v_may_be_stored_differently(make, fill):
    cache = make(dtype_k="f32", dtype_v="f16")
    k, v, _ = fill(cache, 4)
    held_k, held_v = cache.gather(0, 0)
    np.testing.assert_array_equal(held_k, k)
    np.testing.assert_array_equal(held_v, v.astype(np.float16))


@pytest.mark.parametrize("head_dim_v, elements", [(None, 16), (0, 16), (8, 8)])
def test_values_are_as_long_as_keys_by_default(make, head_dim_v, elements):
    cache = make(head_dim_v=head_dim_v)
    assert cache.head_dim_v == elements
    k, v = np.ones((1, 2, 16), np.float32), np.ones((1, 2, elements), np.float32)
    with cache.forward([0]):
        cache.put(1, k, v)
        assert cache.put_attention(0, k, v, k).shape == (1, 2, elements)
    assert cache.gather(0, 0)[1].shape == (1, 2, elements)


def test_prefixes_are_copied_and_resumed(cache, fill):
    k, v, _ = fill(cache, 10)
    assert cache.copy_prefix(0, 1, 6) == 6
    assert cache.copy_prefix(0, 2) == 10
    assert cache.copy_prefix(3, 2) == 0
    stats = cache.stats()
    assert (stats.cells_used, stats.cells_shared) == (10, 6)
    np.testing.assert_array_equal(cache.gather(0, 1)[0], k[:6])
    assert cache.can_resume(0, 4) == 4 and cache.query(0).next == 10
    assert cache.can_resume(0, 99) == 10
    assert cache.resume(0, 4) == 4 and cache.query(0).next == 4
    assert type(cache.resume(0, np.int64(2))) is int
    assert cache.query(1).next == 6


def test_reorder_copies_each_source_as_it_was(cache, fill):
    keys = [fill(cache, 4, sequence)[0] for sequence in range(2)]
    cache.reorder([0, 1, 2], [1, 0, 1])
    for sequence, source in enumerate((1, 0, 1)):
        np.testing.assert_array_equal(cache.gather(1, sequence)[0], keys[source])


def test_remove(cache, fill, make):
    fill(cache, 10)
    cache.remove(0, 7)
    assert cache.query(0).next == 7
    cache.remove(0, 5, 7)
    assert cache.query(0).next == 5
    cache.remove(0)
    assert cache.query(0) == kvc.SequenceInfo(0, 0, 0, 64, 0)
    free = make(position_free=True)
    k, _, _ = fill(free, 10)
    free.remove(0, 2, 5)
    np.testing.assert_array_equal(free.gather(0, 0)[0], np.delete(k, range(2, 5), axis=0))


def test_can_remove_predicts_remove(make, fill):
    cache = make(reach=4, memory=6)
    for _ in range(3):
        fill(cache, 8)
    before = cache.digest()
    for arguments, error in (
        ((0, 23), None),
        ((0,), None),
        ((1, 3), None),
        ((0, 10), kvc.WindowLost),
        ((0, 20, 22), kvc.NotSupported),
    ):
        assert cache.can_remove(*arguments) is (error is None)
        if error:
            with pytest.raises(error):
                cache.remove(*arguments)
    for arguments in ((4,), (0, -1), (0, 5, 2)):
        for call in (cache.can_remove, cache.remove):
            with pytest.raises(kvc.InvalidArgument):
                call(*arguments)
    assert cache.digest() == before
    cache.begin([24])
    for call in (cache.can_remove, cache.remove):
        with pytest.raises(kvc.BadState):  # the open pass is not fully put
            call(0)
    cache.abort()
    cache.remove(0)
    assert cache.query(0).next == 0


def test_reading_takes_a_layer(cache, fill):
    fill(cache, 3)
    cache.begin([3])
    assert cache.runs(0, 0) == cache.runs(1, 0) and cache.history(0) == cache.history(1)
    np.testing.assert_array_equal(cache.mask(0), cache.mask(1))
    for layer in (-1, 2):
        for call in (lambda: cache.runs(layer, 0), lambda: cache.history(layer)):
            with pytest.raises(kvc.InvalidArgument, match=f"layer {layer}"):
                call()
        for into in (None, np.zeros((1, 4), bool)):
            with pytest.raises(kvc.InvalidArgument, match=f"layer {layer}"):
                cache.mask(layer, into)
    cache.abort()


def test_runs_list_where_tokens_are(cache, fill):
    assert cache.runs(0, 0) == []
    fill(cache, 10)
    runs = cache.runs(0, 0)
    assert sum(run.length for run in runs) == 10 and runs[0].position == 0
    assert all(type(value) is int for value in astuple(runs[0])) and runs[0].offset == 0


@pytest.mark.parametrize("dtype", [None, "f32", "f16", "bf16"])
def test_gather(cache, fill, dtype):
    k, v, _ = fill(cache, 7)
    held_k, held_v = cache.gather(0, 0, dtype=dtype)
    np.testing.assert_allclose(held_k.astype(np.float32), k, rtol=1e-2, atol=1e-2)
    _, transposed = cache.gather(0, 0, transpose_v=True, dtype=dtype)
    assert transposed.shape == (2, 16, 7)
    np.testing.assert_array_equal(transposed.transpose(2, 0, 1), held_v)
    into = np.zeros((2, 7, 16), np.float32).transpose(1, 0, 2)
    assert cache.gather(0, 0, into, np.zeros((7, 2, 16), np.float16))[0] is into
    np.testing.assert_array_equal(into, k)
    with pytest.raises(kvc.ShapeError):
        cache.gather(0, 0, into[:6], v)
    keys, none = cache.gather(0, 0, v=False, dtype=dtype)
    assert none is None
    np.testing.assert_array_equal(keys, held_k)
    none, values = cache.gather(0, 0, False, np.zeros((7, 2, 16), np.float32))
    assert none is None
    np.testing.assert_array_equal(values, v)


def test_a_window_slides(make, fill):
    cache = make(reach=4, memory=6)
    fill(cache, 20)
    fill(cache, 1)
    info = cache.query(0)
    assert info.next == 21 and info.lost_below == 14 and info.first == 14 and info.count == 7
    assert cache.can_resume(0, 10) == 0
    with pytest.raises(kvc.WindowLost):
        cache.remove(0, 10)
    assert cache.resume(0, 19) == 19


def test_unlimited_memory_with_a_window(make, fill):
    cache = make(reach=4, memory=kvc.UNLIMITED)
    fill(cache, 20)
    fill(cache, 1)
    assert cache.resume(0, 2) == 2


def test_strict_caches_refuse_gaps(make):
    with pytest.raises(kvc.InvalidArgument):
        make(strict=True).begin([1])
    cache = make()
    cache.begin([1])
    cache.commit()
    assert cache.query(0).first == 1


def test_watching(cache, fill):
    assert cache.stats() == kvc.Stats("idle", 256, 0, 0, cache.stats().bytes, 0)
    empty = cache.digest()
    assert len(empty) == 32 and int(empty, 16) >= 0
    fill(cache, 5)
    halves = kvc_capi.kvc_state_digest(cache._handle)
    assert cache.digest() == "%016x%016x" % tuple(halves)  # as in every language
    assert cache.stats().cells_used == 5 and cache.stats().passes == 1
    assert cache.digest() != empty
    cache.check()
    assert "2 layers" in repr(cache) and "idle" in repr(cache)
    cache.close()
    assert "closed" in repr(cache)


def test_zero_on_free_and_prefault_are_accepted(make, fill):
    fill(make(zero_on_free=True, prefault=True), 3)


ATTRIBUTES = dict(
    kind="causal",
    n_layers=2,
    n_kv_heads=2,
    head_dim_k=16,
    head_dim_v=8,
    max_sequences=4,
    closed=False,
)


@pytest.mark.parametrize("name, value", ATTRIBUTES.items())
def test_attributes_are_read_only(make, name, value):
    cache = make(head_dim_v=8)
    assert getattr(cache, name) == value
    with pytest.raises(AttributeError):
        setattr(cache, name, value)


def test_an_unknown_attribute_is_refused_but_not_in_a_subclass(cache):
    with pytest.raises(AttributeError, match="no attribute 'softcap' to set: settings are arg"):
        cache.softcap = 30.0

    class Mine(kvc.Cache):
        pass

    with Mine(n_layers=1, n_kv_heads=1, head_dim=8, capacity=8) as mine:
        mine.name = "mine"
        assert mine.name == "mine" and mine.n_layers == 1


def test_with_a_reach_memory_bounds_a_sequence_and_capacity_does_not(make, fill):
    cache = make(capacity=8, reach=4, keep_first=1, max_sequences=1, max_batch=2)
    for _ in range(12):
        fill(cache, 2)
        assert cache.query(0).count <= 4 + 1 + 2 * 2
    assert cache.query(0).next == 24
