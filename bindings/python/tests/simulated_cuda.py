"""Caches on GPUs, which the tests of the library simulate: tensors by DLPack with streams, views, graphs. Run by test_cuda.py."""

import ctypes
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import kvc

from dlpack_producer import CUDA, FLOAT, Versioned, _new, take

SIMULATED = os.environ["KVC_SIMULATED_CUDA"]  # of test_cuda.py

TOKENS, KV_HEADS, Q_HEADS, HEAD_DIM = 5, 2, 4, 16
GEOMETRY = dict(n_layers=1, n_kv_heads=KV_HEADS, head_dim=HEAD_DIM, capacity=32, max_sequences=2)
GEOMETRY.update(max_batch=8, max_q_heads=Q_HEADS)
STREAM, OTHER = 0x1230, 0x4560


@pytest.fixture(scope="module")
def simulated():
    library = ctypes.CDLL(SIMULATED)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("allocate", pointer, [pointer, size, size]),
        ("free", None, [pointer, pointer, size, size]),
        ("write", None, [pointer, pointer, size]),
        ("read", None, [pointer, pointer, size]),
        ("begin_capture", ctypes.c_int, [pointer]),
        ("end_capture", pointer, [pointer]),
        ("launch", ctypes.c_int, [pointer, pointer]),
        ("destroy", None, [pointer]),
    ):
        call = getattr(library, f"simulated_{name}")
        call.restype, call.argtypes = result, arguments
    return library


@pytest.fixture
def gpu():
    with kvc.Device(f"cuda:1@{SIMULATED}") as device:
        yield device


class OnGpu:
    """A float32 tensor of a GPU, which has DLPack and nothing else."""

    def __init__(self, simulated, array, *, device_id=1, knows_versions=True):
        array = np.ascontiguousarray(array, np.float32)
        self.simulated, self.shape, self.device_id = simulated, array.shape, device_id
        self.nbytes, self.knows_versions = array.nbytes, knows_versions
        self.address = simulated.simulated_allocate(None, max(self.nbytes, 1), 256)
        simulated.simulated_write(self.address, array.ctypes.data, self.nbytes)
        self.asked = []
        self._extents = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.managed = Versioned()
        self.managed.major = 1
        tensor = self.managed.tensor
        tensor.data, tensor.device_type, tensor.device_id = self.address, CUDA, device_id
        tensor.ndim, tensor.shape = array.ndim, self._extents
        tensor.code, tensor.bits, tensor.lanes = FLOAT, 32, 1

    def __del__(self):
        self.simulated.simulated_free(None, self.address, self.nbytes, 256)

    def __dlpack_device__(self):
        return CUDA, self.device_id

    def __dlpack__(self, *, stream, **others):
        if others and not self.knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        self.asked.append(stream)
        return _new(ctypes.addressof(self.managed), b"dltensor_versioned", None)

    def numpy(self):
        """As it is when all work is done."""
        array = np.empty(self.shape, np.float32)
        self.simulated.simulated_read(array.ctypes.data, self.address, self.nbytes)
        return array


def tensors(n=TOKENS, seed=1):
    random = np.random.default_rng(seed)
    shapes = (n, KV_HEADS, HEAD_DIM), (n, KV_HEADS, HEAD_DIM), (n, Q_HEADS, HEAD_DIM)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def expected(k, v, q):
    with kvc.Cache(**GEOMETRY) as cache:
        cache.begin(range(len(k)))
        return cache.put_attention(0, k, v, q)


@pytest.mark.parametrize("knows_versions", [True, False])
@pytest.mark.parametrize("stream, asked", [(None, 1), (0, 1), (1, 1), (2, 2), (STREAM, STREAM)])
def test_tensors_come_on_the_stream_of_the_pass(simulated, gpu, stream, asked, knows_versions):
    arrays = tensors()
    given = [OnGpu(simulated, each, knows_versions=knows_versions) for each in arrays]
    out = OnGpu(simulated, np.zeros_like(arrays[2]), knows_versions=knows_versions)
    with kvc.Cache(device=gpu, **GEOMETRY) as cache:
        cache.begin(range(TOKENS), stream=stream)
        assert cache.put_attention(0, *given, out) is out
        cache.commit()
        gpu.synchronize()
        np.testing.assert_allclose(out.numpy(), expected(*arrays), rtol=1e-5, atol=1e-6)
        assert [each.asked for each in (*given, out)] == [[asked]] * 4
        cache.check()


