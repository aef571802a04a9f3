"""JAX: its arrays are read without a copy, and dense parts of views become JAX arrays."""

import gc

import numpy as np
import pytest

import kvc
from kvc import kvc_capi

jax = pytest.importorskip("jax")
jnp = jax.numpy

KINDS = {"f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16}


@pytest.fixture
def arrays(kvq):
    def draw(n_tokens, kind=jnp.float32):
        return tuple(jnp.asarray(array, kind) for array in kvq(n_tokens))

    return draw


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_library_uses_the_arrays_own_memory(kind):
    array = jnp.zeros((3, 2, 16), kind)
    address, shape, strides, _ = kvc_capi.describe_array(array)
    assert address == array.unsafe_buffer_pointer()
    assert shape == array.shape and strides == np.asarray(array).strides


@pytest.mark.parametrize("storage", KINDS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_attention_agrees_with_jax(make, arrays, storage, kind):
    cache = make(dtype=storage)
    k, v, q = arrays(9, kind)
    with cache.forward(range(9)):
        for layer in range(2):
            out = cache.put_attention(layer, k, v, q)
    k, v = (each.astype(KINDS[storage]).astype(jnp.float32) for each in (k, v))
    expected = jax.nn.dot_product_attention(q.astype(jnp.float32), k, v, is_causal=True)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_jax_arrays_are_never_written(cache, arrays, kind):
    k, v, q = arrays(2, kind)
    with cache.forward(range(2)):
        for layer in range(2):
            cache.put(layer, k, v)
        with pytest.raises(ValueError, match="out is read-only"):
            cache.attention(0, q, jnp.zeros((2, 4, 16), kind))


@pytest.mark.parametrize("storage", KINDS)
def test_heads_of_a_view_become_arrays_without_a_copy(make, arrays, storage):
    """JAX reads dense arrays only, so a view of several heads is read head by head."""
    cache = make(dtype=storage)
    k, v, _ = arrays(5, KINDS[storage])
    cache.begin(range(5))
    for layer in range(2):
        cache.put(layer, k, v)
    view, _ = cache.get(0)
    seen = [jax.dlpack.from_dlpack(view[:, head]) for head in range(2)]
    for head in range(2):
        assert seen[head].dtype == KINDS[storage]
        assert seen[head].unsafe_buffer_pointer() == np.asarray(view[:, head]).ctypes.data
        np.testing.assert_array_equal(seen[head], k[:, head])
    with pytest.raises(Exception, match="compact"):
        jax.dlpack.from_dlpack(view)  # refused, not copied
    cache.commit()
    with pytest.raises(kvc.BadState):
        jax.dlpack.from_dlpack(view[:, 0])
    cache.close()
    del cache, view
    gc.collect()
    assert np.isfinite(np.asarray(seen[1], np.float32)).all()


def test_results_are_arrays_of_jax_without_a_copy(cache, arrays, monkeypatch):
    k, v, q = arrays(3)
    made = []
    from_dlpack = jnp.from_dlpack
    monkeypatch.setattr(jnp, "from_dlpack", lambda array: made.append(array) or from_dlpack(array))
    with cache.forward(range(3)):
        for layer in range(2):
            out = cache.put_attention(layer, k, v, q)
        array = cache.attention(1, q, numpy=True)
    assert isinstance(out, jax.Array) and out.dtype == jnp.float32
    assert out.unsafe_buffer_pointer() == made[-1].ctypes.data
    assert type(array) is np.ndarray
    np.testing.assert_array_equal(out, array)
