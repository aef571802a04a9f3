"""Encoder caches: inputs of several sequences, of different lengths, replaced and shared."""

import gc
import threading
import time

import numpy as np
import pytest

import kvc
import reference
from dlpack_producer import Producer

LENGTHS = (5, 11, 1)


@pytest.fixture
def encoder(make):
    return make(kind="encoder", capacity=16)


@pytest.fixture
def inputs(random):
    """Random keys and values of inputs, by length."""

    def draw(length, n_kv_heads=2, head_dim=16):
        return random.standard_normal((2, length, n_kv_heads, head_dim), dtype=np.float32)

    return draw


def put(cache, sequence, k, v):
    for layer in range(cache.n_layers):
        cache.encoder_put(layer, sequence, k, v)


def textbook(q, k, v):
    """Attention of queries that see the whole input."""
    everything = np.full(len(q), len(k))
    return reference.attention(q, k, v, everything, np.arange(len(k)))[0]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_tokens_see_the_whole_input_of_their_sequence(make, inputs, random, dtype):
    cache = make(kind="encoder", capacity=16, dtype=dtype)
    held = [inputs(length) for length in LENGTHS]
    q = random.standard_normal((4, 4, 16), dtype=np.float32)
    sequences = [0, 1, 2, 3]  # the last one has no input
    with cache.forward([0] * 4, sequences, carries_input=[0, 1, 2]):
        for sequence, (k, v) in enumerate(held):
            put(cache, sequence, k, v)
        first = [cache.attention(layer, q) for layer in range(2)]
    with cache.forward([1] * 4, sequences):  # nothing is put: they still see it
        second = [cache.attention(layer, q) for layer in range(2)]
    for out in first + second:
        for sequence, (k, v) in enumerate(held):
            expected = textbook(q[sequence : sequence + 1], k, v)
            np.testing.assert_allclose(out[sequence][None], expected, atol=2e-2)
        assert not out[3].any()
    for sequence, (k, v) in enumerate(held):
        assert cache.encoder_query(sequence) == kvc.EncoderInput(0, len(k))
        assert cache.query(sequence).count == len(k)
        held_k, held_v = cache.gather(1, sequence, dtype="f32")
        np.testing.assert_allclose(held_k, k, atol=2e-2)
        np.testing.assert_allclose(held_v, v, atol=2e-2)
    assert cache.encoder_query(3) is None


def test_an_input_replaces_the_one_before_from_its_token_on(encoder, inputs, random):
    (k, v), (next_k, next_v) = inputs(5), inputs(7)
    q = random.standard_normal((3, 4, 16), dtype=np.float32)
    with encoder.forward([0], carries_input=[0]):
        put(encoder, 0, k, v)
    encoder.begin([1, 2, 3], carries_input=[1])
    put(encoder, 0, next_k, next_v)
    out = encoder.attention(0, q)
    np.testing.assert_allclose(out[:1], textbook(q[:1], k, v), atol=1e-5)
    np.testing.assert_allclose(out[1:], textbook(q[1:], next_k, next_v), atol=1e-5)
    assert encoder.encoder_query(0) == kvc.EncoderInput(2, 7)  # as if committed
    encoder.abort()
    assert encoder.encoder_query(0) == kvc.EncoderInput(0, 5)


def test_put_stores_the_only_input_of_a_pass(encoder, inputs, random):
    k, v = inputs(5)
    q = random.standard_normal((1, 4, 16), dtype=np.float32)
    with encoder.forward([0], carries_input=[0]):
        encoder.put(0, k, v)
        out = encoder.put_attention(1, k, v, q)
    np.testing.assert_allclose(out, textbook(q, k, v), atol=1e-5)
    encoder.begin([1])
    with pytest.raises(kvc.BadState, match=r"flag one with carries_input in begin\(\)"):
        encoder.put(0, k, v)
    encoder.begin([2, 0], [0, 1], carries_input=[0, 1])
    with pytest.raises(kvc.InvalidArgument, match=r"put each with encoder_put\(\)"):
        encoder.put(0, k, v)
    encoder.abort()


def test_sequences_share_an_input(encoder, inputs):
    k, v = inputs(5)
    with encoder.forward([0, 0], [0, 1], carries_input=[0, 1]):
        encoder.encoder_share(1, 0)  # that of the pass
        put(encoder, 0, k, v)
    with encoder.forward([0], 2, carries_input=[0]):
        encoder.encoder_share(2, 1)  # one that is held
    encoder.reorder([3], [0])  # a copy shares it by itself
    assert [encoder.encoder_query(each).length for each in range(4)] == [5] * 4
    assert (encoder.stats().cells_used, encoder.stats().cells_shared) == (5, 5)
    runs = [encoder.runs(0, sequence) for sequence in range(4)]
    assert runs == [[kvc.Run(runs[0][0].cell, 5, 0, 0)]] * 4
    for sequence in range(3):
        encoder.remove(sequence)
    np.testing.assert_array_equal(encoder.gather(0, 3)[0], k)