def test_streams_of_other_libraries(simulated, gpu):
    class Torch:
        cuda_stream = STREAM

    class CudaCore:
        def __cuda_stream__(self):
            return 0, OTHER

    k, v = (OnGpu(simulated, each) for each in tensors()[:2])
    with kvc.Cache(device=gpu, **GEOMETRY) as cache:
        for stream in Torch(), CudaCore():
            cache.begin(range(TOKENS), stream=stream)
            cache.put(0, k, v)
            cache.abort()
        with pytest.raises(TypeError, match="stream must be an integer"):
            cache.begin([0], stream="fast")
    assert k.asked == v.asked == [STREAM, OTHER]


def test_what_lies_elsewhere_is_refused(simulated, gpu):
    arrays = tensors()
    with kvc.Cache(device=gpu, **GEOMETRY) as cache:
        cache.begin(range(TOKENS))
        with pytest.raises(kvc.DeviceMismatch, match="k is on the CPU, but the cache is on a GPU"):
            cache.put(0, *arrays[:2])
        wrong = OnGpu(simulated, arrays[0], device_id=0)
        with pytest.raises(kvc.DeviceMismatch, match="k is on cuda:0, the cache on cuda:1"):
            cache.put(0, wrong, OnGpu(simulated, arrays[1]))
        with pytest.raises(kvc.InvalidArgument, match="out must be given"):
            cache.put_attention(0, *(OnGpu(simulated, each) for each in arrays))
        with pytest.raises(kvc.InvalidArgument, match="into must be given"):
            cache.mask(0)
        with pytest.raises(kvc.InvalidArgument, match="k must be given"):
            cache.gather(0, 0)
    with kvc.Cache(**GEOMETRY) as cache:
        cache.begin(range(TOKENS))
        with pytest.raises(kvc.DeviceMismatch, match="k is on a CUDA device"):
            cache.put(0, *(OnGpu(simulated, each) for each in arrays[:2]))
        with pytest.raises(kvc.InvalidArgument, match="stream"):
            cache.begin([0], stream=STREAM)


def test_views_are_lent_with_streams(simulated, gpu, monkeypatch):
    waits = []
    monkeypatch.setattr(kvc.Device, "synchronize", lambda device: waits.append(device.name))
    arrays = tensors()
    k, v, q = (OnGpu(simulated, each) for each in arrays)
    with kvc.Cache(device=gpu, **GEOMETRY) as cache:
        cache.begin(range(TOKENS), stream=STREAM)
        cache.put(0, k, v)
        lent, _ = cache.get(0)
        assert lent.__dlpack_device__() == (CUDA, 1)
        with pytest.raises(BufferError, match="torch.from_dlpack"):
            np.asarray(lent)
        with pytest.raises(BufferError, match="device"):
            lent.__dlpack__(dl_device=(1, 0))
        with pytest.raises(BufferError, match="copy"):
            lent.__dlpack__(copy=True)
        for stream, is_waited_for in ((STREAM, False), (-1, False), (OTHER, True), (None, True)):
            waits.clear()
            managed = take(lent[:, 1].__dlpack__(stream=stream, max_version=(1, 0)), Versioned)
            assert bool(waits) == is_waited_for, stream
            tensor = managed.tensor
            assert (tensor.device_type, tensor.device_id, tensor.ndim) == (CUDA, 1, 2)
            found = np.empty((TOKENS, HEAD_DIM), np.float32)
            for i in range(TOKENS):
                row = tensor.data + 4 * i * tensor.strides[0]
                simulated.simulated_read(found[i].ctypes.data, row, found[i].nbytes)
            np.testing.assert_array_equal(found, arrays[0][:, 1])
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)(ctypes.addressof(managed))
        cache.begin_reserve(1)
        out = OnGpu(simulated, np.zeros_like(arrays[2]))
        with kvc.Cache(device=gpu, **GEOMETRY) as other:  # a view is an argument as any tensor is
            other.begin(range(TOKENS), stream=STREAM)
            cache.begin(range(TOKENS, TOKENS + 1), stream=STREAM)
            cache.abort()
            other.put_attention(0, k, v, q, out)
    np.testing.assert_allclose(out.numpy(), expected(*arrays), rtol=1e-5, atol=1e-6)


