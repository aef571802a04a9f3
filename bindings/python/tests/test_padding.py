"""Padding tokens: they take no cell, and results do not depend on them."""

import numpy as np
import pytest

import kvc

REAL = [1, 2, 5]  # where the tokens of the pass are among 7 rows; the others are padding
PADDED = [0, 3, 4, 6]


@pytest.fixture
def both(make, fill, kvq):
    """Two equal caches of 12 tokens in each of two sequences, one pass for them without padding,
    and the same pass among rows of NaN."""
    plain, padded = make(), make()
    for sequence in range(2):
        k, v, _ = kvq(12)
        for cache in (plain, padded):
            with cache.forward(range(12), sequence):
                for layer in range(2):
                    cache.put(layer, k, v)
    rows = kvq(3)
    sparse = [np.full((7, *array.shape[1:]), np.nan, np.float32) for array in rows]
    for array, among in zip(rows, sparse):
        among[REAL] = array
    positions, sequences = np.full(7, -9), np.full(7, kvc.PADDING)
    positions[REAL], sequences[REAL] = [12, 12, 13], [0, 1, 1]
    return plain, padded, rows, sparse, positions, sequences


def test_a_padded_pass_is_bit_for_bit_the_pass_without(both):
    plain, padded, (k, v, q), sparse, positions, sequences = both
    plain.begin(positions[REAL], sequences[REAL])
    padded.begin(positions, sequences)
    for layer in range(2):
        lse, padded_lse = np.zeros((3, 4), np.float32), np.zeros((7, 4), np.float32)
        out = plain.put_attention(layer, k, v, q, lse=lse)
        padded_out = padded.put_attention(layer, *sparse, lse=padded_lse)
        np.testing.assert_array_equal(padded_out[REAL], out)
        np.testing.assert_array_equal(padded_lse[REAL], lse)
        assert not padded_out[PADDED].any() and np.isneginf(padded_lse[PADDED]).all()
    assert padded.digest() == plain.digest()
    plain.commit()
    padded.commit()
    assert padded.digest() == plain.digest()
    assert padded.stats().cells_used == 12 + 12 + 3


def test_extras_of_padding(both):
    _, padded, _, sparse, positions, sequences = both
    padded.begin(positions, sequences)
    columns = len(padded.history(0))
    bias, mask = np.zeros((7, columns), np.float32), np.ones((7, columns), bool)
    bias[PADDED] = np.nan
    weights = np.full((4, 7, columns), 9, np.float32)
    out = padded.put_attention(0, *sparse, bias=bias, mask=mask, weights=weights)
    assert np.isfinite(out).all() and np.isfinite(weights).all()
    assert not weights[:, PADDED].any()
    np.testing.assert_allclose(weights[:, REAL].sum(axis=2), 1, rtol=1e-6)
    assert np.isneginf(padded.mask(0)[PADDED]).all()
    seen = padded.mask(0, np.ones((7, columns), bool))
    assert not seen[PADDED].any() and seen[REAL].sum(axis=1).tolist() == [13, 13, 14]
    padded.abort()


def test_a_pass_of_padding_alone(cache, fill):
    fill(cache, 3)
    before = cache.digest()
    cache.begin([0, 0], kvc.PADDING)
    assert len(cache.history(0)) == 0 and cache.mask(0).shape == (2, 0)
    rows = np.full((2, 2, 16), np.nan, np.float32)
    assert not cache.put_attention(0, rows, rows, np.full((2, 4, 16), np.nan, np.float32)).any()
    cache.begin([3], 0)  # layer 1 was not put, and need not be
    cache.abort()
    assert cache.digest() == before and cache.query(0).next == 3


def test_padding_needs_no_room_but_counts_as_a_token(make):
    cache = make(cells=4, max_batch=6)
    sequences = [0] * 4 + [kvc.PADDING] * 2
    assert cache.fits([0, 1, 2, 3, 0, 0], sequences)
    with pytest.raises(kvc.InvalidArgument, match="7"):
        cache.fits([0, 1, 2, 3, 0, 0, 0], [*sequences, kvc.PADDING])


def test_padding_sees_nothing_later(cache):
    for call in (cache.begin, cache.fits):
        with pytest.raises(kvc.InvalidArgument):
            call([0, 1, 2], [0, kvc.PADDING, 0], sees_later=[1])
    cache.begin([0, 1, 2], [0, kvc.PADDING, 0], sees_later=[0])
    cache.set_causal([1])  # has no effect
    cache.abort()
