"""Arrays are read and written in place, with any element type and whole strides."""

import array as standard
import ctypes
import sys
import tracemalloc

import numpy as np
import pytest

import kvc
from dlpack_producer import UINT, Producer
from kvc import kvc_capi
from kvc._arrays import dtype_code, numpy_dtype

ml_dtypes = pytest.importorskip("ml_dtypes")


class OnlyInterface:
    """Provides __array_interface__ and nothing else."""

    def __init__(self, array, **changes):
        self.array = array
        if isinstance(array, np.ndarray):
            self.dtype = array.dtype  # the interface alone cannot name bfloat16
        self.__array_interface__ = {**array.__array_interface__, **changes}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 2, 16), np.float32),
        np.zeros((3, 2, 16), np.float16),
        np.zeros((3, 2, 16), ml_dtypes.bfloat16),
        np.zeros((6, 4, 32), np.float32)[::2, ::2, ::2],
        np.zeros((2, 3, 16), np.float16).transpose(1, 0, 2),
        np.zeros((16, 2, 3), ml_dtypes.bfloat16).T,
        np.broadcast_to(np.zeros(16, np.float32), (3, 2, 16)),
        np.zeros((3, 2, 32), bool)[:, :, ::2],
    ],
    ids=["f32", "f16", "bf16", "steps", "heads first", "bf16 transposed", "broadcast", "bool"],
)
@pytest.mark.parametrize("wrap", [lambda array: array, OnlyInterface], ids=["buffer", "interface"])
def test_the_library_uses_the_arrays_own_memory(array, wrap):
    address, shape, strides, code = kvc_capi.describe_array(wrap(array))
    assert address == array.__array_interface__["data"][0]
    assert shape == array.shape
    assert strides == array.strides
    expected = {
        "float32": kvc_capi.KVC_F32,
        "float16": kvc_capi.KVC_F16,
        "bfloat16": kvc_capi.KVC_BF16,
        "bool": kvc_capi.KVC_BOOL,
    }
    assert code == expected[array.dtype.name]


def test_uint16_means_what_dtype_says():
    bits = np.zeros((3, 2, 16), np.uint16)
    for wrapped in (bits, OnlyInterface(bits)):
        assert kvc_capi.describe_array((wrapped, kvc_capi.KVC_BF16))[3] == kvc_capi.KVC_BF16
        assert kvc_capi.describe_array((wrapped, kvc_capi.KVC_F16))[3] == kvc_capi.KVC_F16
        with pytest.raises(kvc.DtypeError, match='dtype="bf16"'):
            kvc_capi.describe_array(wrapped)


@pytest.mark.parametrize(
    "wrap",
    [lambda array: array, OnlyInterface, lambda array: Producer(array, UINT)],
    ids=["buffer", "interface", "dlpack"],
)
@pytest.mark.parametrize("dtype", [kvc_capi.KVC_F32, kvc_capi.KVC_BOOL, kvc_capi.KVC_Q8_0, 0])
def test_uint16_is_never_taken_for_elements_of_another_size(wrap, dtype):
    with pytest.raises(kvc.DtypeError, match='dtype="bf16"'):
        kvc_capi.describe_array((wrap(np.zeros((3, 2, 16), np.uint16)), dtype))


def test_uint16_is_refused_where_dtype_names_another_type(cache, kvq):
    k, v, q = kvq(2)
    with cache.forward([0, 1]):
        for layer in range(2):
            cache.put(layer, k, v)
        for dtype, error in (("f32", 'dtype="bf16"'), ("q8_0", "not one of f32, f16, bf16")):
            with pytest.raises(kvc.DtypeError, match=error):
                cache.attention(0, q, q.astype(np.uint16), dtype=dtype)
    with pytest.raises(kvc.DtypeError, match='dtype="bf16"'):
        cache.gather(0, 0, np.zeros((2, 2, 16), np.uint16), False, dtype="f32")
    for dtype in ("bool", bool, "q8_0", "f8", np.float64, np.int8, np.int32, None, 7, []):
        with pytest.raises(kvc.DtypeError, match="not one of f32, f16, bf16"):
            dtype_code(dtype)


