"""Recurrent caches: states by copy and in place, drafts, checkpoints, and what sequences share."""

import gc
import threading

import numpy as np
import pytest

import kvc
from conftest import CONV, STATE
from dlpack_producer import Producer

PARTS = {"recurrent": STATE, "conv": CONV}


@pytest.fixture
def states(random):
    """Random states of a part for n rows."""
    return lambda n, part="recurrent": random.standard_normal((n, *PARTS[part]), dtype=np.float32)


def put_all(cache, rows):
    """Puts rows[part] into every layer."""
    for layer in range(cache.n_layers):
        for part, given in rows.items():
            cache.state_put(layer, part, given)


@pytest.fixture
def feed(states):
    """A pass of n tokens of a sequence, with one row; returns what was put."""

    def run(cache, n, sequence=0):
        start = cache.query(sequence).next
        rows = {part: states(1, part) for part in PARTS}
        with cache.forward(range(start, start + n), sequence):
            put_all(cache, rows)
        return rows

    return run


def test_what_a_pass_puts_the_next_one_gets(recurrent, feed, states):
    cache = recurrent()
    rows = feed(cache, 5)
    cache.begin([5, 6, 0], [0, 0, 1])
    for layer in range(2):
        for part, dims in PARTS.items():
            got = cache.state_get(layer, part)
            assert got.shape == (2, *dims) and got.dtype == np.float32
            np.testing.assert_array_equal(got[0], rows[part][0])
            assert not got[1].any()  # a new sequence
            cache.state_put(layer, part, states(2, part))
            np.testing.assert_array_equal(cache.state_get(layer, part), got)  # from before the pass
    cache.abort()
    np.testing.assert_array_equal(cache.state_gather(1, "conv", 0), rows["conv"][0])
    assert cache.query(0) == kvc.SequenceInfo(5, 5, 0, 2**31 - 2 - 5, 0)
    assert cache.query(1).next == 0


def test_the_layout_names_tokens_rows_and_slots(recurrent):
    cache = recurrent(draft_states=2)
    cache.begin(
        [0, 0, 1, 9, 1, 2, 3, 2], [2, 0, 2, kvc.PADDING, 0, 2, 2, 0]
    )  # four tokens of 2, three of 0
    two, zero = cache.state_layout()
    assert (two.sequence, zero.sequence) == (2, 0)
    assert two.tokens.tolist() == [0, 2, 5, 6] and zero.tokens.tolist() == [1, 4, 7]
    assert (two.rows, zero.rows) == (slice(0, 1), slice(1, 4))  # after the last; after each
    assert (two.n_tokens, two.n_rows, zero.n_tokens, zero.n_rows) == (4, 1, 3, 3)
    assert two.read_slot == zero.read_slot == 0
    slots = cache.state_slots()
    assert slots.dtype == np.int32 and len(set(slots.tolist())) == 4 and 0 not in slots
    for integer in (two.sequence, two.read_slot):
        assert type(integer) is int
    cache.abort()
    with pytest.raises(kvc.BadState):
        cache.state_layout()


def test_drafts_keep_the_state_behind_each_token(recurrent, states):
    cache = recurrent(draft_states=3)
    rows = {part: states(4, part) for part in PARTS}
    cache.begin(range(4))
    put_all(cache, rows)
    cache.commit_prefix([0], [2])
    np.testing.assert_array_equal(cache.state_gather(1, "recurrent", 0), rows["recurrent"][1])
    np.testing.assert_array_equal(cache.state_gather(0, "conv", 0), rows["conv"][1])
    cache.begin(range(2, 7))  # five tokens have one row
    with pytest.raises(kvc.NotSupported):
        cache.commit_prefix([0], [2])
    cache.abort()


def test_the_convolution_state_is_made_from_its_inputs(recurrent, random, states):
    cache = recurrent(draft_states=3)
    x = random.standard_normal((7, CONV[0]), dtype=np.float32)
    with cache.forward(range(2)):
        for layer in range(2):
            cache.state_conv(layer, x[:2])
            cache.state_put(layer, "recurrent", states(2))
    expected = np.zeros(CONV, np.float32)
    expected[:, 1:] = x[:2].T
    np.testing.assert_array_equal(cache.state_gather(0, "conv", 0), expected)
    cache.begin([0, 2, 1, 3, 4], [1, 0, 1, 0, 0])
    for layer in range(2):
        cache.state_conv(layer, Producer(x[2:]) if layer else x[2:].astype(np.float16))
        cache.state_put(layer, "recurrent", states(5))
    cache.commit_prefix([0], [2])
    np.testing.assert_array_equal(cache.state_gather(1, "conv", 0), x[[1, 3, 5]].T)
    np.testing.assert_array_equal(
        cache.state_gather(0, "conv", 1)[:, 1:], x[[2, 4]].T.astype(np.float16)
    )


