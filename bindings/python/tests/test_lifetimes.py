"""Objects may be closed or collected in any order, also in forked children."""

import copy
import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import dlpack_producer as dlpack
import kvc
from kvc import kvc_capi

SMALL = dict(n_layers=1, n_kv_heads=1, head_dim=8, capacity=16)
LARGE = dict(n_layers=1, n_kv_heads=8, head_dim=128, capacity=1 << 15, max_batch=1)


def large_view():
    """A LARGE cache in a pass, a view of its keys, and their address."""
    cache = kvc.Cache(**LARGE)
    cache.begin([0])
    row = np.ones((1, 8, 128), np.float32)
    cache.put(0, row, row)
    view = cache.get(0)[0]
    return cache, view, np.asarray(view).ctypes.data


def mapped(address):
    """Whether the memory of a LARGE cache is mapped there; smaller mappings do not count."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
            if begin <= address < end:
                return end - begin > 100 << 20
    return False


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


def test_a_device_that_is_busy_stays_open(monkeypatch):
    device = kvc.Device(n_threads=1)
    close = kvc_capi.kvc_device_close

    calls = []

    def busy_once(handle):
        calls.append(handle)
        if len(calls) == 1:
            raise kvc.Busy("a cache is being created")
        close(handle)

    monkeypatch.setattr(kvc_capi, "kvc_device_close", busy_once)
    with pytest.raises(kvc.Busy):
        device.close()
    assert not device.closed
    kvc.Cache(device=device, **SMALL).close()
    del device  # closed when it is collected, as if close() had not been called
    gc.collect()
    assert len(calls) == 2
    with pytest.raises(kvc.InvalidHandle):
        close(calls[0])


def test_a_cache_is_closed_even_if_its_watcher_raises(monkeypatch):
    def watcher(cache):
        raise KeyError("mine")

    cache, view, address = large_view()
    monkeypatch.setattr(kvc.Cache, "_watcher", watcher)
    with pytest.raises(KeyError, match="mine"):
        cache.close()
    del view
    assert cache.closed and not mapped(address)
    cache.close()


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_owns_a_handle_is_neither_copied_nor_pickled(copying):
    """A copy would be a second owner of the handle, and the first to be closed would end both."""
    with kvc.Device(n_threads=1) as device, kvc.Cache(device=device, **SMALL) as cache:
        block = cache.forward([0])
        row = np.ones((1, 1, 8), np.float32)
        cache.put(0, row, row)
        view = cache.get(0)[0]
        verb = "pickled" if copying is pickle.dumps else "copied"
        for owner, instead in (
            (cache, "gather"),
            (device, "device in each process|same object"),
            (block, "a cache of this process|as it is"),
            (view, "numpy.array"),
        ):
            message = f"kvc.{type(owner).__name__} cannot be {verb}: .*({instead})"
            for holder in (owner, [owner]) if copying is not copy.copy else (owner,):
                with pytest.raises(TypeError, match=message):
                    copying(holder)
        cache.commit()
        assert cache.query(0).next == 1


def test_a_device_outlives_its_caches():
    with kvc.Device(n_threads=2) as device:
        for _ in range(3):
            kvc.Cache(device=device, **SMALL).close()
        with kvc.Cache(device=device, **SMALL) as cache:
            put_one(cache)
    assert cache.closed


def test_collected_objects_are_closed():
    cache = kvc.Cache(**LARGE)
    cache.begin([0])
    row = np.ones((1, 8, 128), np.float32)
    cache.put(0, row, row)
    address = np.asarray(cache.get(0)[0]).ctypes.data
    assert mapped(address)
    cache._me = cache
    del cache
    gc.collect()
    assert not mapped(address)


def test_cycles_are_collected_in_any_order():
    device = kvc.Device(n_threads=1)
    cache = kvc.Cache(device=device, **SMALL)
    cache._me, cache._device, device.cache = cache, device, cache
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
    assert np.asarray(part).tolist() == [3.0, 3.0]
    del part
    gc.collect()
    assert watch() is None


def test_arrays_may_be_freed_after_a_call():
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
def test_a_forked_child_has_no_handles_and_may_open_its_own():
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
                    gc.collect()  # the finalizer gets an error, which it ignores
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        cache.commit()
        assert cache.query(0).next == 1


@pytest.mark.parametrize("lend", [np.asarray, np.from_dlpack], ids=["asarray", "from_dlpack"])
@pytest.mark.parametrize("ending", ["close", "del", "with"])
def test_lent_memory_stays_until_the_last_array_is_gone(lend, ending):
    cache = kvc.Cache(**LARGE)
    cache.begin([0])
    row = np.full((1, 8, 128), 5.0, np.float32)
    cache.put(0, row, row)
    view = cache.get(0)[0]
    array, other = lend(view), lend(view[:, 3])
    address = array.ctypes.data
    if ending == "close":
        cache.close()
    elif ending == "with":
        with cache:
            pass
    del cache, view
    gc.collect()
    assert mapped(address) and (array == 5.0).all()
    part = array[:, 0, :2]
    del array
    assert mapped(address) and (part == 5.0).all() and (other == 5.0).all()
    del part
    assert mapped(address)
    del other
    assert not mapped(address)


def test_a_capsule_without_a_consumer_keeps_and_frees_memory():
    for max_version in (None, (1, 0)):
        cache, view, address = large_view()
        capsule = view.__dlpack__(max_version=max_version)
        cache.close()
        assert mapped(address)
        del capsule
        assert not mapped(address)


def test_a_consumer_may_release_on_any_thread_without_the_gil():
    cache, view, address = large_view()
    for kind, max_version in ((dlpack.Managed, None), (dlpack.Versioned, (1, 0))):
        capsule = view.__dlpack__(max_version=max_version)
        managed = dlpack.take(capsule, kind)
        del capsule
        if max_version:
            cache.close()
        assert mapped(address)
        # ctypes releases the GIL before it calls.
        deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)
        thread = threading.Thread(target=deleter, args=(ctypes.addressof(managed),))
        thread.start()
        thread.join()
    assert not mapped(address)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_lent_memory_is_readable_in_a_child_of_a_fork():
    cache = kvc.Cache(**SMALL)
    put_one(cache, 7.0)
    array = np.from_dlpack(cache.get(0)[0])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cache.close()
            if array.tolist() == [[[7.0] * 8]]:
                del array
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert array.tolist() == [[[7.0] * 8]]


LENT = (
    "import numpy as np\n"
    "row = np.ones((1, 1, 8), np.float32)\n"
    "cache.begin([0]); cache.put(0, row, row); view = cache.get(0)[0]\n"
)


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "cache.begin([0])",
        "del device",
        "import gc; gc.disable(); cache._me = cache",
        "import atexit; atexit.register(cache.close)",
        "raise SystemExit(0)",
        LENT + "keep = np.asarray(view)",
        LENT + "keep = np.from_dlpack(view); cache.close()",
        LENT + "keep = view.__dlpack__(max_version=(1, 0)); view.__array__().sum()",
        LENT + "import atexit; atexit.register(np.from_dlpack(view).sum)",
        LENT + "import gc; gc.disable(); loop = [np.from_dlpack(view)]; loop.append(loop)",
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