@pytest.mark.parametrize("dtype", [kvc_capi.KVC_I32, kvc_capi.KVC_Q4_0, kvc_capi.KVC_INT8, 0])
def test_memory_of_an_unknown_element_type_is_not_lent(dtype):
    memory = np.zeros(4, np.float32)
    with pytest.raises(kvc.DtypeError, match=f"element type {dtype}"):
        kvc_capi.lend(memory, (memory.ctypes.data, (4,), (4,), dtype), 1, 0, 1, 0)
    with pytest.raises(kvc.DtypeError, match=f"element type {dtype}"):
        numpy_dtype(dtype)


def test_buffers_that_are_not_numpy():
    floats = standard.array("f", range(12))
    view = memoryview(floats).cast("B").cast("f", (3, 2, 2))
    address, shape, strides, _ = kvc_capi.describe_array(view)
    assert (address, shape, strides) == (floats.buffer_info()[0], (3, 2, 2), (16, 8, 4))
    matrix = (ctypes.c_float * 4 * 3)()
    assert kvc_capi.describe_array(matrix)[:2] == (ctypes.addressof(matrix), (3, 4))
    mask = (ctypes.c_bool * 4)()
    assert kvc_capi.describe_array(mask)[3] == kvc_capi.KVC_BOOL


def test_an_interface_without_strides_is_dense():
    array = np.zeros((3, 2, 16), np.float32)
    assert kvc_capi.describe_array(OnlyInterface(array, strides=None))[2] == (128, 64, 4)


@pytest.mark.parametrize(
    "array, error",
    [
        (np.zeros((3, 2, 16)), kvc.DtypeError),
        (np.zeros((3, 2, 16), np.int32), kvc.DtypeError),
        (np.zeros((3, 2, 16), np.int16), kvc.DtypeError),
        (np.zeros((3, 2, 16), np.uint8), kvc.DtypeError),
        (np.zeros((3, 2, 16), np.int8), kvc.DtypeError),
        (np.zeros((3, 2, 16), ">f4"), kvc.DtypeError),
        (np.zeros((3, 2, 16), "V2"), kvc.DtypeError),
        (np.zeros((3, 2, 16), "f4,f4")["f0"], None),
        (np.zeros((3, 2, 16), "f4,u2")["f0"], kvc.ShapeError),
        (np.zeros((1,) * 9, np.float32), kvc.ShapeError),
        ([[1.0, 2.0]], TypeError),
        (3.0, TypeError),
        (OnlyInterface(np.zeros(3, np.float32), shape=None), TypeError),
        (OnlyInterface(np.zeros(3, np.float32), strides=(4, 4)), TypeError),
        (OnlyInterface(np.zeros(3, np.float32), typestr=7), TypeError),
        (OnlyInterface(np.zeros(3, np.float32), data=None), TypeError),
        (
            OnlyInterface(np.zeros((3, 3), np.float32), shape=(1 << 40, 1 << 40), strides=None),
            kvc.SizeOverflow,
        ),
    ],
)
def test_what_cannot_be_read_in_place_is_refused(array, error):
    for wrapped in (array, OnlyInterface(array)) if isinstance(array, np.ndarray) else (array,):
        if error is None:
            kvc_capi.describe_array(wrapped)
        else:
            with pytest.raises(error):
                kvc_capi.describe_array(wrapped)


def test_negative_strides_are_refused_and_nothing_is_stored(cache, kvq):
    k, v, _ = kvq(3)
    cache.begin([0, 1, 2])
    before = cache.digest()
    for backwards in (k[::-1], k[:, ::-1], k[:, :, ::-1]):
        with pytest.raises(kvc.ShapeError):
            cache.put(0, backwards, v)
    assert cache.digest() == before
    cache.abort()


