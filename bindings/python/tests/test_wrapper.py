"""Caches that move as one: wrapped by hand, and made from one description of a model's layers."""

import contextlib
import gc
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import kvc
import reference

WINDOW = kvc.Layer(n_kv_heads=2, head_dim=16, sliding_window=5, memory=8)
FULL = kvc.Layer(n_kv_heads=1, head_dim=8)
CROSS = kvc.Layer(kind="encoder", n_kv_heads=2, head_dim=16, capacity=20)


@pytest.fixture
def rows(random):
    """Random float32 (k, v, q) of a layer for n tokens."""

    def draw(layer, n):
        heads, dim = layer.n_kv_heads, layer.head_dim
        return [
            random.standard_normal((n, h, dim), dtype=np.float32) for h in (heads, heads, 2 * heads)
        ]

    return draw


@pytest.fixture
def feed(rows):
    """Puts n new tokens of a sequence into every causal layer, and their K and V into `kept`."""

    def put(cache, layers, n, sequence=0, kept=None, **flags):
        start = cache.query(sequence).next
        with cache.forward(range(start, start + n), sequence, **flags):
            for number, layer in enumerate(layers):
                if layer.kind == "causal":
                    k, v, _ = rows(layer, n)
                    cache.put(number, k, v)
                    if kept is not None:
                        kept.setdefault(number, []).append((k, v))

    return put


def test_layers_reach_the_child_that_holds_them(model, rows):
    layers = [WINDOW, FULL, WINDOW, FULL]
    cache = model(*layers)
    assert cache.kind == "wrapper" and cache.n_layers == 4 and len(cache.children) == 2
    window, full = cache.children
    assert [cache.owner(i) for i in range(4)] == [(window, 0), (full, 0), (window, 1), (full, 1)]
    given = [rows(layer, 9) for layer in layers]
    out = []
    with cache.forward(range(9)):
        for number, (k, v, q) in enumerate(given):
            out.append(cache.put_attention(number, k, v, q))
            assert len(cache.history(number)) == 9 and cache.mask(number).shape == (9, 9)
            np.testing.assert_array_equal(np.asarray(cache.get(number)[0]), k)
    at = np.arange(9)
    for layer, (k, v, q), got in zip(layers, given, out):
        reach = 4 if layer is WINDOW else None
        expected = reference.attention(q, k, v, at, at, reach=reach)[0]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(cache.gather(3, 0)[1], given[3][1])
    np.testing.assert_array_equal(full.gather(1, 0)[1], given[3][1])
    assert cache.runs(1, 0) == full.runs(0, 0)


def test_what_is_true_of_all_children_is_an_attribute(model):
    same, different = model(FULL, WINDOW), model(FULL, replace(FULL, reach=3))
    assert (same.n_kv_heads, same.head_dim_k, same.head_dim_v) == (0, 0, 0)
    assert (different.n_kv_heads, different.head_dim_k, different.head_dim_v) == (1, 8, 8)
    assert same.max_sequences == 3
    assert repr(same) == "<kvc.Cache wrapper, 2 layers, 1 causal + 1 causal, idle>"


def test_results_have_the_values_size_of_their_layer(model, random):
    cache = model(FULL, replace(FULL, head_dim_v=4))
    cache.begin([0])
    k, q = (random.standard_normal((1, heads, 8), dtype=np.float32) for heads in (1, 2))
    assert cache.put_attention(0, k, k, q).shape == (1, 2, 8)
    assert cache.put_attention(1, k, k[:, :, :4].copy(), q).shape == (1, 2, 4)
    cache.commit()
    assert cache.gather(1, 0)[1].shape == (1, 1, 4)


def test_a_wrapper_can_resume_where_every_child_can(model, feed):
    layers = [WINDOW, FULL]
    cache = model(*layers)
    feed(cache, layers, 8)
    for _ in range(12):
        feed(cache, layers, 1)
    window, full = cache.children
    assert full.can_resume(0, 12) == 12 and window.can_resume(0, 12) == 0
    assert cache.can_resume(0, 12) == 0 and cache.can_resume(0, 17) == 17
    assert cache.resume(0, 17) == 17
    assert [child.query(0).next for child in cache.children] == [17, 17]
    assert cache.copy_prefix(0, 1) == 17
    assert [child.query(1).next for child in cache.children] == [17, 17]
    info = cache.query(0)
    assert info.next == 17 and info.room == min(child.query(0).room for child in cache.children)


