"""What recurrent caches, and caches that hold no states, refuse, and what they say."""

import numpy as np
import pytest

import kvc
from conftest import CONV, STATE


def fed(cache):
    """The cache with two tokens of sequence 0."""
    with cache.forward(range(2)):
        for layer in range(2):
            cache.state_put(layer, "recurrent", np.ones((1, *STATE), np.float32))
            cache.state_put(layer, "conv", np.ones((1, *CONV), np.float32))
    return cache


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda c: c.state_get(0, "state"), kvc.InvalidArgument, "part 'state' is neither"),
        (lambda c: c.state_get(0, 2), kvc.InvalidArgument, "part 2 is neither"),
        (lambda c: c.state_get(0, "conv"), kvc.BadState, r"no pass is open: call begin\(\)"),
        (lambda c: c.begin([2]) or c.state_get(7, "conv"), kvc.InvalidArgument, "layer 7"),
        (
            lambda c: c.begin([2]) or c.state_put(0, "recurrent", np.zeros((1, 23), np.float32)),
            kvc.InvalidRecurrentShape,
            r"^states has .*\[23\] of a state.* product must be 24 \(state_shape\)$",
        ),
        (
            lambda c: c.begin([2]) or c.state_put(0, "recurrent", np.zeros((2, 24), np.float32)),
            kvc.ShapeError,
            None,
        ),
        (
            lambda c: c.begin([2]) or c.state_put(0, "recurrent", np.zeros((1, 24))),
            kvc.DtypeError,
            "states is float64; kvc takes float32, float16 or bfloat16: convert",
        ),
        (
            lambda c: c.begin([2]) or c.state_get(0, "conv", np.zeros((1, 15))),
            kvc.DtypeError,
            "into is float64; kvc writes",
        ),
        (
            lambda c: c.begin([2]) or c.state_get(0, "conv", b"bytes"),
            ValueError,
            "into is read-only",
        ),
        (
            lambda c: c.begin([2]) or c.state_conv(0, [1.0]),
            TypeError,
            "x must be an array .*, not list",
        ),
        (lambda c: c.state_gather(0, "conv", 0, 1), kvc.NotFound, None),
        (
            lambda c: c.remove(0, 0, 1),
            kvc.NotSupported,
            "create the cache with approximate=True",
        ),
        (lambda c: c.checkpoint_list(9), kvc.InvalidArgument, "sequence 9"),
        (lambda c: c.begin([2], sees_later=[0]), kvc.InvalidArgument, "sees_later"),
        (
            lambda c: c.put(0, np.ones(1, np.float32), np.ones(1, np.float32)),
            kvc.NotSupported,
            None,
        ),
        (lambda c: c.attention(0, np.ones((1, 1, 1), np.float32)), kvc.NotSupported, None),
        (lambda c: c.get(0), kvc.NotSupported, None),
        (lambda c: c.gather(0, 0), kvc.NotSupported, None),
        (lambda c: c.bind_attention(4), kvc.NotSupported, None),
    ],
)
def test_what_a_recurrent_cache_refuses_and_says(recurrent, call, error, message):
    cache = fed(recurrent())
    before = cache.digest()
    with pytest.raises(error, match=message) as caught:
        call(cache)
    assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)
    if cache.stats().state == "pass":
        cache.abort()
    assert cache.digest() == before


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            dict(n_kv_heads=2, capacity=8),
            kvc.InvalidArgument,
            "only causal, encoder and transformer caches take",
        ),
        (
            dict(dtype="f16"),
            kvc.InvalidArgument,
            "only causal, encoder and transformer caches take dtype",
        ),
        (dict(state_shape=()), kvc.InvalidArgument, r"state_shape \(\) is not 1 to 7 numbers"),
        (dict(state_shape=(2, 0)), kvc.InvalidArgument, "of at least 1"),
        (dict(state_shape=(2, 1.5)), TypeError, r"state_shape\[1\] must be an integer"),
        (dict(state_shape=(2**21, 2**20)), kvc.InvalidArgument, r"more than 2\^40"),
        (dict(checkpoints=-1), kvc.InvalidArgument, "checkpoints is -1; it must be 0 or more"),
        (
            dict(checkpoint_interval=0),
            kvc.InvalidArgument,
            "interval is 0; it must be 1 or more, or",
        ),
        (dict(checkpoint_interval=-1), kvc.InvalidArgument, "checkpoint_interval is -1"),
        (dict(checkpoint_interval=1.5), TypeError, "checkpoint_interval must be an integer"),
        (dict(checkpoint_min_pos=-1), kvc.InvalidArgument, "checkpoint_min_pos is -1"),
        (dict(dtype_state="q8_0"), kvc.DtypeError, "^dtype_state 'q8_0' is not one of f32, f16"),
        (dict(draft_states="x"), TypeError, "draft_states must be an integer"),
    ],
)
def test_a_wrong_argument_of_a_recurrent_cache(recurrent, changes, error, message):
    with pytest.raises(error, match=message):
        recurrent(**changes)


def test_a_causal_cache_holds_no_states(cache):
    cache.begin([0])
    one = np.ones((1, 1), np.float32)
    for call in (
        lambda: cache.state_layout(),
        lambda: cache.state_get(0, "conv"),
        lambda: cache.state_get(0, "conv", one),
        lambda: cache.state_put(0, "conv", one),
        lambda: cache.state_conv(0, one),
        lambda: cache.state_view(0, "conv"),
        lambda: cache.state_slots(),
        lambda: cache.state_done(0, "conv"),
        lambda: cache.state_gather(0, "conv", 0),
        lambda: cache.checkpoint_take(0),
        lambda: cache.checkpoint_list(0),
    ):
        with pytest.raises(kvc.NotSupported, match='recurrent caches .kind="recurrent"'):
            call()
    cache.abort()


def test_a_recurrent_cache_shows_its_shapes(recurrent):
    assert repr(recurrent()) == (
        "<kvc.Cache recurrent, 2 layers, states of 2x3x4, convolutions of 5x3, idle>"
    )
    assert recurrent(state_shape=None).kind == "recurrent"