def test_kernels_write_states_in_place(recurrent, feed, states):
    cache = recurrent()
    rows = feed(cache, 3)
    cache.begin([3, 0], [0, 1])
    new = {part: states(2, part) for part in PARTS}
    for layer in range(2):
        for part, dims in PARTS.items():
            view = cache.state_view(layer, part)
            array = np.asarray(view)
            assert array.shape == (cache.stats().cells, *dims) and array.flags.writeable
            before = [array[each.read_slot] for each in cache.state_layout()]
            np.testing.assert_array_equal(before[0], rows[part][0])
            assert not before[1].any()
            for slot, row in zip(cache.state_slots(), new[part]):
                np.asarray(view[slot])[...] = row
            cache.state_done(layer, part)
    cache.commit()
    for part in PARTS:
        for sequence in range(2):
            np.testing.assert_array_equal(
                cache.state_gather(1, part, sequence), new[part][sequence]
            )
    with pytest.raises(kvc.BadState, match=r"ended: call state_view\(\) in the next pass"):
        np.asarray(view)


def test_a_view_of_states_is_lent_through_dlpack_to_be_written(recurrent):
    cache = recurrent()
    cache.begin([0])
    view = cache.state_view(0, "recurrent")
    slot = cache.state_slots()[0]
    older, newer = np.from_dlpack(view), np.asarray(view)
    assert older.ctypes.data == newer.ctypes.data
    newer[slot] = 7
    assert (older[slot] == 7).all() and (np.asarray(view[slot, 1]) == 7).all()
    # Read by this package's own reader: an array that is marked read-only would be refused.
    target = view[slot]
    cache.state_gather(0, "recurrent", 1, 0, into=Lent(target))
    assert not newer[slot].any()
    cache.abort()


class Lent:
    """Passes a view on through DLPack alone."""

    def __init__(self, view):
        self.view = view

    def __dlpack__(self, **options):
        return self.view.__dlpack__(**{"max_version": (1, 0), **options})

    def __dlpack_device__(self):
        return self.view.__dlpack_device__()


def test_keys_and_values_are_still_lent_read_only(cache, fill, kvq):
    cache.begin([0])
    k, v, _ = kvq(1)
    cache.put(0, k, v)
    view = cache.get(0)[0]
    assert not np.asarray(view).flags.writeable
    with pytest.raises((ValueError, TypeError, BufferError)):
        cache.gather(0, 0, Lent(view), False)
    cache.abort()


def test_an_array_over_states_outlives_its_cache(recurrent, states):
    cache = recurrent()
    cache.begin([0])
    array = np.asarray(cache.state_view(0, "recurrent"))
    slot = cache.state_slots()[0]
    array[slot] = 3
    cache.close()
    del cache
    gc.collect()
    assert (array[slot] == 3).all()


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
def test_states_are_converted_and_any_array_is_taken(recurrent, states, stored):
    cache = recurrent(dtype_state=stored, dtype_conv="f16")
    given = states(1)
    for index, (array, options) in enumerate(
        [
            (given, {}),
            (Producer(given), {}),
            (given.astype(np.float16), {}),
            (np.repeat(given, 2, axis=3)[..., ::2], {}),
            ((given.view(np.uint32) >> 16).astype(np.uint16), dict(dtype="bf16")),
            (given.reshape(1, 24), {}),
        ]
    ):
        with cache.forward([index]):
            for layer in range(2):
                cache.state_put(layer, "recurrent", array, **options)
                cache.state_put(layer, "conv", states(1, "conv"))
        into = np.zeros(STATE, np.float32)
        assert cache.state_gather(0, "recurrent", 0, into=into) is into
        np.testing.assert_allclose(into, given[0], atol=2e-2)
        flat = np.zeros(24, np.float16)
        cache.state_gather(0, "recurrent", 0, into=flat)
        np.testing.assert_allclose(flat, given.ravel(), atol=2e-2)
        own = cache.state_gather(0, "recurrent", 0)
        assert own.dtype.itemsize == (4 if stored == "f32" else 2) and own.shape == STATE
        if stored == "bf16":
            bits = cache.state_gather(0, "recurrent", 0, into=np.zeros(STATE, np.uint16))
            np.testing.assert_array_equal(bits, own.view(np.uint16))
        assert cache.state_gather(0, "conv", 0).dtype == np.float16
        assert cache.state_gather(0, "conv", 0, dtype="f32").dtype == np.float32


def test_a_cache_may_lack_a_part(recurrent, random):
    convolution = recurrent(state_shape=None)
    with convolution.forward([0]):
        for layer in range(2):
            convolution.state_conv(layer, np.ones((1, CONV[0]), np.float32))
    assert convolution.state_gather(0, "conv", 0)[:, -1].tolist() == [1.0] * CONV[0]
    state = recurrent(conv_channels=0, conv_dim=0, state_shape=8)
    with state.forward([0]):
        for layer in range(2):
            state.state_put(layer, "recurrent", np.ones((1, 8), np.float32))
    assert state.state_gather(0, "recurrent", 0).shape == (8,)
    for cache, part in ((convolution, "recurrent"), (state, "conv")):
        cache.begin([1])
        for call in (
            lambda: cache.state_get(0, part),
            lambda: cache.state_view(0, part),
            lambda: cache.state_done(0, part),
            lambda: cache.state_gather(0, part, 0),
        ):
            with pytest.raises(kvc.InvalidArgument, match=f'part is "{part}"; it must be'):
                call()
        cache.abort()
    with pytest.raises(
        kvc.InvalidArgument, match="no part: state_shape is None, and so is conv_ch"
    ):
        recurrent(state_shape=None, conv_channels=0, conv_dim=0)


