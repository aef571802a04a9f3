"""DLPack in both directions, without a copy."""

import sys

import numpy as np
import pytest

import dlpack_producer as dlpack
import kvc
from dlpack_producer import (
    BFLOAT,
    BOOL,
    CUDA,
    CUDA_HOST,
    FLOAT,
    INT,
    READ_ONLY,
    ROCM,
    UINT,
    Producer,
)
from kvc import kvc_capi

ml_dtypes = pytest.importorskip("ml_dtypes")
KINDS = [dlpack.Managed, dlpack.Versioned]


def of(array, **changes):
    """A producer over an array of any type that NumPy knows."""
    code = {"bfloat16": BFLOAT, "bool": BOOL}.get(array.dtype.name, FLOAT)
    return Producer(array, changes.pop("code", code), **changes)


# ---- In ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "array, code",
    [
        (np.zeros((3, 2, 16), np.float32), kvc_capi.KVC_F32),
        (np.zeros((3, 2, 16), np.float16), kvc_capi.KVC_F16),
        (np.zeros((3, 2, 16), ml_dtypes.bfloat16), kvc_capi.KVC_BF16),
        (np.zeros((6, 4, 32), ml_dtypes.bfloat16)[::2, ::2, ::2], kvc_capi.KVC_BF16),
        (np.zeros((16, 2, 3), np.float32).T, kvc_capi.KVC_F32),
        (np.broadcast_to(np.zeros(16, np.float16), (3, 2, 16)), kvc_capi.KVC_F16),
        (np.zeros((3, 16), bool)[:, ::2], kvc_capi.KVC_BOOL),
    ],
    ids=["f32", "f16", "bf16", "steps", "transposed", "broadcast", "bool"],
)
def test_the_library_uses_the_tensors_own_memory(array, code, kind):
    for byte_offset in (0, 64):
        described = kvc_capi.describe_array(of(array, kind=kind, byte_offset=byte_offset))
        assert described == (array.ctypes.data, array.shape, array.strides, code)


def test_null_strides_are_dense():
    array = np.zeros((3, 2, 16), np.float32)
    assert kvc_capi.describe_array(of(array, strides=None))[2] == array.strides


def test_the_newer_kind_is_requested_and_may_be_unknown():
    array = np.zeros((3, 2, 16), np.float32)
    newer, older = of(array), of(array, kind=dlpack.Managed, knows_versions=False)
    kvc_capi.describe_array(newer)
    kvc_capi.describe_array(older)
    assert newer.asked == [{"max_version": (1, 0)}] and older.asked == [{}]


def test_pinned_memory_is_host_memory():
    array = np.zeros((3, 2, 16), np.float32)
    assert kvc_capi.describe_array(of(array, device=CUDA_HOST))[0] == array.ctypes.data


