"""Objects may go in any order, forgotten or closed, and in children of a fork."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

import kvc

SMALL = dict(n_layers=1, n_kv_heads=1, head_dim=8, capacity=16)


def put_one(cache, value=1.0, position=0):
    row = np.full((1, 1, 8), value, np.float32)
    cache.begin([position])
    cache.put(0, row, row)


def test_a_cache_outlives_its_device():
    device = kvc.Device(n_threads=2)
    cache = kvc.Cache(device=device, **SMALL)
    device.close()
    device.close()
    assert device.closed
    put_one(cache)
    assert cache.attention(0, np.ones((1, 1, 8), np.float32)).tolist() == [[[1.0] * 8]]
    cache.close()
    cache.close()


def test_a_device_outlives_its_caches():
    with kvc.Device(n_threads=2) as device:
        for _ in range(3):
            kvc.Cache(device=device, **SMALL).close()
        with kvc.Cache(device=device, **SMALL) as cache:
            put_one(cache)
    assert cache.closed


def test_forgotten_objects_are_closed(monkeypatch):
    cache = kvc.Cache(**SMALL)
    finalizer = cache._finalizer
    put_one(cache)
    del cache
    gc.collect()
    assert not finalizer.alive


def test_cycles_are_collected_in_any_order():
    device = kvc.Device(n_threads=1)
    cache = kvc.Cache(device=device, **SMALL)
    cache.me, cache.device, device.cache = cache, device, cache
    watch = weakref.ref(cache)
    del cache, device
    gc.collect()
    assert watch() is None


def test_a_view_keeps_its_cache():
    cache = kvc.Cache(**SMALL)
    put_one(cache, 3.0)
    k, v = cache.get(0)
    watch = weakref.ref(cache)
    part = k[0, 0, 2:4]
    del cache, k, v
    gc.collect()
    assert watch() is not None
    assert part.tolist() == [3.0, 3.0]
    del part
    gc.collect()
    assert watch() is None


def test_arrays_may_go_after_a_call():
    with kvc.Cache(**SMALL) as cache:
        cache.begin(np.array([0], np.int32))
        for _ in range(100):
            cache.put(0, np.ones((1, 1, 8), np.float32), np.ones((1, 1, 8), np.float32))
        gc.collect()
        cache.commit()
        assert cache.gather(0, 0)[0].tolist() == [[[1.0] * 8]]


def test_calls_leak_no_references():
    with kvc.Cache(**SMALL) as cache:
        row = np.ones((1, 1, 8), np.float32)
        out = np.zeros((1, 1, 8), np.float32)
        positions = np.zeros(1, np.int32)
        counts = [sys.getrefcount(each) for each in (row, out, positions)]
        for _ in range(10):
            cache.begin(positions, positions)
            cache.put_attention(0, row, row, row, out)
            with pytest.raises(kvc.ShapeError):
                cache.put(0, row[0], row)
            with pytest.raises(TypeError):
                cache.put(0, row, 3)
            cache.abort()
        assert [sys.getrefcount(each) for each in (row, out, positions)] == counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_of_a_fork_hold_nothing_and_may_open_their_own():
    with kvc.Cache(**SMALL) as cache:
        put_one(cache)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                try:
                    cache.stats()
                except kvc.InvalidHandle:
                    with kvc.Cache(**SMALL) as own:  # on a device of this process
                        put_one(own)
                        own.attention(0, np.ones((1, 1, 8), np.float32))
                    del cache
                    gc.collect()  # the finalizer meets a dead handle and says nothing
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        cache.commit()
        assert cache.query(0).next == 1


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "cache.begin([0])",
        "del device",
        "import gc; gc.disable(); cache.me = cache",
        "import atexit; atexit.register(cache.close)",
        "raise SystemExit(0)",
    ],
)
def test_interpreters_exit_quietly(ending, tmp_path):
    program = (
        "import kvc\n"
        "device = kvc.Device(n_threads=3)\n"
        "cache = kvc.Cache(device=device, n_layers=1, n_kv_heads=1, head_dim=8, capacity=16)\n"
        "other = kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8, capacity=16)\n" + ending
    )
    where = os.path.dirname(os.path.dirname(os.path.abspath(kvc.__file__)))
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": where},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