def test_all_children_move_or_none(model, feed):
    layers = [replace(FULL, cells=4), WINDOW]
    cache = model(*layers)
    feed(cache, layers, 3)
    before = cache.digest()
    assert not cache.fits([3, 4])
    with pytest.raises(kvc.CacheFull, match="child 0 of the wrapper"):
        cache.begin([3, 4])
    with pytest.raises(kvc.NotSupported):  # nothing says how keys rotate
        cache.remove(0, 1, 2)
    assert cache.digest() == before
    assert [child.query(0).next for child in cache.children] == [3, 3]


def test_children_are_used_directly_but_do_not_move_by_themselves(model, rows):
    cache = model(FULL, WINDOW)
    full, window = cache.children
    for call in (lambda: full.begin([0]), lambda: full.remove(0), lambda: full.reorder([0], [1])):
        with pytest.raises(kvc.BadState, match="child of a wrapper.*: call the wrapper"):
            call()
    cache.begin([0, 1])
    for child, layer in ((full, FULL), (window, WINDOW)):
        k, v, q = rows(layer, 2)
        assert child.put_attention(0, k, v, q).shape == q.shape
    view = full.get(0)[0]
    through = cache.get(0)[0]
    assert np.shares_memory(np.asarray(view), np.asarray(through))
    cache.commit()
    for ended in (view, through):
        assert not ended.valid
        with pytest.raises(kvc.BadState, match="the pass of this view has ended"):
            np.asarray(ended)


