"""The GIL is released while the library works, and overlapping calls raise Busy."""

import ctypes
import sys
import threading
import time

import numpy as np
import pytest

import kvc


@pytest.fixture
def slow():
    """A cache with one thread of its own, and arguments for an attention of about 0.2 s."""
    n_tokens, n_heads, head_dim = 1024, 16, 128
    array = np.ones((n_tokens, n_heads, head_dim), np.float32)
    with (
        kvc.Device(n_threads=1) as device,
        kvc.Cache(
            device=device,
            n_layers=1,
            n_kv_heads=n_heads,
            head_dim=head_dim,
            capacity=n_tokens,
            max_batch=n_tokens,
            max_q_heads=n_heads,
        ) as cache,
    ):
        cache.begin(np.arange(n_tokens, dtype=np.int32))
        yield cache, array


def steps_of_another_thread_during(call):
    """How often another thread ran Python code while this thread was inside a call."""
    steps = 0
    stop = threading.Event()

    def count():
        nonlocal steps
        while not stop.is_set():
            steps += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    # The interpreter does not request the GIL from this thread for 60 s: only the call releases it.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    thread.start()
    try:
        while steps < 3:
            time.sleep(0.001)
        before = steps
        call()
        during = steps - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    return during


def test_another_thread_runs_during_long_calls(slow):
    cache, array = slow
    cache.put(0, array, array)
    calls = {
        "attention": lambda: [cache.attention(0, array) for _ in range(3)],
        "put": lambda: [cache.put(0, array, array) for _ in range(100)],
        "put_attention": lambda: cache.put_attention(0, array, array, array),
        "mask": lambda: [cache.mask(0) for _ in range(20)],
        "gather": lambda: [cache.gather(0, 0) for _ in range(20)],
        "digest": lambda: [cache.digest() for _ in range(3)],
    }
    for name, call in calls.items():
        assert steps_of_another_thread_during(call) > 0, name


def test_short_calls_keep_the_gil(cache, device):
    """Reacquiring it costs more than they do: up to a switch interval if other threads compute."""
    cache.begin([0])

    def calls():
        for _ in range(100):
            cache.stats()
            cache.query(0)
            cache.can_resume(0, 1)
            cache.history(0)
            cache.set_causal()
            kvc.Cache.memory_bytes(n_layers=1, n_kv_heads=1, head_dim=8, capacity=16, device=device)

    assert steps_of_another_thread_during(calls) == 0
    cache.abort()


def test_integers_that_another_thread_writes_are_read_once():
    """A sequence that changed after it was checked would be an index out of bounds."""
    n_tokens = 4096
    positions = np.arange(n_tokens, dtype=np.int32)
    sequences = np.zeros(n_tokens, np.int32)
    stop = threading.Event()

    def write():  # NumPy and ctypes release the GIL here
        while not stop.is_set():
            ctypes.memset(sequences.ctypes.data, 0x3F, sequences.nbytes)
            ctypes.memset(sequences.ctypes.data, 0, sequences.nbytes)

    thread = threading.Thread(target=write)
    with kvc.Cache(
        n_layers=1, n_kv_heads=1, head_dim=8, capacity=n_tokens, max_batch=n_tokens
    ) as cache:
        thread.start()
        try:
            for _ in range(2000):
                try:
                    cache.begin(positions, sequences)
                except kvc.InvalidArgument:
                    continue
                assert cache.query(0).next == n_tokens
                cache.abort()
        finally:
            stop.set()
            thread.join()
        cache.check()


def test_creating_releases_the_gil():
    def create():
        for _ in range(20):
            kvc.Cache(n_layers=4, n_kv_heads=8, head_dim=128, capacity=4096, prefault=True).close()

    assert steps_of_another_thread_during(create) > 0


def test_an_overlap_on_one_cache_is_busy(slow):
    cache, array = slow
    cache.put(0, array, array)
    busy = attempts = 0
    while busy == 0 and attempts < 20:  # a busy machine may not run this thread during the call
        attempts += 1
        results = []
        thread = threading.Thread(target=lambda: results.append(cache.attention(0, array)))
        thread.start()
        while thread.is_alive() and busy < 3:
            assert cache.stats().state == "pass"  # the one call that is never Busy
            try:
                cache.set_causal()
            except kvc.Busy:
                busy += 1
        thread.join()
        if results:  # else set_causal() came first, and attention() was Busy
            np.testing.assert_allclose(results[0], 1.0, rtol=1e-5)
    assert busy > 0
    cache.commit()


def test_closing_lets_a_running_call_finish(slow):
    cache, array = slow
    cache.put(0, array, array)
    results = []
    started = threading.Event()

    def attend():
        started.set()
        results.append(cache.attention(0, array))

    thread = threading.Thread(target=attend)
    thread.start()
    started.wait()
    time.sleep(0.01)
    cache.close()
    assert cache.closed
    with pytest.raises(kvc.InvalidHandle):
        cache.stats()
    thread.join()
    np.testing.assert_allclose(results[0], 1.0, rtol=1e-5)


def test_caches_of_different_threads_are_independent(device):
    """Each thread gets its own results and its own error messages."""
    failures = []

    def work(number):
        try:
            row = np.full((1, 1, 8), number, np.float32)
            with kvc.Cache(
                device=device, n_layers=1, n_kv_heads=1, head_dim=8, capacity=300
            ) as cache:
                for position in range(200):
                    with cache.forward([position]):
                        out = cache.put_attention(0, row, row, row)
                        assert np.allclose(out, number)
                        with pytest.raises(kvc.InvalidArgument, match=f"layer {number + 10}"):
                            cache.put(number + 10, row, row)
                assert cache.query(0).next == 200
        except BaseException as error:  # any exception must fail the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_a_cache_moves_between_threads(cache, kvq):
    k, v, _ = kvq(1)

    def step(position):
        with cache.forward([position]):
            for layer in range(cache.n_layers):
                cache.put(layer, k, v)

    for position in range(5):
        thread = threading.Thread(target=step, args=(position,))
        thread.start()
        thread.join()
    assert cache.query(0).next == 5


def test_reading_calls_overlap(slow):
    cache, array = slow
    cache.put(0, array, array)
    cache.commit()
    expected = cache.digest()
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append((cache.digest(), cache.query(0), cache.runs(0, 0)))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(result[0] == expected for result in results)