def test_graphs_do_passes(simulated, gpu):
    arrays = [tensors(n=2, seed=seed) for seed in range(3)]
    k, v, q = (OnGpu(simulated, np.zeros_like(each)) for each in arrays[0])
    out = OnGpu(simulated, np.zeros((2, Q_HEADS, HEAD_DIM)))
    with kvc.Cache(**GEOMETRY) as reference, kvc.Cache(device=gpu, **GEOMETRY) as cache:
        with pytest.raises(kvc.BadState, match="captured"):
            cache.begin([0, 1], replay=True)
        assert simulated.simulated_begin_capture(STREAM) == 0
        with pytest.raises(kvc.BadState, match="begin_reserve"):
            cache.begin([0, 1], stream=STREAM)
        cache.begin_reserve(2, stream=STREAM)
        cache.put_attention(0, k, v, q, out)
        for move in (lambda: cache.remove(0), lambda: cache.resume(0, 0)):
            with pytest.raises(kvc.NotSupported, match=r"^re(move|sume)\(\) while the stream is being captured"):
                move()
        cache.commit()
        graph = simulated.simulated_end_capture(STREAM)
        assert graph
        for step, given in enumerate(arrays):
            for tensor, array in zip((k, v, q), given):
                simulated.simulated_write(tensor.address, array.ctypes.data, array.nbytes)
            with cache.forward([2 * step, 2 * step + 1], stream=STREAM, replay=True):
                assert simulated.simulated_launch(graph, STREAM) == 0
            with reference.forward([2 * step, 2 * step + 1]):
                wanted = reference.put_attention(0, *given)
            np.testing.assert_allclose(out.numpy(), wanted, rtol=1e-5, atol=1e-6)
        cache.check()
        assert cache.digest() == reference.digest()
        simulated.simulated_destroy(graph)


@pytest.mark.parametrize("kind", [dict(kind="recurrent", state_shape=8), dict(kind="lightning", n_kv_heads=2, head_dim=8)])
def test_checkpoints_in_host_memory(simulated, gpu, kind):
    geometry = dict(n_layers=1, max_sequences=2, checkpoints=2, checkpoint_interval=1, checkpoint_min_pos=0, **kind)

    def digests(place, device, where):
        with kvc.Cache(device=device, host_checkpoints=place, **geometry) as cache:
            if kind["kind"] == "lightning":
                cache.bind_decay([0.1, 0.5])
            for position in range(3):
                given = np.full((1, 2, 8), position + 1, np.float32)
                cache.begin([position])
                if kind["kind"] == "recurrent":
                    cache.state_put(0, "recurrent", where(given[0, :1]))
                else:
                    cache.put(0, where(given), where(given))
                cache.commit()
            cache.copy_prefix(0, 1, 2)
            yield cache.checkpoint_list(0), cache.checkpoint_list(1), cache.digest()
            yield cache.resume(0, 2), cache.digest()
            cache.check()

    on_gpu = lambda array: OnGpu(simulated, array)
    for found, wanted in zip(digests(True, gpu, on_gpu), digests(False, gpu, on_gpu)):
        assert found == wanted
    if kind["kind"] == "recurrent":
        assert list(digests(True, gpu, on_gpu)) == list(digests(True, None, lambda array: array))


def test_memory_of_the_callers(simulated):
    address = lambda name: ctypes.cast(getattr(simulated, f"simulated_{name}"), ctypes.c_void_p).value
    memory = kvc.DeviceAllocator(None, address("allocate"), address("free"))
    with pytest.raises(kvc.NotSupported, match="device_allocator"):
        kvc.Device("cpu", device_allocator=memory)
    with kvc.Device(f"cuda:0@{SIMULATED}", device_allocator=memory) as device:
        assert device.place == (CUDA, 0)
        with kvc.Cache(device=device, **GEOMETRY) as cache:
            cache.check()


def test_the_example_says_what_is_missing():
    example = pathlib.Path(__file__).resolve().parents[3] / "examples/python/pytorch_cuda.py"
    packages = str(pathlib.Path(kvc.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, str(example)],
        env={**os.environ, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        assert done.stderr.startswith("this example needs ") and done.stderr.count("\n") == 1, done
    else:
        assert "replayed passes on cuda:0" in done.stdout
