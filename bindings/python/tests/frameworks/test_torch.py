"""PyTorch: its tensors are read and written without a copy, bfloat16 as bfloat16."""

import gc

import numpy as np
import pytest

import kvc
from kvc import kvc_capi

torch = pytest.importorskip("torch")

KINDS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture
def tensors(kvq):
    def draw(n_tokens, kind=torch.float32):
        return tuple(torch.from_numpy(array).to(kind) for array in kvq(n_tokens))

    return draw


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_library_uses_the_tensors_own_memory(kind):
    for tensor in (
        torch.zeros(3, 2, 16, dtype=kind),
        torch.zeros(6, 4, 32, dtype=kind)[::2, 1::2, ::2],
        torch.zeros(2, 3, 16, dtype=kind).transpose(0, 1),
        torch.zeros(16, dtype=kind).expand(3, 2, 16),
    ):
        address, shape, strides, _ = kvc_capi.describe_array(tensor)
        assert (address, shape) == (tensor.data_ptr(), tuple(tensor.shape))
        assert strides == tuple(step * tensor.element_size() for step in tensor.stride())


@pytest.mark.parametrize("storage", KINDS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_attention_agrees_with_torch(make, tensors, storage, kind):
    cache = make(dtype=storage)
    k, v, q = tensors(9, kind)
    out = torch.zeros(9, 4, 16, dtype=kind)
    lse = torch.zeros(9, 4)
    with cache.forward(range(9)):
        for layer in range(2):
            assert cache.put_attention(layer, k, v, q, out, lse=lse) is out
    k, v = (each.to(KINDS[storage]).float().repeat_interleave(2, dim=1) for each in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(each.float().transpose(0, 1) for each in (q, k, v)), is_causal=True
    ).transpose(0, 1)
    tolerance = 1e-5 if kind == torch.float32 else 2e-2
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    assert lse.isfinite().all()


@pytest.mark.parametrize("storage", KINDS)
def test_views_become_tensors_without_a_copy(make, tensors, storage):
    cache = make(dtype=storage)
    k, v, q = tensors(5, KINDS[storage])
    cache.begin(range(5))
    for layer in range(2):
        cache.put(layer, k, v)
    view, _ = cache.get(0)
    seen, part = torch.from_dlpack(view), torch.from_dlpack(view[1:4, 1])
    assert seen.dtype == KINDS[storage] and seen.data_ptr() == np.asarray(view).ctypes.data
    assert torch.equal(seen, k) and torch.equal(part, k[1:4, 1])
    cache.put(0, k + 1, v)  # a second put replaces the first, in the same place
    assert torch.equal(seen, k + 1)
    cache.commit()
    with pytest.raises(kvc.BadState):
        torch.from_dlpack(view)
    cache.close()
    del cache, view
    gc.collect()
    assert seen.sum().isfinite()  # the memory is still mapped


def test_what_torch_refuses_is_refused(cache, tensors):
    k, v, _ = tensors(1)
    cache.begin([0])
    with pytest.raises((BufferError, RuntimeError), match="grad"):
        cache.put(0, k.requires_grad_(), v)
    with pytest.raises(kvc.DtypeError):
        cache.put(0, k.detach().double(), v)
    with pytest.raises(ValueError, match="meta"):
        cache.put(0, k.detach().to("meta"), v)
    cache.abort()


def test_results_are_tensors_over_the_librarys_own_memory(cache, tensors):
    k, v, q = tensors(3)
    with cache.forward(range(3)):
        for layer in range(2):
            out = cache.put_attention(layer, k, v, q)
        array = cache.attention(1, q, numpy=True)
        again = cache.attention(1, torch.nn.Parameter(q, requires_grad=False))
    assert type(out) is torch.Tensor and out.dtype == torch.float32
    assert type(array) is np.ndarray
    assert torch.equal(out, torch.from_numpy(array)) and torch.equal(out, again)


@pytest.mark.parametrize("storage", KINDS)
def test_torch_writes_states_in_place_and_reads_them_without_a_copy(device, storage):
    with kvc.Cache(
        kind="recurrent", n_layers=1, state_shape=(2, 4), dtype_state=storage, device=device
    ) as cache:
        cache.begin([0])
        states = torch.from_dlpack(cache.state_view(0, "recurrent"))
        assert states.dtype == KINDS[storage] and states.shape[1:] == (2, 4)
        (slot,) = cache.state_slots().tolist()
        states[slot] = torch.arange(8).reshape(2, 4)
        cache.state_done(0, "recurrent")
        cache.commit()
        held = torch.zeros(8, dtype=KINDS[storage])
        assert cache.state_gather(0, "recurrent", 0, into=held) is held
        assert held.tolist() == list(range(8))
        with cache.forward([1]):
            cache.state_put(0, "recurrent", 2 * held.reshape(1, 4, 2).transpose(1, 2))
        doubled = cache.state_gather(0, "recurrent", 0, into=torch.zeros(2, 4))
        assert doubled.flatten().tolist() == [0, 4, 8, 12, 2, 6, 10, 14]


F8 = {"f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("dtype", [*F8, "q8_0", "q4_0", "int8", "nf4"])
def test_tensors_are_encoded_and_codes_become_tensors(make, tensors, dtype):
    kinds = {**F8, "q8_0": torch.int8, "int8": torch.int8}
    cache, other = make(dtype=dtype, head_dim=32), make(dtype=dtype, head_dim=32)
    k = torch.cat(tensors(5)[:2], dim=2)
    with cache.forward(range(5)):
        for layer in range(2):
            cache.put(layer, k, k)
        held = cache.get_codes(0)
        codes, scales = kvc.encode(k, dtype)
        found = torch.from_dlpack(held.k)
        assert found.dtype == kinds.get(dtype, torch.uint8)
        np.testing.assert_array_equal(found.view(torch.uint8), codes.view(np.uint8))
        expected = torch.zeros(5, 2, 32)
        assert kvc.decode(codes, scales, dtype, values=expected) is expected
        parts = [None if each is None else torch.from_dlpack(each).clone() for each in held]
        assert torch.equal(torch.from_numpy(kvc.decode(*parts[:2], dtype)), expected)
        copy = torch.zeros(5, 2, 32)
        assert cache.get_copy(0, copy, False)[0] is copy
        assert torch.equal(copy, expected)
        with other.forward(range(5)):
            for layer in range(2):
                other.put_codes(layer, *parts)
    assert other.digest() == cache.digest()


def test_f8_is_that_of_torch():
    values = torch.randn(200, 64) * 100
    for dtype, kind in F8.items():
        codes, _ = kvc.encode(values, dtype)
        expected = values.clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)
        np.testing.assert_array_equal(codes.view(np.uint8), expected.view(torch.uint8))


def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    table = functional.get_4bit_type("nf4", device="cpu")
    codes = np.arange(16, dtype=np.uint8)
    every = (codes[0::2] << 4 | codes[1::2]).reshape(1, 8)  # the first value in the high nibble
    found = kvc.decode(every, np.ones((1, 1), np.float32), "nf4")
    np.testing.assert_array_equal(found[0], table.numpy())
    values = torch.randn(40, 64)
    theirs, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4")
    ours, scales = kvc.encode(values, "nf4", block=64)
    np.testing.assert_array_equal(scales.ravel(), state.absmax)
    np.testing.assert_array_equal(ours.ravel(), theirs.ravel())