def test_a_sequence_steps_back_to_where_it_saw_what_it_holds(encoder, inputs):
    for position in (0, 4):
        with encoder.forward([position], carries_input=[0]):
            put(encoder, 0, *inputs(3))
    assert [encoder.can_resume(0, want) for want in (9, 5, 4, 1)] == [5, 5, 0, 0]
    assert not encoder.can_remove(0, 3)
    with pytest.raises(kvc.WindowLost):
        encoder.remove(0, 3)
    assert encoder.copy_prefix(0, 1) == 5
    assert encoder.encoder_query(1) == kvc.EncoderInput(4, 3)


def test_slots_are_as_many_as_inputs(make, inputs):
    cache = make(kind="encoder", capacity=16, inputs=1)
    assert cache.stats().cells == 16
    assert not cache.fits([0, 0], [0, 1], carries_input=[0, 1])
    with pytest.raises(kvc.CacheFull):
        cache.begin([0, 0], [0, 1], carries_input=[0, 1])
    with cache.forward([0], carries_input=[0]):
        put(cache, 0, *inputs(2))
    with pytest.raises(kvc.CacheFull):  # abort() needs the one that would be replaced
        cache.begin([1], carries_input=[0])
    sizes = dict(kind="encoder", n_layers=2, n_kv_heads=2, head_dim=16, capacity=16)
    few, many = (kvc.Cache.memory_bytes(**sizes, inputs=inputs) for inputs in (1, 100))
    assert few < many


def test_a_block_names_the_layers_whose_input_was_not_put(encoder, inputs):
    k, v = inputs(3)
    with (
        pytest.raises(kvc.BadState, match="1 of 2 layers were put, without layer 1, so this block"),
        encoder.forward([0, 0], [0, 1], carries_input=[0, 1]),
    ):
        put(encoder, 0, k, v)
        encoder.encoder_put(0, 1, k, v)  # layer 1 of sequence 1 is missing
    assert encoder.encoder_query(0) is None
    with encoder.forward([0], carries_input=[0]):
        encoder.commit()  # without a put there is nothing to see
    assert encoder.encoder_query(0) == kvc.EncoderInput(0, 0)


def test_views_show_exactly_the_inputs_that_a_batch_sees(encoder, inputs):
    k, v = inputs(5)
    encoder.begin([0], carries_input=[0])
    put(encoder, 0, k, v)
    keys, values = encoder.get(0)
    np.testing.assert_array_equal(np.asarray(keys), k)
    np.testing.assert_array_equal(np.from_dlpack(values), v)
    assert np.asarray(keys).base is not None and not encoder.mask(0).any()
    assert np.shares_memory(np.asarray(keys), np.asarray(keys[1:3, 0]))
    encoder.commit()
    with pytest.raises(kvc.BadState):
        np.asarray(keys)
    encoder.begin([1])  # a view of the next pass shows the same memory
    np.testing.assert_array_equal(np.asarray(encoder.get(0)[0]), k)
    encoder.abort()


def test_an_array_over_an_input_outlives_its_cache(inputs, device):
    cache = kvc.Cache(
        kind="encoder", device=device, n_layers=1, n_kv_heads=2, head_dim=16, capacity=16
    )
    k, v = inputs(5)
    cache.begin([0], carries_input=[0])
    put(cache, 0, k, v)
    shown = np.asarray(cache.get(0)[0])
    cache.close()
    del cache
    gc.collect()
    np.testing.assert_array_equal(shown, k)


def test_inputs_are_read_in_place_from_any_array(encoder, inputs):
    k, v = inputs(5)
    strided = np.repeat(k, 2, axis=2)[:, :, ::2]
    bits = (k.view(np.uint32) >> 16).astype(np.uint16)
    as_bf16 = (bits.astype(np.uint32) << 16).view(np.float32)
    for position, (given, options, expected) in enumerate(
        [
            (Producer(k), {}, k),
            (k.transpose(1, 0, 2).copy().transpose(1, 0, 2), {}, k),
            (strided, {}, strided),
            (k.astype(np.float16), {}, k.astype(np.float16)),
            (bits, dict(dtype="bf16"), as_bf16),
        ]
    ):
        with encoder.forward([position], carries_input=[0]):
            for layer in range(2):
                encoder.encoder_put(layer, 0, given, given, **options)
        np.testing.assert_array_equal(encoder.gather(1, 0)[0], expected)
    encoder.begin([position + 1], carries_input=[0])
    with pytest.raises(kvc.DtypeError, match="k is float64; kvc takes float32"):
        encoder.encoder_put(0, 0, k.astype(float), v)
    with pytest.raises(TypeError, match=r"v must be an array .*, not list"):
        encoder.encoder_put(0, 0, k, v.tolist())
    encoder.abort()


