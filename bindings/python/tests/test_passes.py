"""Passes: what opens, commits and aborts them."""

import numpy as np
import pytest

import kvc
from kvc import kvc_capi


def test_a_pass_commits_or_aborts(cache, kvq):
    k, v, q = kvq(3)
    empty = cache.digest()
    cache.begin([0, 1, 2], 1)
    cache.put(0, k, v)
    cache.put(1, k, v)
    cache.abort()
    assert cache.digest() == empty
    cache.begin([0, 1, 2], [1, 1, 1])
    cache.commit()
    assert cache.query(1).count == 3
    assert not cache.gather(0, 1)[0].any()  # a layer that was not put holds zeros
    with cache.forward([3], 1) as this:
        assert this.cache is cache
        for layer in range(2):
            cache.put(layer, k[:1], v[:1])
    assert cache.query(1).next == 4
    with pytest.raises(KeyError):
        with cache.forward([4], 1):
            raise KeyError
    assert cache.query(1).next == 4 and cache.stats().state == "idle"
    with cache.forward([4], 1):
        cache.abort()  # the pass has ended: the block does not end it again
    assert cache.query(1).next == 4


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_block_ends_its_own_pass_alone(cache, kvq, error):
    """The count of committed passes cannot tell: an aborted pass leaves it unchanged."""
    k, v, _ = kvq(1)
    try:
        with cache.forward([0]):
            cache.abort()
            cache.begin([0])
            for layer in range(2):
                cache.put(layer, k, v)
            if error:
                raise error
    except KeyError:
        pass
    assert cache.stats().state == "pass" and cache.stats().passes == 0
    cache.commit()
    with cache.forward([1]):
        cache.close()  # nothing is left to end


def test_what_a_block_raises_is_not_replaced(cache, monkeypatch):
    with pytest.raises(KeyError, match="mine"):
        with cache.forward([0]):
            cache.close()
            raise KeyError("mine")

    def poisoned(handle):
        raise kvc.InternalError("only destroy works")

    with kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8, capacity=8) as other:
        with pytest.raises(KeyError, match="mine"):
            with other.forward([0]):
                monkeypatch.setattr(kvc_capi, "kvc_abort", poisoned)
                raise KeyError("mine")
        monkeypatch.undo()
        other.abort()
        monkeypatch.setattr(kvc_capi, "kvc_commit", poisoned)
        with pytest.raises(kvc.InternalError):  # the block itself has not raised
            with other.forward([0]):
                other.put(0, *[np.ones((1, 1, 8), np.float32)] * 2)


def test_a_block_that_forgot_a_layer_raises_as_begin_does_and_aborts(make, fill, kvq):
    cache = make()
    fill(cache, 2)
    k, v, _ = kvq(1)
    before = cache.digest()
    for put in ([], [0], [1, 1]):
        with pytest.raises(kvc.BadState, match=f"{len(set(put))} of 2 layers.* commit\\(\\)"):
            with cache.forward([2]):
                for layer in put:
                    cache.put(layer, k, v)
        assert cache.stats().state == "idle" and cache.digest() == before
    with cache.forward([2]):
        cache.put(0, k, v)
        cache.commit()  # keeps zeros in layer 1
    assert cache.query(0).next == 3


@pytest.mark.parametrize(
    "put, message",
    [
        ([], "0 of 6 layers were put, without layers 0-5, so"),
        ([0, 2, 4, 5], "4 of 6 layers were put, without layers 1, 3, so"),
        ([1, 2, 3, 4, 5], "5 of 6 layers were put, without layer 0, so"),
        ([0, 3], "2 of 6 layers were put, without layers 1-2, 4-5, so"),
    ],
)
def test_a_block_names_the_layers_that_it_forgot(make, kvq, put, message):
    cache = make(n_layers=6)
    k, v, _ = kvq(1)
    with pytest.raises(kvc.BadState, match=message) as caught:
        with cache.forward([0]):
            for layer in put:
                cache.put(layer, k, v)
    assert str(caught.value).count("put every layer") == str(caught.value).count("commit()") == 1


def test_a_full_cache_still_commits_its_last_pass(make, fill):
    cache = make(cells=8, capacity=8, strict=True)
    fill(cache, 8)
    assert cache.query(0).next == 8 and not cache.fits([8])


def test_a_pass_shows_what_it_is(cache, kvq):
    k, v, _ = kvq(2)
    with cache.forward(iter([0, 1])) as block:
        assert repr(block) == "<kvc.Pass of 2 tokens, open>" and block.open
        for layer in range(2):
            cache.put(layer, k, v)
    assert repr(block) == "<kvc.Pass of 2 tokens, ended>" and not block.open
    other = cache.forward([2])
    assert repr(other) == "<kvc.Pass of 1 token, open>"
    cache.close()
    assert "ended" in repr(other)


def test_beginning_again_commits_what_was_put(cache, kvq):
    k, v, _ = kvq(1)
    cache.begin([0])
    with pytest.raises(kvc.BadState):
        cache.begin([1])
    for layer in range(2):
        cache.put(layer, k, v)
    cache.begin([1])
    assert cache.stats().passes == 1
    cache.abort()
    assert cache.query(0).next == 1


@pytest.mark.parametrize(
    "positions",
    [
        [0, 1, 2],
        (0, 1, 2),
        range(3),
        np.arange(3),
        np.arange(3, dtype=np.int32),
        np.arange(6, dtype=np.int32)[::2] // 2,
        np.arange(3, dtype=np.int16),
        [np.int64(0), 1, 2],
    ],
    ids=["list", "tuple", "range", "int64", "int32", "strided", "int16", "numpy ints"],
)
def test_positions_of_any_kind(cache, positions):
    cache.begin(positions, np.zeros(3, np.int8))
    cache.commit()
    info = cache.query(0)
    assert (info.first, info.next, info.count) == (0, 3, 3)


def test_many_positions_are_converted(make):
    cache = make(capacity=200, max_batch=200)
    cache.begin(list(range(200)), [1] * 200)
    cache.commit()
    assert cache.query(1).count == 200


def test_fits_predicts_begin(make):
    cache = make(cells=8)
    assert cache.fits(range(8)) and cache.fits(range(8), sees_later=[0, 3])
    assert not cache.fits(range(9))
    with pytest.raises(kvc.CacheFull):
        cache.begin(range(9))
    for wrong in (dict(positions=[-1]), dict(positions=[0], sees_later=[1])):
        for call in (cache.fits, cache.begin):
            with pytest.raises(kvc.InvalidArgument):
                call(**wrong)
    assert cache.stats().state == "idle"


def test_commit_prefix_keeps_what_was_verified(cache, kvq):
    k, v, _ = kvq(6)
    cache.begin([0, 0, 1, 1, 2, 2], [0, 1] * 3)
    for layer in range(2):
        cache.put(layer, k, v)
    cache.commit_prefix([0], np.array([2]))
    assert cache.query(0).next == 2 and cache.query(1).next == 3


def test_a_reserve_pass_sizes_the_worst_case(cache, kvq):
    before = cache.digest()
    cache.begin_reserve(32)
    assert cache.stats().state == "reserve"
    k, v, q = kvq(32)
    assert cache.put_attention(0, k, v, q).shape == q.shape
    assert len(cache.get(0)[0]) == cache.mask(0).shape[1] == cache.stats().cells
    cache.abort()
    assert cache.digest() == before
