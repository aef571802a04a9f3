"""Each status raises an exception of its own, with the library's message."""

import pickle

import numpy as np
import pytest

import kvc
from kvc import kvc_capi


def statuses():
    return {
        name[len("KVC_E_") :]: getattr(kvc_capi, name)
        for name in dir(kvc_capi)
        if name.startswith("KVC_E_")
    }


def test_every_status_has_an_exception():
    kinds = {kind.status: kind for kind in kvc.Error.__subclasses__()}
    assert len(statuses()) >= 20
    for name, status in statuses().items():
        assert kvc_capi.kvc_status_name(status) == name
        kind = kinds.pop(status)
        assert getattr(kvc, kind.__name__) is kind
    assert not kinds


def test_statuses_are_an_enum_and_still_numbers():
    assert {status.name: int(status) for status in kvc.Status} == {"OK": 0, **statuses()}
    with pytest.raises(kvc.InvalidArgument) as caught:
        kvc.Device(n_threads=-1)
    status = caught.value.status
    assert status is kvc.Status.INVALID_ARGUMENT
    assert status == kvc_capi.KVC_E_INVALID_ARGUMENT and status < 0
    assert {-1234: "by number"}[kvc.Error("of a newer library", -1234).status] == "by number"
    assert kvc.Status(-1234).name == "UNKNOWN"
    with pytest.raises(ValueError):
        kvc.Status("BUSY")


@pytest.mark.parametrize(
    "kind, builtin",
    [
        (kvc.InvalidArgument, ValueError),
        (kvc.ShapeError, ValueError),
        (kvc.DtypeError, TypeError),
        (kvc.OutOfMemory, MemoryError),
        (kvc.NotSupported, NotImplementedError),
        (kvc.SizeOverflow, OverflowError),
        (kvc.NotFound, LookupError),
        (kvc.NotFound, ValueError),
    ],
)
def test_exceptions_are_built_in_ones_too(kind, builtin):
    assert issubclass(kind, builtin) and issubclass(kind, kvc.Error)


def test_exceptions_travel_between_processes():
    error = pickle.loads(pickle.dumps(kvc.CacheFull("no room")))
    assert type(error) is kvc.CacheFull and str(error) == "no room" and error.status == -20
    assert error.status is kvc.Status.CACHE_FULL
    unknown = pickle.loads(pickle.dumps(kvc.Error("new", -1234)))
    assert unknown.status == -1234 and type(unknown.status) is kvc.Status


def raised(kind, call, *arguments, **options):
    """The message of the exception, whose type must be exactly `kind`."""
    with pytest.raises(kvc.Error) as caught:
        call(*arguments, **options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.status == kind.status
    return str(caught.value)


def test_invalid_arguments(cache, make):
    assert "40" in raised(kvc.InvalidArgument, cache.begin, [0] * 40)
    for positions, sequences in (
        ([-1], 0),
        ([1, 0], 0),
        ([0], 4),
        ([0, 1], [0]),
        ([2**31], 0),
        ([], 0),
    ):
        raised(kvc.InvalidArgument, cache.begin, positions, sequences)
    raised(kvc.InvalidArgument, cache.begin, [0], sees_later=[1])
    raised(kvc.InvalidArgument, cache.copy_prefix, 0, 0)
    raised(kvc.InvalidArgument, cache.copy_prefix, 0, 1, -1)
    raised(kvc.InvalidArgument, cache.reorder, [0, 0], [1, 2])
    raised(kvc.InvalidArgument, cache.reorder, [0, 1], [1])
    raised(kvc.InvalidArgument, cache.remove, 0, 5, 2)
    raised(kvc.InvalidArgument, cache.query, 4)
    raised(kvc.InvalidArgument, cache.query, 2**40)
    raised(kvc.InvalidArgument, cache.can_resume, 0, -1)
    raised(kvc.InvalidArgument, make, capacity=-1)
    raised(kvc.InvalidArgument, make, capacity=2**40)
    raised(kvc.InvalidArgument, make, reach=0)
    raised(kvc.InvalidArgument, make, sliding_window=1)
    raised(kvc.InvalidArgument, make, sliding_window=4, reach=3)
    raised(kvc.InvalidArgument, cache.bind_attention, 3)
    raised(kvc.InvalidArgument, cache.bind_attention, 4, sinks=[1.0])
    raised(kvc.InvalidArgument, cache.bind_attention, 4, scale=float("nan"))
    raised(kvc.InvalidArgument, cache.bind_attention, 4, layers=2)
    raised(kvc.InvalidArgument, cache.bind_attention, 4, layers=range(0, 2, 2))
    raised(kvc.InvalidArgument, cache.bind_rope, pairs="thirds")
    raised(kvc.InvalidArgument, cache.bind_rope, base=-1.0)
    raised(kvc.InvalidArgument, cache.bind_rope, frequency_factors=[1.0])
    raised(kvc.InvalidArgument, kvc.Device, n_threads=1000)


def test_a_layer_outside(cache, kvq):
    k, v, q = kvq(1)
    cache.begin([0])
    assert "layer 2" in raised(kvc.InvalidArgument, cache.put, 2, k, v)
    cache.abort()


def test_wrong_python_types(cache, kvq):
    k, v, q = kvq(1)
    cache.begin([0])
    for call in (
        lambda: cache.put("0", k, v),
        lambda: cache.put(0.5, k, v),
        lambda: cache.put(0, k, None),
        lambda: cache.put(0, k.tolist(), v),
        lambda: cache.fits("ab"),
        lambda: cache.fits(3),
        lambda: cache.fits([0.5]),
        lambda: kvc.Cache(n_layers=1),
        lambda: kvc.Device(7),
        lambda: kvc.Cache(n_layers="1", n_kv_heads=1, head_dim=1, capacity=1),
        lambda: kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=1, capacity=1, colour="red"),
        lambda: cache.set_causal(3),
    ):
        with pytest.raises((TypeError, kvc.InvalidArgument)):
            call()
    cache.abort()