def test_two_threads_put_two_children(model, random):
    layer = kvc.Layer(n_kv_heads=8, head_dim=64)
    other = replace(layer, reach=9)
    cache = model(layer, other, capacity=512, max_batch=512)
    k = random.standard_normal((512, 8, 64), dtype=np.float32)
    cache.begin(range(512))
    raised = []

    def put(child):
        try:
            for _ in range(20):
                child.put(0, k, k)
        except kvc.Error as error:
            raised.append(error)

    threads = [threading.Thread(target=put, args=[child]) for child in cache.children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised
    cache.commit()
    for number in range(2):
        np.testing.assert_array_equal(cache.gather(number, 0, dtype="f32")[0][-1], k[-1])


@pytest.fixture
def slow(device):
    """Two caches whose puts take milliseconds, their wrapper in a pass, and rows for them."""
    sizes = dict(n_layers=1, n_kv_heads=8, head_dim=128, capacity=2048, max_batch=2048)
    caches = [kvc.Cache(device=device, **sizes), kvc.Cache(device=device, reach=4, **sizes)]
    caches.append(kvc.Cache.wrap(caches))
    caches[-1].begin(range(2048))
    yield (*caches, np.ones((2048, 8, 128), np.float32))
    for cache in caches:
        cache.close()


@contextlib.contextmanager
def puts_of_another_thread(cache, rows):
    """Another thread is inside cache.put(0, …) nearly all the time."""
    stop = threading.Event()

    def put():
        while not stop.is_set():
            try:
                cache.put(0, rows, rows)
            except kvc.Error:
                pass

    thread = threading.Thread(target=put)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_call_on_a_wrapper_is_one_on_the_child_that_it_reaches(slow):
    first, second, wrapper, rows = slow

    def is_busy(call):
        try:
            call()
        except kvc.Busy:
            return True
        return False

    def overlaps(call):
        """Tries for as long as it takes the other thread to get the interpreter, however short the call is."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if is_busy(call):
                return True
        return False

    one = rows.copy()
    with puts_of_another_thread(first, rows):
        assert overlaps(lambda: wrapper.put(0, one, one))
        assert overlaps(lambda: wrapper.query(0))
        assert not any(is_busy(lambda: wrapper.put(1, one, one)) for _ in range(20))
        assert not any(is_busy(lambda: second.put(0, one, one)) for _ in range(20))


def test_closing_a_wrapper_waits_for_a_call_on_a_child(slow):
    """A wrapper that was not destroyed would keep its children wrapped for ever."""
    first, second, wrapper, rows = slow
    with puts_of_another_thread(first, rows):
        wrapper.close()
    for child in (first, second):
        child.abort()


def test_closing_a_child_waits_for_a_call_on_its_wrapper(slow):
    """A handle that was not destroyed would keep its memory for ever."""
    first, _, wrapper, rows = slow
    first.put(0, rows, rows)
    address = np.asarray(first.get(0)[0]).ctypes.data
    assert maps_megabytes(address)
    with puts_of_another_thread(wrapper, rows):
        first.close()
    wrapper.close()
    assert not maps_megabytes(address)


def maps_megabytes(address):
    """Whether an address lies in a mapping as large as a cache of `slow`."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
            if begin <= address < end:
                return end - begin > 8 << 20
    return False


# ---- Lifetimes -----------------------------------------------------------------------------------


@pytest.fixture
def children(make):
    return make(n_layers=1), make(n_layers=2, reach=3)


def test_children_are_free_again_when_their_wrapper_is_closed(children, fill):
    with kvc.Cache.wrap(children) as wrapper:
        fill(wrapper, 3)
        wrapper.begin([3])
        with pytest.raises(kvc.BadState):
            children[0].commit()
    assert wrapper.closed and not any(child.closed for child in children)
    children[0].abort()  # the open pass was left as it was
    children[1].abort()
    assert children[0].query(0).next == 3
    fill(children[0], 2)
    assert children[1].query(0).next == 3
    with pytest.raises(kvc.BadState, match=r"children\[0\]"):  # no longer empty
        kvc.Cache.wrap(children)


def test_an_array_over_a_view_does_not_keep_children_wrapped(children, kvq):
    wrapper = kvc.Cache.wrap(children)
    wrapper.begin([0])
    k, v, _ = kvq(1)
    for number in range(3):
        wrapper.put(number, k, v)
    shown = np.asarray(wrapper.get(0)[0])
    wrapper.close()
    children[0].commit()  # not wrapped
    np.testing.assert_array_equal(shown, k)


@pytest.mark.parametrize("drop", ["close", "collect"])
def test_a_wrapper_outlives_its_childrens_handles(make, fill, kvq, drop):
    children = [make(n_layers=1), make(n_layers=1, reach=3)]
    wrapper = kvc.Cache.wrap(children)
    fill(wrapper, 2)
    if drop == "close":
        for child in children:
            child.close()
    else:
        del children
        gc.collect()
    k, v, q = kvq(1)
    with wrapper.forward([2]):
        for number in range(2):
            wrapper.put_attention(number, k, v, q)
        shown = np.asarray(wrapper.get(0)[0])
        np.testing.assert_array_equal(shown[-1:], k)
    assert wrapper.query(0).next == 3
    wrapper.close()


def test_a_cache_from_layers_closes_its_children(model):
    cache = model(FULL, WINDOW)
    children = cache.children
    cache.close()
    assert all(child.closed for child in children)
    with pytest.raises(kvc.InvalidHandle):
        children[0].query(0)


def test_a_cache_that_cannot_be_made_leaves_nothing_open(device, monkeypatch):
    made = []
    create = kvc.Cache.__init__

    def note(self, **arguments):
        made.append(self)
        create(self, **arguments)

    monkeypatch.setattr(kvc.Cache, "__init__", note)
    with pytest.raises(kvc.InvalidArgument):
        kvc.Cache.from_layers([FULL, replace(FULL, n_kv_heads=-1)], device=device, capacity=8)
    assert len(made) == 2 and made[0].closed


# ---- Wrapping by hand ------------------------------------------------------------------------------


def test_layers_are_named_by_index_or_by_cache(children, kvq):
    a, b = children
    with kvc.Cache.wrap(children, [(1, 0), (a, 0), (b, 1), (0, np.int32(0))]) as cache:
        assert [cache.owner(i) for i in range(4)] == [(b, 0), (a, 0), (b, 1), (a, 0)]
    with kvc.Cache.wrap(children) as cache:
        assert [cache.owner(i) for i in range(3)] == [(a, 0), (b, 0), (b, 1)]
    with kvc.Cache.wrap(children, []) as cache:  # all by the children
        assert cache.n_layers == 0
        cache.begin([0])
        k, v, _ = kvq(1)
        for child in children:
            for layer in range(child.n_layers):
                child.put(layer, k, v)
        cache.commit()
    assert a.owner(0) == (a, 0) and a.children == ()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda a, b: kvc.Cache.wrap([a, a]), kvc.InvalidArgument, "children"),
        (lambda a, b: kvc.Cache.wrap([]), kvc.InvalidArgument, "n_children 0"),
        (lambda a, b: kvc.Cache.wrap([a, None]), TypeError, r"children\[1\] must be a kvc.Cache"),
        (lambda a, b: kvc.Cache.wrap([a], [(b, 0)]), kvc.InvalidArgument, "none of children"),
        (lambda a, b: kvc.Cache.wrap([a], [0]), TypeError, r"layers\[0\] must be a child and a"),
        (lambda a, b: kvc.Cache.wrap([a], [(0, 7)]), kvc.InvalidArgument, "7"),
        (lambda a, b: kvc.Cache.wrap([a], [(3, 0)]), kvc.InvalidArgument, "3"),
        (
            lambda a, b: kvc.Cache.wrap([a], [(0, "x")]),
            TypeError,
            r"layers\[0\]\[1\] must be an in",
        ),
        (lambda a, b: kvc.Cache.wrap([kvc.Cache.wrap([a])]), kvc.NotSupported, "is a wrapper"),
        (lambda a, b: [kvc.Cache.wrap([a]), kvc.Cache.wrap([a])], kvc.BadState, "another wrapper"),
        (lambda a, b: b.close() or kvc.Cache.wrap([b]), kvc.InvalidHandle, r"\[0\] is closed"),
        (lambda a, b: kvc.Cache(kind="wrapper", n_layers=1), kvc.NotSupported, r"Cache.wrap\(\)"),
        (lambda a, b: a.owner(1), kvc.InvalidArgument, r"layer 1 out of range \[0, 1\)"),
        (lambda a, b: kvc.Cache.wrap([a]).put(1, None, None), TypeError, "must be an array"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(children, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(*children)
    gc.collect()  # wrappers that a failing call has left
    assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)


def test_a_flag_reaches_the_children_that_know_it(model, feed, rows):
    layers = [FULL, CROSS]
    cache = model(*layers)
    k, v, _ = rows(CROSS, 3)
    with cache.forward([0, 1], sees_later=[0], carries_input=[1]):
        cache.put(0, *rows(FULL, 2)[:2])
        cache.encoder_put(1, 0, k, v)
    assert cache.encoder_query(0) == cache.children[1].encoder_query(0) == kvc.EncoderInput(1, 3)
    with cache.forward([0], 1, carries_input=[0]):
        cache.put(0, *rows(FULL, 1)[:2])
        cache.encoder_share(1, 0)
    assert cache.children[1].stats().cells_shared == 3
    with pytest.raises(kvc.InvalidArgument, match="carries_input"):
        model(FULL).begin([0], carries_input=[0])


def test_a_block_names_the_layers_of_the_wrapper_that_were_not_put(model, rows):
    cache = model(WINDOW, FULL, WINDOW)
    with (
        pytest.raises(kvc.BadState, match="1 of 3 layers were put, without layers 0, 2, so this"),
        cache.forward([0]),
    ):
        cache.put(1, *rows(FULL, 1)[:2])
    with (
        pytest.raises(kvc.BadState, match="child 0 of the wrapper"),
        kvc.Cache.wrap([kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8, capacity=8)], []) as other,
        other.forward([0]),
    ):
        pass


