"""kvc.Layer and kvc.Cache.from_layers(): one description of a model's layers."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

import kvc

WINDOW = kvc.Layer(n_kv_heads=2, head_dim=16, sliding_window=5, memory=8)
FULL = kvc.Layer(n_kv_heads=1, head_dim=8)
CROSS = kvc.Layer(kind="encoder", n_kv_heads=2, head_dim=16, capacity=20)


def test_equal_layers_share_a_cache(model):
    gemma = [FULL if i % 6 == 5 else WINDOW for i in range(18)]
    cache = model(*gemma)
    assert [child.n_layers for child in cache.children] == [15, 3]
    assert [cache.owner(i)[1] for i in (0, 4, 5, 6, 17)] == [0, 4, 0, 5, 2]
    assert kvc.Layer(n_kv_heads=1, head_dim=8) == FULL != replace(FULL, reach=4)
    assert hash(kvc.Layer(state_shape=[2, 3])) == hash(kvc.Layer(state_shape=(2, 3)))


def test_layers_take_from_all_what_they_do_not_say(device):
    wide = replace(FULL, capacity=10, dtype="f16")
    with kvc.Cache.from_layers(
        [FULL, wide, CROSS], capacity=64, dtype="bf16", max_sequences=2, device=device
    ) as cache:
        capacities = [child.query(0).room for child in cache.children[:2]]
        assert capacities == [64, 10]
        assert [cache.gather(i, 0)[0].dtype.itemsize for i in range(3)] == [2, 2, 2]
        assert cache.gather(1, 0)[0].dtype == np.float16
        predicted = kvc.Cache.layers_memory_bytes(
            [FULL, wide, CROSS], capacity=64, dtype="bf16", max_sequences=2, device=device
        )
        assert cache.stats().bytes == predicted


def test_a_layer_has_the_arguments_of_a_cache_and_their_defaults():
    of_cache = dict(inspect.signature(kvc.Cache).parameters)
    of_layer = inspect.signature(kvc.Layer).parameters
    common = inspect.signature(kvc.Cache.from_layers).parameters
    assert set(of_cache) == {*of_layer, *common} - {"layers"} | {"n_layers"}
    for name, parameter in {**common, **of_layer}.items():
        if name in of_cache:
            assert parameter.default == of_cache[name].default, name
            assert parameter.annotation == of_cache[name].annotation, name


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: kvc.Layer(1, 8), TypeError, r"kvc.Layer\(\) takes its arguments by name: n_kv_he"),
        (lambda: kvc.Layer(window=4), TypeError, "did you mean sliding_window"),
        (
            lambda: kvc.Cache.from_layers([FULL], capcity=4),
            TypeError,
            r"kvc.Cache.from_layers\(\) has no argument 'capcity': did you mean capacity",
        ),
        (lambda: kvc.Cache.from_layers([dict()]), TypeError, r"layers\[0\] must be a kvc.Layer"),
        (lambda: kvc.Cache.from_layers([]), kvc.InvalidArgument, "layers is empty"),
        (lambda: kvc.Cache.from_layers([FULL]), TypeError, r"\[0\]: .* 'causal' needs capacity"),
        (
            lambda: kvc.Cache.from_layers([replace(CROSS, capacity=None)], capacity=9),
            kvc.InvalidArgument,
            r"^the cache of layers\[0\]: .*kind='encoder'\) needs a capacity of its own",
        ),
        (
            lambda: kvc.Cache.from_layers([FULL, FULL, replace(CROSS, reach=9)], capacity=9),
            kvc.InvalidArgument,
            r"^the cache of layers\[2\]: only causal and transformer caches take reach",
        ),
        (
            lambda: kvc.Cache.from_layers([FULL, replace(FULL, n_kv_heads=[1])], capacity=9),
            TypeError,
            r"^the cache of layers\[1\]: n_kv_heads must be an integer, not list",
        ),
        (
            lambda: kvc.Cache.from_layers(
                [FULL, FULL, WINDOW, replace(FULL, kind="transformer")], capacity=9
            ),
            kvc.NotSupported,
            r"^layers\[3\] takes passes of rows alone .* and layers\[2\] lists of tokens",
        ),
        (
            lambda: kvc.Cache.layers_memory_bytes(
                [FULL, *(replace(FULL, reach=reach) for reach in (1, *range(1, 17)))], capacity=99
            ),
            kvc.InvalidArgument,
            r"^layers\[17\] would need .* 16 different ones .* at most 16 move as one",
        ),
        (
            lambda: kvc.Cache.layers_memory_bytes([FULL, replace(FULL, dtype="q8_0")], capacity=9),
            kvc.InvalidArgument,
            r"^the cache of layers\[1\]: dtype_k is q8_0, which takes multiples of 32",
        ),
        (
            lambda: kvc.Cache.from_layers([FULL, replace(FULL, dtype="q8")], capacity=9),
            kvc.DtypeError,
            r"^the cache of layers\[1\]: dtype 'q8' is not one of",
        ),
    ],
)
def test_a_wrong_description_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_layers_may_be_stored_as_codes(model):
    latent = kvc.Layer(n_kv_heads=1, head_dim=192, head_dim_v=128, v_first=0, dtype="q8_0")
    turned = kvc.Layer(n_kv_heads=1, head_dim=64, dtype="nf4", block=32, rotate="k")
    cache = model(latent, turned, latent)
    assert [child.n_layers for child in cache.children] == [2, 1]
    with cache.forward([0]):
        for layer in (0, 2):
            cache.put(layer, np.ones((1, 1, 192), np.float32))
        cache.put(1, *[np.ones((1, 1, 64), np.float32)] * 2)
        assert cache.get_codes(0).v.shape == (1, 1, 128)
        assert cache.get_codes(1).k_scales.shape == (1, 1, 2)
        with pytest.raises(TypeError, match="v must be an array"):
            cache.put(1, np.ones((1, 1, 64), np.float32))


def test_a_description_shows_what_it_says():
    assert repr(FULL) == "kvc.Layer(n_kv_heads=1, head_dim=8)"
    with pytest.raises(AttributeError):
        FULL.reach = 4