def test_a_reserve_pass_has_the_largest_shapes(encoder, inputs):
    encoder.begin_reserve(3)
    put(encoder, 1, *inputs(16))
    encoder.encoder_share(1, 2)
    assert len(encoder.get(0)[0]) == encoder.stats().cells
    encoder.abort()


def test_the_gil_is_released_while_an_input_is_stored(device):
    """Another thread's call meets a cache that is busy, so both were in the library at once."""
    n = 1500 * 8
    k = np.ones((n, 8, 64), np.float32)
    with kvc.Cache(
        kind="encoder",
        device=device,
        n_layers=1,
        n_kv_heads=8,
        head_dim=64,
        capacity=n,
        dtype="f16",
    ) as cache:
        cache.begin([0], carries_input=[0])
        stop = threading.Event()

        def store():
            while not stop.is_set():
                try:
                    cache.encoder_put(0, 0, k, k)
                except kvc.Busy:
                    pass

        thread = threading.Thread(target=store)
        thread.start()
        try:
            for _ in range(10000):
                try:
                    cache.encoder_query(0)
                except kvc.Busy:
                    break
                time.sleep(0)
            else:
                raise AssertionError("encoder_query() never overlapped encoder_put()")
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda c, k: c.begin([3], sees_later=[0]), kvc.InvalidArgument, "only carries_input"),
        (lambda c, k: c.begin([3], types=[1]), kvc.InvalidArgument, "token 0 .* has types, but"),
        (
            lambda c, k: c.begin([3, 4], carries_input=[0, 1]),
            kvc.InvalidArgument,
            "tokens 0 and 1 of sequence 0 both carry",
        ),
        (lambda c, k: c.begin([3], carries_input=[1]), kvc.InvalidArgument, "carries_input names"),
        (
            lambda c, k: c.begin([3], carries_input=[True]),
            TypeError,
            "must hold integers, not bool",
        ),
        (
            lambda c, k: c.begin([3], kvc.PADDING, carries_input=[0]),
            kvc.InvalidArgument,
            r"carries_input\[0\] is not 0, but sequences\[0\] is kvc.PADDING",
        ),
        (lambda c, k: c.encoder_put(0, 0, k, k), kvc.BadState, r"no pass is open: call begin\(\)"),
        (
            lambda c, k: c.begin([3]) or c.encoder_put(0, 0, k, k),
            kvc.InvalidArgument,
            "sequence 0 carries no encoder input .* flagged with carries_input",
        ),
        (
            lambda c, k: (
                c.begin([0], 1, carries_input=[0])
                or c.encoder_share(1, 0)
                or c.encoder_put(0, 1, k, k)
            ),
            kvc.InvalidArgument,
            r"shares the input of another \(encoder_share\(\)\)",
        ),
        (
            lambda c, k: c.begin([0], 1, carries_input=[0]) or c.encoder_share(1, 2),
            kvc.NotFound,
            "sequence 2 neither holds nor carries",
        ),
        (
            lambda c, k: (
                c.begin([3], carries_input=[0])
                or c.encoder_put(0, 0, np.zeros((17, 2, 16), np.float32), k)
            ),
            kvc.ShapeError,
            "k has 17 positions, not 1 to 16, which is capacity",
        ),
        (lambda c, k: c.set_causal([0]), kvc.NotSupported, 'causal caches .kind="causal"'),
        (lambda c, k: c.bind_rope(), kvc.NotSupported, "for causal caches"),
        (
            lambda c, k: c.bind_attention(4, alibi_slopes=np.ones(4)),
            kvc.NotSupported,
            "an encoder cache takes no alibi_slopes",
        ),
        (lambda c, k: c.encoder_query(9), kvc.InvalidArgument, "sequence 9"),
    ],
)
def test_what_an_encoder_cache_refuses_and_says(encoder, inputs, call, error, message):
    with encoder.forward([0], carries_input=[0]):
        put(encoder, 0, *inputs(3))
    with pytest.raises(error, match=message) as caught:
        call(encoder, inputs(3)[0])
    assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)
    if encoder.stats().state == "pass":
        encoder.abort()
    assert encoder.encoder_query(0) == kvc.EncoderInput(0, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(kind="encoder", reach=3, cells=9), "only causal caches take cells"),
        (dict(inputs=3), "only encoder caches take inputs"),
    ],
)
def test_an_argument_of_another_kind_is_refused(make, changes, message):
    with pytest.raises(kvc.InvalidArgument, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "call",
    [
        lambda c, k: c.encoder_put(0, 0, k, k),
        lambda c, k: c.encoder_share(0, 1),
        lambda c, k: c.encoder_query(0),
    ],
)
def test_a_causal_cache_holds_no_inputs(cache, inputs, call):
    with pytest.raises(kvc.NotSupported):
        call(cache, inputs(3)[0])


def test_an_encoder_cache_shows_its_kind(encoder):
    assert encoder.kind == "encoder"
    assert repr(encoder) == "<kvc.Cache encoder, 2 layers, 2 KV heads of 16/16, idle>"