def test_constants_are_bound_by_layer(model, rows):
    layers = [WINDOW, FULL, WINDOW]
    cache = model(*layers)
    cache.bind_attention(2, layers=1, softcap=5.0)
    cache.bind_rope(layers=1, pairs="halves", frequency_factors=np.ones(4))
    cache.bind_rope(layers=2, frequency_factors=np.ones(8))
    with pytest.raises(
        kvc.InvalidArgument, match=r"frequency_factors has shape \(4,\), not \(8,\)"
    ):
        cache.bind_rope(layers=(0, 2), frequency_factors=np.ones(4))
    k, v, q = rows(FULL, 4)
    with cache.forward(range(4)):
        out = cache.put_attention(1, k, v, q)
        for number in (0, 2):
            cache.put(number, *rows(WINDOW, 4)[:2])
    at = np.arange(4)
    np.testing.assert_allclose(out, reference.attention(q, k, v, at, at, softcap=5.0)[0], atol=1e-5)


def test_factors_fit_the_keys_of_all_layers_that_they_are_bound_to(model):
    cache = model(FULL, WINDOW)  # keys of 8 and of 16 dimensions
    cache.bind_rope(frequency_factors=[1.0] * 4, layers=0)
    cache.bind_rope(frequency_factors=[1.0] * 8, layers=1)
    cache.bind_rope(n_dims=8, frequency_factors=[1.0] * 4)
    for factors in (4, 8):  # the library would read behind four
        with pytest.raises(kvc.InvalidArgument, match=f"shape \\({factors},\\)"):
            cache.bind_rope(frequency_factors=[1.0] * factors)