def test_checkpoints_are_taken_listed_and_restored(recurrent, feed):
    cache = recurrent(checkpoints=2, checkpoint_interval=4, checkpoint_min_pos=2)
    rows = [feed(cache, 3) for _ in range(4)]  # the ends of passes are 3, 6, 9, 12
    assert cache.checkpoint_list(0) == [3, 9]
    assert cache.can_resume(0, 11) == 9 and cache.can_resume(0, 99) == 12
    np.testing.assert_array_equal(cache.state_gather(0, "conv", 0, 9), rows[2]["conv"][0])
    with pytest.raises(kvc.NotFound):
        cache.state_gather(0, "conv", 0, 6)
    cache.checkpoint_take(0)  # the lowest goes for it
    assert cache.checkpoint_list(0) == [9, 12]
    assert cache.copy_prefix(0, 1, 10) == 9 and cache.checkpoint_list(1) == [9]
    with pytest.raises(kvc.WindowLost):
        cache.remove(0, 10)
    assert not cache.can_remove(0, 10) and cache.can_remove(0, 9)
    assert cache.resume(0, 11) == 9 and cache.checkpoint_list(0) == [9]
    for sequence in range(2):
        np.testing.assert_array_equal(
            cache.state_gather(1, "recurrent", sequence), rows[2]["recurrent"][0]
        )
    assert cache.checkpoint_list(3) == []
    assert all(type(place) is int for place in cache.checkpoint_list(0))


def test_automatic_checkpoints_and_all_can_be_turned_off(recurrent, feed):
    by_call = recurrent(checkpoint_interval=None)
    for _ in range(2):
        feed(by_call, 30)
    assert by_call.checkpoint_list(0) == []
    by_call.checkpoint_take(0)
    assert by_call.checkpoint_list(0) == [60]
    none, at_once = recurrent(checkpoints=0), recurrent(checkpoint_min_pos=0)
    feed(none, 30), feed(at_once, 1)
    assert none.checkpoint_list(0) == [] and at_once.checkpoint_list(0) == [1]
    with pytest.raises(kvc.NotSupported, match="the cache has no checkpoints: checkpoints=0$"):
        none.checkpoint_take(0)
    sizes = dict(kind="recurrent", n_layers=2, state_shape=STATE, max_sequences=64)
    few, many = (kvc.Cache.memory_bytes(**sizes, checkpoints=n) for n in (0, 24))
    assert few < many


def test_removing_from_the_middle_leaves_an_approximate_state_if_that_is_wanted(recurrent, feed):
    exact, approximate = recurrent(), recurrent(approximate=True)
    for cache in (exact, approximate):
        feed(cache, 8)
    with pytest.raises(kvc.NotSupported):
        exact.remove(0, 2, 4)
    approximate.remove(0, 2, 4)
    info = approximate.query(0)
    assert info.next == 6 and info.approximate and not exact.query(0).approximate


def test_a_block_that_has_not_put_every_part_aborts(recurrent, states):
    cache = recurrent()
    with (
        pytest.raises(kvc.BadState, match="so this block aborted its pass: put every layer"),
        cache.forward([0]),
    ):
        cache.state_put(0, "recurrent", states(1))
    assert cache.query(0).next == 0
    with cache.forward([0]):
        cache.state_put(0, "recurrent", states(1))
        cache.commit()  # what was not put stays as it was
    assert cache.query(0).next == 1 and not cache.state_gather(1, "recurrent", 0).any()


def test_a_view_ends_with_a_checkpoint(recurrent, feed, states):
    cache = recurrent()
    feed(cache, 2)
    cache.begin([2])
    put_all(cache, {part: states(1, part) for part in PARTS})
    view = cache.state_view(0, "conv")
    cache.checkpoint_take(0)
    assert not view.valid and cache.checkpoint_list(0) == [3]


def test_the_gil_is_released_while_states_are_copied(device):
    shape = (32, 128, 128)
    state = np.ones((1, *shape), np.float32)
    with kvc.Cache(kind="recurrent", n_layers=1, state_shape=shape, device=device) as cache:
        cache.begin([0])
        stop = threading.Event()

        def store():
            while not stop.is_set():
                try:
                    cache.state_put(0, "recurrent", state)
                except kvc.Busy:
                    pass

        thread = threading.Thread(target=store)
        thread.start()
        try:
            for _ in range(100_000):
                try:
                    cache.query(0)
                except kvc.Busy:
                    break
            else:
                raise AssertionError("query() never overlapped state_put()")
        finally:
            stop.set()
            thread.join()