def test_uint16_means_what_dtype_says(make, kvq):
    cache = make(dtype="bf16")
    k, v, _ = (array.astype(ml_dtypes.bfloat16) for array in kvq(3))
    with cache.forward(range(3)):
        for layer in range(2):
            with pytest.raises(kvc.DtypeError, match='dtype="bf16"'):
                cache.put(layer, of(k, code=UINT), of(v, code=UINT))
            cache.put(layer, of(k, code=UINT), of(v, code=UINT), dtype="bf16")
    np.testing.assert_array_equal(cache.gather(0, 0)[0], k)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(device=CUDA), kvc.DeviceMismatch, "on a CUDA device.*on the CPU"),
        (dict(device=ROCM), kvc.DeviceMismatch, "on a ROCm device"),
        (dict(code=INT, bits=16), kvc.DtypeError, "is int16; kvc takes"),
        (dict(bits=64), kvc.DtypeError, "is float64; kvc takes"),
        (dict(lanes=2), kvc.DtypeError, "is float32 in vectors of 2; kvc takes"),
        (dict(strides=(32, 16, -1)), kvc.ShapeError, "stride of -4 bytes, which runs backwards"),
        (dict(shape=(1,) * 9, strides=None), kvc.ShapeError, "9 dimensions"),
        (dict(major=2), kvc.VersionMismatch, "DLPack 2"),
        (dict(shape=(1 << 40, 1 << 40, 1), strides=None), kvc.SizeOverflow, "its shape overflows"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_and_nothing_is_stored(cache, kvq, changes, error, message):
    k, v, _ = kvq(3)
    cache.begin(range(3))
    before = cache.digest()
    with pytest.raises(error, match=f"k.*{message}"):
        cache.put(0, of(k, **changes), v)
    assert cache.digest() == before
    cache.abort()


def test_producers_that_misbehave(cache, kvq):
    k, v, _ = kvq(1)

    class Odd:
        def __init__(self, device=(1, 0), capsule=None, error=None):
            self.device, self.capsule, self.error = device, capsule, error

        def __dlpack_device__(self):
            return self.device

        def __dlpack__(self, **asked):
            if self.error:
                raise self.error
            return self.capsule

    cache.begin([0])
    for odd, error in (
        (Odd(device=()), IndexError),
        (Odd(device=7), TypeError),
        (Odd(device=("cpu", 0)), TypeError),
        (Odd(capsule=3), TypeError),
        (Odd(error=BufferError("it requires grad")), BufferError),
        (Odd(error=TypeError("never")), TypeError),
    ):
        with pytest.raises(error):
            cache.put(0, odd, v)
    cache.abort()


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_written_to_the_callers_memory(cache, kvq, kind):
    k, v, q = kvq(3)
    out = np.zeros((4, 3, 32), ml_dtypes.bfloat16).transpose(1, 0, 2)[:, :, ::2]
    lse = np.zeros((3, 4), np.float32)
    with cache.forward(range(3)):
        for layer in range(2):
            given = of(out, kind=kind)
            assert cache.put_attention(layer, k, v, of(q, kind=kind), given, lse=of(lse)) is given
        expected = cache.attention(1, q)
    np.testing.assert_array_equal(out, expected.astype(ml_dtypes.bfloat16))
    assert lse.all()


def test_a_result_that_cannot_be_written_is_refused(cache, kvq):
    k, v, q = kvq(2)
    out = np.zeros((2, 4, 16), np.float32)
    with cache.forward([0, 1]):
        for layer in range(2):
            cache.put(layer, of(k, flags=READ_ONLY), of(v, flags=READ_ONLY))
        with pytest.raises(ValueError, match="out is read-only"):
            cache.attention(0, q, of(out, flags=READ_ONLY))
        with pytest.raises(ValueError, match="out is read-only"):
            cache.attention(0, q, cache.get(0)[0])
    assert not out.any()


def test_a_new_result_has_the_queries_shape(cache, kvq):
    k, v, q = kvq(2)
    with cache.forward([0, 1]):
        for layer in range(2):
            cache.put(layer, k, v)
        result = cache.attention(0, of(q))  # it has no attribute `shape`
        np.testing.assert_array_equal(result, cache.attention(0, q))


def test_calls_leak_no_references_and_no_memory(cache, kvq):
    k, v, _ = kvq(1)
    producer = of(k)
    cache.begin([0])
    cache.put(0, producer, v)
    view = cache.get(0)[0]
    memory = cache._handle
    counts = [sys.getrefcount(each) for each in (producer, view, memory)]
    for _ in range(50):
        cache.put(0, producer, v)
        cache.put(0, view, v)
        np.from_dlpack(view)
        view.__dlpack__()
        np.asarray(view[0])
        with pytest.raises(kvc.ShapeError):
            cache.put(0, view[0], v)
    del _
    assert [sys.getrefcount(each) for each in (producer, view, memory)] == counts
    cache.abort()


# ---- Out -----------------------------------------------------------------------------------------


@pytest.fixture
def opened(make, kvq):
    """A cache with an open pass: (cache, the k that was put, the view of k)."""

    def open_(storage="f32", n_tokens=5):
        cache = make(dtype=storage)
        k, v, _ = kvq(n_tokens)
        cache.begin(range(n_tokens))
        for layer in range(2):
            cache.put(layer, k, v)
        return cache, k, cache.get(0)[0]

    return open_


@pytest.mark.parametrize("storage, kind", [("f32", np.float32), ("f16", np.float16)])
def test_numpy_takes_views_without_a_copy(opened, storage, kind):
    cache, k, view = opened(storage)
    for array in (np.from_dlpack(view), np.asarray(view)):
        np.testing.assert_array_equal(array, k.astype(kind))
        assert array.dtype == view.dtype == kind
        assert array.shape == view.shape == (5, 2, 16) and array.strides == view.strides
        assert not array.flags.writeable and not array.flags.owndata
    assert np.from_dlpack(view).ctypes.data == np.asarray(view).ctypes.data
    assert np.from_dlpack(view).ctypes.data == kvc_capi.describe_array(view)[0]
    again = cache.get(0)[0]
    assert np.asarray(again).ctypes.data == np.asarray(view).ctypes.data
    for layer in range(2):
        cache.put(layer, k + 1, k)  # a second put replaces the first, in the same place
    np.testing.assert_array_equal(np.asarray(view), (k + 1).astype(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "storage, code, bits", [("f32", FLOAT, 32), ("f16", FLOAT, 16), ("bf16", BFLOAT, 16)]
)
def test_capsules_of_both_kinds(opened, storage, code, bits, kind):
    _, _, view = opened(storage)
    asked = (1, 1) if kind is dlpack.Versioned else None
    capsule = view.__dlpack__(max_version=asked)
    tensor = dlpack.read(capsule, kind).tensor
    assert (tensor.code, tensor.bits, tensor.lanes) == (code, bits, 1)
    assert (tensor.device_type, tensor.device_id) == view.__dlpack_device__() == (1, 0)
    assert tensor.data == np.asarray(view).ctypes.data and tensor.byte_offset == 0
    assert tuple(tensor.shape[:3]) == view.shape
    assert tuple(step * bits // 8 for step in tensor.strides[:3]) == view.strides
    if asked:
        managed = dlpack.read(capsule, kind)
        assert (managed.major, managed.minor, managed.flags) == (1, 0, READ_ONLY)


def test_older_consumers_get_the_older_kind(opened):
    _, _, view = opened()
    for asked in (None, (0, 8)):
        assert '"dltensor"' in repr(view.__dlpack__(max_version=asked))


def test_bfloat16_survives_dlpack(make, opened):
    """From one cache to another: neither needs a NumPy dtype for bfloat16."""
    cache, k, view = opened("bf16")
    other = make(dtype="bf16")
    with other.forward(range(5)):
        for layer in range(2):
            other.put(layer, view, view)
    np.testing.assert_array_equal(other.gather(0, 0)[0], k.astype(ml_dtypes.bfloat16))
    assert np.asarray(view).dtype == ml_dtypes.bfloat16


def test_parts_are_views_too(opened):
    _, k, view = opened("f16")
    k = k.astype(np.float16)
    for key in (
        1,
        slice(1, 4, 2),
        (slice(None), 1),
        (..., 3),
        (0, 1, 2),
        (slice(4, None, -1), 0),
        ...,
    ):
        part = view[key]
        assert isinstance(part, kvc.View) and part.shape == k[key].shape
        np.testing.assert_array_equal(np.asarray(part), k[key])
        np.testing.assert_array_equal(np.from_dlpack(part), k[key])
    np.testing.assert_array_equal(np.asarray(view[1:][:, 1][2]), k[3, 1])
    assert len(view[1:3]) == 2 and view[0].ndim == 2 and view[0].nbytes == 64
    for key in ([0, 1], np.array([True] * 5), "k", 5):
        with pytest.raises((TypeError, IndexError)):
            view[key]
    with pytest.raises(TypeError):
        len(view[0, 0, 0])


def test_copies_are_the_consumers_own(opened):
    cache, k, view = opened("bf16")
    capsule = view.__dlpack__(max_version=(1, 0), copy=True)
    managed = dlpack.read(capsule, dlpack.Versioned)
    assert managed.flags == 2 and managed.tensor.code == BFLOAT
    assert managed.tensor.data != np.asarray(view).ctypes.data
    _, k, view = opened()
    copied = np.from_dlpack(view, copy=True)
    np.testing.assert_array_equal(copied, k)
    copied[:] = 0  # it is writable
    np.testing.assert_array_equal(np.asarray(view), k)
    assert np.array(view).flags.owndata and np.asarray(view, np.float64).dtype == np.float64
    with pytest.raises(ValueError):
        np.asarray(view, np.float64, copy=False)


def test_other_devices_and_streams_are_refused(opened):
    _, _, view = opened()
    assert np.from_dlpack(view, device="cpu") is not None
    with pytest.raises(BufferError):
        view.__dlpack__(dl_device=(2, 0))
    with pytest.raises(kvc.InvalidArgument):
        view.__dlpack__(stream=1)


ENDINGS = {
    "begin": lambda cache: cache.begin([5]),
    "begin_reserve": lambda cache: cache.begin_reserve(1),
    "commit": lambda cache: cache.commit(),
    "commit_prefix": lambda cache: cache.commit_prefix([0], [2]),
    "abort": lambda cache: cache.abort(),
    "remove": lambda cache: cache.remove(0),
    "copy_prefix": lambda cache: cache.copy_prefix(0, 1),
    "reorder": lambda cache: cache.reorder([1], [0]),
    "resume": lambda cache: cache.resume(0, 3),
    "close": lambda cache: cache.close(),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_view_ends_with_its_pass(make, opened, ending):
    cache, k, view = opened()
    part = view[1:]
    assert view.valid and "ended" not in repr(view)
    ending(cache)
    for old in (view, part):
        assert not old.valid and "its pass has ended" in repr(old)
        for use in (
            np.asarray,
            np.from_dlpack,
            lambda view: view.__dlpack__(),
            lambda view: view.__dlpack_device__(),
            lambda view: view[0],
            lambda view: make().put(0, view, view),
        ):
            with pytest.raises(kvc.BadState, match="pass of this view has ended"):
                use(old)


def test_calls_that_fail_or_only_read_end_no_view(opened):
    cache, k, view = opened()
    for refused in (
        lambda: cache.begin([0]),
        lambda: cache.commit_prefix([0], [9]),
        lambda: cache.copy_prefix(0, 0),
        lambda: cache.reorder([1, 1], [0, 0]),
        lambda: cache.remove(0, 3, 1),
        lambda: cache.resume(9, 1),
    ):
        with pytest.raises(kvc.InvalidArgument):
            refused()
    cache.put(0, k, k), cache.mask(0), cache.query(0), cache.digest(), cache.set_causal()
    assert view.valid
    np.testing.assert_array_equal(np.asarray(view), k)