def test_a_stride_that_is_never_used_may_be_anything(cache, kvq):
    k, v, _ = kvq(1)
    with cache.forward([0]):
        for layer in range(cache.n_layers):
            cache.put(layer, k[::-1], v[::-1])
    np.testing.assert_array_equal(cache.gather(0, 0)[0], k)


def test_a_result_that_cannot_be_written_is_refused(cache, kvq):
    k, v, q = kvq(2)
    out = np.zeros((2, 4, 16), np.float32)
    out.flags.writeable = False
    with cache.forward([0, 1]):
        for layer in range(cache.n_layers):
            cache.put(layer, k, v)
        with pytest.raises(ValueError, match="out is read-only"):
            cache.attention(0, q, out)
        with pytest.raises(ValueError, match="out is read-only"):
            cache.attention(0, q, OnlyInterface(out))


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_type_is_stored_in_every_storage_type(make, kvq, storage, kind):
    cache = make(dtype=storage)
    k, v, q = (array.astype(kind) for array in kvq(5))
    stored = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[storage]
    out = np.zeros((5, 4, 16), kind)
    with cache.forward(range(5)):
        for layer in range(cache.n_layers):
            cache.put(layer, k, v)
        assert cache.attention(0, q, out) is out
        seen_k, seen_v = cache.get(0)
        assert seen_k.dtype == seen_v.dtype == stored
    held_k, held_v = cache.gather(0, 0)
    assert held_k.dtype == stored
    # Through float32: both conversions round to nearest even.
    np.testing.assert_array_equal(held_k, k.astype(np.float32).astype(stored))
    np.testing.assert_array_equal(held_v, v.astype(np.float32).astype(stored))
    assert np.isfinite(out.astype(np.float32)).all() and (out != 0).any()


def test_bfloat16_as_uint16_is_the_same_bits(make, kvq):
    k, v, q = (array.astype(ml_dtypes.bfloat16) for array in kvq(4))
    results = []
    for bits in (lambda array: array, lambda array: array.view(np.uint16)):
        cache = make(dtype="bf16")
        out = np.zeros((4, 4, 16), ml_dtypes.bfloat16)
        dtype = None if bits(k) is k else "bf16"
        with cache.forward(range(4)):
            for layer in range(cache.n_layers):
                cache.put(layer, bits(k), bits(v), dtype=dtype)
            cache.attention(0, bits(q), bits(out), dtype=dtype)
            cache.put_attention(1, bits(k), bits(v), bits(q), bits(out), dtype=dtype)
        into = np.zeros((4, 2, 16), np.uint16)
        cache.gather(0, 0, into, into.copy())
        np.testing.assert_array_equal(into.view(ml_dtypes.bfloat16), k)
        results.append((cache.digest(), out.view(np.uint16).tolist()))
    assert results[0] == results[1]