class Shrinks:
    """An integer that empties a list while it is being read."""

    def __init__(self, values):
        self.values = values

    def __index__(self):
        self.values.clear()
        return 0


def test_lists_that_shrink_while_they_are_read(cache):
    positions = [*range(30)]
    positions[0] = Shrinks(positions)
    cache.begin(positions)  # uses the values from before the list was emptied
    cache.abort()
    assert positions == []
    sequences = [0] * 30
    sequences[0] = Shrinks(sequences)
    assert cache.fits(range(30), sequences)

    class Broken:
        def __len__(self):
            return 1

        def __iter__(self):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        cache.begin(Broken())


def test_bad_state(cache, kvq, fill):
    k, v, q = kvq(1)
    for call in (cache.commit, cache.abort, cache.set_causal):
        raised(kvc.BadState, call)
    raised(kvc.BadState, cache.put, 0, k, v)
    raised(kvc.BadState, cache.attention, 0, q)
    raised(kvc.BadState, cache.get, 0)
    raised(kvc.BadState, cache.mask, 0)
    raised(kvc.BadState, cache.history, 0)
    raised(kvc.BadState, cache.commit_prefix, [0], [1])
    cache.begin([0])
    raised(kvc.BadState, cache.attention, 0, q)
    raised(kvc.BadState, cache.resume, 0, 0)
    raised(kvc.BadState, cache.bind_attention, 4)
    cache.abort()
    fill(cache, 1)
    raised(kvc.BadState, cache.bind_rope)


def test_shapes_and_types(cache, kvq):
    k, v, q = kvq(2)
    cache.begin([0, 1])
    for wrong in (k[:1], k[:, :1], k[:, :, :8], k[0], k[None]):
        raised(kvc.ShapeError, cache.put, 0, wrong, v)
        raised(kvc.ShapeError, cache.put, 0, v, wrong)
    raised(kvc.DtypeError, cache.put, 0, k.astype(np.float64), v)
    raised(kvc.DtypeError, cache.put, 0, k.view(np.int32), v)
    raised(kvc.DtypeError, cache.put, 0, k.view(np.uint16), v, dtype="int8")
    cache.put(0, k, v)
    raised(kvc.ShapeError, cache.attention, 0, q[:1])
    raised(kvc.ShapeError, cache.attention, 0, q, np.zeros((2, 4, 8), np.float32))
    raised(kvc.DtypeError, cache.attention, 0, q, lse=np.zeros((2, 4), np.float16))
    raised(kvc.ShapeError, cache.mask, 0, np.zeros((3, 2), np.float32))
    cache.abort()


def test_full_caches_name_the_numbers(make, fill):
    cache = make(cells=8)
    fill(cache, 8)
    before = cache.digest()
    assert "8" in raised(kvc.CacheFull, cache.begin, [8])
    assert cache.digest() == before
    raised(kvc.CacheFull, make(capacity=4).begin, range(5))


def test_positions_that_move_without_rope(cache, fill):
    fill(cache, 8)
    raised(kvc.NotSupported, cache.remove, 0, 2, 4)


def test_sizes_beyond_memory_and_beyond_numbers(device):
    huge = dict(n_layers=65536, n_kv_heads=65536, head_dim=65536, capacity=2**30, max_sequences=1)
    raised(kvc.SizeOverflow, kvc.Cache.memory_bytes, **huge)
    large = dict(n_layers=1024, n_kv_heads=1024, head_dim=1024, capacity=2**20, max_batch=1)
    assert kvc.Cache.memory_bytes(**large) > 1 << 50
    raised(kvc.OutOfMemory, kvc.Cache, device=device, **large)


def test_unavailable_devices():
    raised(kvc.BackendUnavailable, kvc.Device, "cuda:0")


def test_storage_types_that_do_not_exist(make):
    assert "f8" in raised(kvc.DtypeError, make, dtype="f8")


def test_closed_caches(make):
    cache = make()
    cache.close()
    raised(kvc.InvalidHandle, cache.begin, [0])
    raised(kvc.InvalidHandle, cache.stats)
    raised(
        kvc.InvalidHandle,
        kvc.Cache,
        device=closed_device(),
        n_layers=1,
        n_kv_heads=1,
        head_dim=1,
        capacity=1,
    )


def closed_device():
    device = kvc.Device(n_threads=1)
    device.close()
    return device