def test_without_ml_dtypes_bfloat16_is_uint16(make, fill, monkeypatch):
    cache = make(dtype="bf16")
    k, _, _ = fill(cache, 3)
    expected = cache.gather(0, 0)[0].view(np.uint16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    held, _ = cache.gather(0, 0)
    assert held.dtype == np.uint16
    np.testing.assert_array_equal(held, expected)
    cache.begin([3])
    for layer in range(2):
        cache.put(layer, k[:1], k[:1])
    assert cache.get(0)[0].dtype == np.asarray(cache.get(0)[0]).dtype == np.uint16
    cache.commit()


def test_strided_arrays_give_what_dense_ones_give(make, kvq, random):
    k, v, q = kvq(6)
    dense, strided = make(), make()
    fused = random.standard_normal((6, 8, 16), dtype=np.float32)  # q, k and v of a token in one row
    fused[:, :4], fused[:, 4:6], fused[:, 6:] = q, k, v
    heads_first = np.zeros((4, 6, 32), np.float32)
    out = heads_first.transpose(1, 0, 2)[:, :, ::2]
    with dense.forward(range(6)), strided.forward(range(6)):
        for layer in range(2):
            expected = dense.put_attention(layer, k, v, q)
            strided.put_attention(layer, fused[:, 4:6], fused[:, 6:], fused[:, :4], out)
            np.testing.assert_array_equal(out, expected)
    assert dense.digest() == strided.digest()
    assert not heads_first[:, :, 1::2].any()  # the gaps are not written


def test_large_arrays_pass_without_a_copy(device):
    """64 MB go through put and attention while Python allocates next to nothing."""
    n_tokens, n_heads, head_dim = 1024, 64, 256
    k = np.ones((n_tokens, n_heads, head_dim), np.float32)
    out = np.zeros_like(k)
    with kvc.Cache(
        device=device,
        n_layers=1,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        dtype="f16",
        capacity=n_tokens,
        max_batch=n_tokens,
        max_q_heads=n_heads,
        reach=1,
    ) as cache:
        cache.begin(np.arange(n_tokens, dtype=np.int32))
        tracemalloc.start()
        cache.put_attention(0, k, k, k, out)
        views = cache.get(0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 << 10
        assert views[0].nbytes == k.nbytes // 2
        del views
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)


def test_results_are_written_to_the_callers_memory(cache, kvq):
    k, v, q = kvq(3)
    out = np.zeros((3, 4, 16), np.float32)
    lse = np.zeros((3, 4), np.float32)
    address = out.__array_interface__["data"][0]
    with cache.forward(range(3)):
        cache.put_attention(0, k, v, q, out, lse=lse)
        assert out.__array_interface__["data"][0] == address
        np.testing.assert_array_equal(out, cache.attention(0, q))
        assert lse.all()
        cache.put(1, k, v)


class Tensor(Producer):
    """An array of a library that follows the array API standard."""

    def __array_namespace__(self):
        return Library

    @property
    def shape(self):
        return self.array.shape


class Library:
    @staticmethod
    def from_dlpack(array):
        return Tensor(array)


def test_results_are_of_the_kind_of_the_query_over_the_same_memory(cache, kvq):
    k, v, q = kvq(3)
    with cache.forward(range(3)):
        expected = cache.put_attention(0, k, v, q)
        cache.put(1, k, v)
        for result in (cache.attention(0, Tensor(q)), cache.put_attention(0, k, v, Tensor(q))):
            assert type(result) is Tensor
            np.testing.assert_array_equal(result.array, expected)
            assert result.array.ctypes.data % 64 == 0  # or JAX would copy it
        for result in (
            cache.attention(0, Tensor(q), numpy=True),
            cache.put_attention(0, k, v, Tensor(q), numpy=True),
            cache.attention(0, memoryview(q)),
            cache.attention(0, Producer(q)),  # names no library
        ):
            assert type(result) is np.ndarray and result.dtype == np.float32
            np.testing.assert_array_equal(result, expected)


def test_a_view_as_query_gives_an_array(make, kvq):
    cache = make(n_kv_heads=4)
    k, v, _ = kvq(3, n_kv_heads=4)
    with cache.forward(range(3)):
        for layer in range(2):
            cache.put(layer, k, v)
        assert type(cache.attention(0, cache.get(0)[0])) is np.ndarray


def test_a_writable_array_of_any_library_takes_the_result(cache, kvq):
    k, v, q = kvq(3)
    with cache.forward(range(3)):
        expected = cache.put_attention(0, k, v, q)
        cache.put(1, k, v)
        for wrap in (lambda array: array, memoryview, Producer, OnlyInterface):
            memory = np.zeros_like(expected)
            out = wrap(memory)
            assert cache.attention(0, q, out) is out
            np.testing.assert_array_equal(memory, expected)
            assert cache.attention(0, Tensor(q), out, numpy=True) is out
