"""Operators that are written in Python: what they are given, what they write, what becomes of their exceptions, how long they live."""

import gc
import threading
import weakref

import numpy as np
import pytest

import kvc

EVERYTHING = [
    "mask", "bias", "window", "chunk", "not_causal", "softcap", "alibi", "sinks", "lse", "weights", "dropout",
    "grouped", "dims_differ", "transformer", "forward",
]  # fmt: skip
BOUNDS = dict(max_rows=2, max_q_len=4, max_kv_len=6, n_kv_heads=2, max_q_heads=4, head_dim=16)


def textbook(call):
    """Attention by NumPy over everything that a call may bring, written where it asks for it."""
    lead = (call.batch, call.n_tokens // call.batch) if call.batch else (call.n_tokens,)
    q = np.asarray(call.q, np.float64).reshape(-1, lead[-1], *call.q.shape[-2:])
    k, v = (np.asarray(part, np.float64) for part in (call.k, call.v))
    k, v = (part if call.batch else part[None] for part in (k, v))
    group = call.n_q_heads // call.n_kv_heads
    k, v = (np.repeat(part, group, axis=2) for part in (k, v))
    shown = call.visible().reshape(len(q), 1, lead[-1], -1)
    scores = np.einsum("bqhd,bkhd->bhqk", q, np.where(np.isnan(k), 0, k)) * call.scale
    if call.softcap:
        scores = call.softcap * np.tanh(scores / call.softcap)
    positions = call.positions.reshape(len(q), -1)
    sequences = call.sequences.reshape(len(q), -1)
    columns = np.zeros((len(q), lead[-1], k.shape[1]))
    for sequence in np.unique(sequences[sequences >= 0]):
        columns[sequences == sequence] = call.column_positions(sequence)
    if call.slopes is not None:
        distance = np.abs(positions[:, None, :, None] - columns[:, None])
        scores = scores - call.slopes[:, None, None] * distance
    if call.bias is not None:
        scores = scores + np.asarray(call.bias, np.float64).reshape(-1, *scores.shape[1:])
    scores = np.where(shown, scores, -np.inf)
    with np.errstate(divide="ignore"):
        lse = np.logaddexp.reduce(scores, axis=-1)
    total = lse if call.sinks is None else np.logaddexp(lse, call.sinks[:, None])
    weights = np.exp(scores - np.where(np.isneginf(total), 0, total)[..., None])
    if call.dropout_prob:
        for b, t in zip(*np.nonzero(sequences >= 0)):
            kept = kvc.dropout_mask(
                call.dropout_seed,
                call.dropout_prob,
                layer=call.layer,
                sequence=sequences[b, t],
                n_heads=call.n_q_heads,
                q_positions=positions[b, t : t + 1],
                k_positions=np.maximum(columns[b, t], 0).astype(int),
            )
            weights[b, :, t] *= np.where(kept[:, 0], call.keep_factor, 0)
    np.asarray(call.out)[...] = np.einsum(
        "bhqk,bkhd->bqhd", weights, np.where(np.isnan(v), 0, v)
    ).reshape(call.out.shape)
    if call.lse is not None:
        np.asarray(call.lse)[...] = np.moveaxis(lse, 1, 2).reshape(call.lse.shape)
    if call.weights is not None:
        np.asarray(call.weights)[...] = weights.reshape(call.weights.shape)


@pytest.fixture
def registry():
    """The operators of a device of its own."""
    with kvc.Device(n_threads=2) as device:
        yield kvc.operators(device)


def make_cache(registry, **changes):
    sizes = dict(n_layers=1, n_kv_heads=2, head_dim=16, capacity=16, max_batch=16, max_sequences=2)
    return kvc.Cache(**{**sizes, **changes}, device=registry.device)


@pytest.mark.parametrize("kind", ["causal", "transformer"])
def test_it_computes_what_the_built_in_ones_compute(registry, random, kind):
    """Every option of layers and calls, with lists of tokens and with rows."""
    registry.register("textbook", features=EVERYTHING)(textbook)
    mine = kvc.Operator("textbook", dropout_prob=0.5, device=registry.device)
    exact = kvc.Operator("vanilla", dropout_prob=0.5, device=registry.device)
    rows = kind == "transformer"
    results = []
    for operator in (mine, exact):
        cache = make_cache(registry, kind=kind, reach=3)
        slopes, sinks = [0.5, 0.25, 0.1, 0], [0.3, -1, 2, 0]
        cache.bind_attention(4, softcap=4.0, alibi_slopes=slopes, sinks=sinks, scale=0.5)
        cache.bind_operator(operator)
        draw = np.random.default_rng(3)
        lead = (2, 3) if rows else (6,)
        for step in range(2):
            k, v, q = (draw.standard_normal((*lead, n, 16), dtype=np.float32) for n in (2, 2, 4))
            if rows:
                cache.begin_rows(3, valid=[3, 2])
            else:
                positions, sequences = [0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 1, kvc.PADDING]
                at = [
                    position + (step * (3 - sequence) if sequence >= 0 else 0)
                    for position, sequence in zip(positions, sequences)
                ]
                cache.begin(at, sequences)
            cache.put(0, k, v)
            columns = len(cache.history(0))
            shape = (2, 4, 3, columns) if rows else (4, 6, columns)
            bias = draw.standard_normal(shape, dtype=np.float32)
            mask = draw.random(shape[-2:]) < 0.8
            for options in (
                {},
                dict(bias=bias, mask=mask, no_sinks=True),
                dict(dropout_seed=2**63 + 5),
                dict(bias=bias[..., :1, :]),
            ):
                lse, weights = np.empty((*lead, 4), np.float32), np.empty(shape, np.float32)
                out = cache.attention(0, q, lse=lse, weights=weights, **options)
                results.append((operator, out, lse, weights))
        cache.close()
    half = len(results) // 2
    for mine_found, exact_found in zip(results[:half], results[half:]):
        for found, wanted in zip(mine_found[1:], exact_found[1:]):
            np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_without_a_cache(registry, random):
    registry.register("textbook", features=EVERYTHING)(textbook)
    q, k, v = (
        random.standard_normal((2, n, h, 16), dtype=np.float32) for n, h in ((4, 4), (6, 2), (6, 2))
    )
    outs = []
    for name in ("textbook", "flash"):
        with kvc.Operator(name, **BOUNDS, device=registry.device) as operator:
            outs.append(operator.forward(q, k, v, causal=True, sinks=[0, 1, 2, 3]))
    np.testing.assert_allclose(*outs, atol=1e-5)


def test_what_a_call_shows(registry):
    """Every field, of a decode over codes; and what it may read and write."""
    seen = {}

    @registry.register(
        "shown", "also", storage="q8_0", features=["grouped", "block_k"], block_k_multiple=8
    )
    class Shown:
        def forward(self, call):
            seen.update({name: getattr(call, name) for name in kvc.OperatorCall.__annotations__})
            seen["visible"] = call.visible()
            seen["halves"] = call.visible(np.empty((1, 3), np.float16))
            seen["columns"] = call.column_positions(1)
            seen["k"], seen["scales"] = np.array(call.k), np.array(call.k_scales)
            with pytest.raises(ValueError, match="read-only"):
                np.asarray(call.q)[...] = 0
            with pytest.raises(kvc.InvalidArgument):
                call.column_positions(0)
            np.asarray(call.out)[...] = 7

    assert [info.canonical for info in registry if info.name in ("shown", "also")] == ["shown"] * 2
    cache = make_cache(registry, head_dim=32, dtype="q8_0")
    operator = kvc.Operator("also", block_k=5, device=registry.device)
    cache.bind_operator(operator, modes="autoregressive")
    k = np.ones((2, 2, 32), np.float32)
    with cache.forward([0, 1], 1):
        cache.put(0, k, k)
    with cache.forward([2], 1):
        out = cache.put_attention(0, k[:1], k[:1], np.ones((1, 4, 32), np.float32))
        held = cache.get_codes(0)
        np.testing.assert_array_equal(seen["k"], held.k)
        np.testing.assert_array_equal(seen["scales"], held.k_scales)
    assert (out == 7).all()
    assert seen["mode"] == "autoregressive" and seen["features"] == {"grouped"}
    assert (seen["n_tokens"], seen["n_q_heads"], seen["n_kv_heads"], seen["batch"]) == (1, 4, 2, 0)
    assert seen["scale"] == pytest.approx(32**-0.5) and seen["block_k"] == 8
    assert seen["positions"].tolist() == [2] and seen["sequences"].tolist() == [1]
    assert seen["visible"].tolist() == [[True] * 3] and seen["halves"].tolist() == [[0.0] * 3]
    assert seen["columns"].tolist() == [0, 1, 2]
    assert all(seen[name] is None for name in ("bias", "mask", "lse", "weights", "sinks", "slopes"))
    assert seen["dropout_prob"] == 0 and seen["keep_factor"] in (0.0, 1.0) and seen["softcap"] == 0


class Mistake(Exception):
    pass


@pytest.mark.parametrize(
    "raised", [Mistake("mine"), kvc.InternalError("mine", -100), KeyboardInterrupt()]
)
def test_an_exception_is_raised_by_the_call(registry, raised):
    """As it is, with its traceback; the cache is as it was, and works again."""

    @registry.register("fails", features=["forward", "not_causal"])
    def fails(call):
        raise raised

    cache = make_cache(registry)
    with kvc.Operator("fails", **BOUNDS, device=registry.device) as operator:
        cache.bind_operator(operator)
        k, q = np.zeros((1, 2, 16), np.float32), np.zeros((1, 2, 16), np.float32)
        cache.begin([0])
        cache.put(0, k, k)
        before = cache.digest()
        for call in (
            lambda: cache.attention(0, q),
            lambda: cache.put_attention(0, k, k, q),
            lambda: operator.forward(*[np.zeros((1, 1, 2, 16), np.float32)] * 3),
        ):
            with pytest.raises(type(raised)) as caught:
                call()
            assert caught.value is raised
            assert "fails" in [entry.name for entry in caught.traceback]
        with pytest.raises(kvc.ShapeError):  # the next error is its own
            cache.attention(0, q[0])
        assert cache.digest() == before
        cache.check()
        cache.abort()


def test_an_operator_returns_nothing(registry):
    registry.register("returns", features=["forward", "not_causal"])(
        lambda call: np.asarray(call.q)
    )
    with kvc.Operator("returns", **BOUNDS, device=registry.device) as operator:
        with pytest.raises(TypeError, match="returned ndarray, not None: it writes to call.out"):
            operator.forward(*[np.zeros((1, 1, 2, 16), np.float32)] * 3)


def test_what_it_supports_is_asked(registry):
    asked = []

    @registry.register("picky", features=["window", "forward"], modes=["prefill", "autoregressive"])
    class Picky:
        def forward(self, call):
            raise AssertionError

        def supports(self, needs):
            asked.append(needs)
            if needs.head_dim == 3:
                raise Mistake("asked")
            return needs.head_dim != 16

    assert (
        registry.supports("picky", mode="autoregressive", head_dim=8, features=["window"])
        == "picky"
    )
    needs = asked[-1]
    assert (needs.mode, needs.features, needs.head_dim, needs.dtype_k) == (
        "autoregressive",
        {"window"},
        8,
        "f32",
    )
    with pytest.raises(kvc.NotSupported, match="picky"):
        registry.supports("picky", head_dim=16)
    with pytest.raises(Mistake, match="asked"):
        registry.supports("picky", head_dim=3)
    with pytest.raises(kvc.NotSupported, match="sinks"):  # compared before
        registry.supports("picky", features=["sinks"])
    with pytest.raises(kvc.NotSupported):
        make_cache(registry).bind_operator(kvc.Operator("picky", device=registry.device))
    make_cache(registry, head_dim=8).bind_operator(
        kvc.Operator("picky", device=registry.device), modes="prefill"
    )


def test_a_call_ends_and_what_was_kept_of_it_reaches_nothing(registry):
    kept = []

    @registry.register("keeps")
    def keeps(call):
        kept[:] = [call, call.out, np.asarray(call.q), np.asarray(call.k), call._raw]
        np.asarray(call.out)[...] = 1

    cache = make_cache(registry)
    cache.bind_operator(kvc.Operator("keeps", device=registry.device))
    k = np.full((1, 2, 16), 3, np.float32)
    cache.begin([0])
    cache.put_attention(
        0, k, k, np.full((1, 2, 16), 5, np.float32)
    )  # an array that nobody else holds
    call, out, q, held, raw = kept
    assert not out.valid
    for use in (
        lambda: np.asarray(out),
        lambda: call.q[0],
        call.visible,
        lambda: call.column_positions(0),
    ):
        with pytest.raises(kvc.BadState, match="the call of this operator has ended"):
            use()
    with pytest.raises(ValueError, match="invalid name|incorrect name"):
        kvc.kvc_capi.kvc_call_mask(raw, np.empty((1, 1), bool))
    cache.close()
    gc.collect()
    assert (q == 5).all() and (held == 3).all()  # their memory lives as long as they do


def test_a_call_keeps_no_array_longer_than_it_runs(registry):
    """Without a collection of garbage."""
    registry.register("idle", features=["not_causal", "forward"])(lambda call: None)
    q = np.ones((1, 1, 2, 16), np.float32)
    gone = weakref.ref(q)
    gc.disable()
    try:
        with kvc.Operator("idle", **BOUNDS, device=registry.device) as operator:
            operator.forward(q, q, q)
        del q
        assert gone() is None
    finally:
        gc.enable()


def test_calls_from_within_a_call(registry):
    """The cache is busy; another one works, also with an operator of its own, and errors stay apart."""
    inner = make_cache(registry)
    k = np.ones((1, 2, 16), np.float32)
    inner.begin([0])
    inner.put(0, k, k)

    @registry.register("inner")
    def fails(call):
        raise Mistake("inner")

    @registry.register("outer")
    def outer(call):
        with pytest.raises(kvc.Busy):
            cache.commit()
        with pytest.raises(Mistake, match="inner"):
            inner.attention(0, k)
        assert cache.stats().state == "pass"
        seen = []
        other = threading.Thread(target=lambda: seen.append(len(registry)))
        other.start()  # another thread uses the device meanwhile
        other.join()
        assert seen[0] > 5
        np.asarray(call.out)[...] = 2

    cache = make_cache(registry)
    cache.bind_operator(kvc.Operator("outer", device=registry.device))
    inner.abort()
    inner.bind_operator(kvc.Operator("inner", device=registry.device))
    inner.begin([0])
    inner.put(0, k, k)
    cache.begin([0])
    assert (cache.put_attention(0, k, k, k) == 2).all()


def test_two_threads_attend_with_one_operator(registry, random):
    """On caches of their own, over one device; what fails in one is raised there alone."""

    @registry.register("textbook", features=EVERYTHING)
    def checked(call):
        if not np.asarray(call.q).any():
            raise Mistake("zeros")
        textbook(call)

    operator = kvc.Operator("textbook", device=registry.device)
    k = random.standard_normal((3, 2, 16), dtype=np.float32)
    seen = {}

    def run(number):
        cache = make_cache(registry)
        cache.bind_operator(operator)
        q = np.zeros_like(k) if number else k
        for _ in range(30):
            cache.begin(range(3))
            try:
                out = cache.put_attention(0, k, k, q)
            except Mistake:
                out = None
            seen.setdefault(number, []).append(out)
            cache.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert seen[1] == [None] * 30
    assert len(seen[0]) == 30 and all(np.array_equal(each, seen[0][0]) for each in seen[0])


def test_an_operator_lives_as_long_as_it_is_needed(registry):
    class Mine:
        def forward(self, call):
            np.asarray(call.out)[...] = 4

    mine = Mine()
    gone = weakref.ref(mine)
    assert registry.register("mine", "another")(mine) is mine
    del mine
    operator = kvc.Operator("another", device=registry.device)
    cache = make_cache(registry)
    cache.bind_operator(operator)
    registry.unregister("another")
    for name in ("mine", "another"):
        with pytest.raises(kvc.NotFound):
            registry.find(name)
    operator.close()
    k = np.ones((1, 2, 16), np.float32)
    with cache.forward([0]):
        assert (cache.put_attention(0, k, k, k) == 4).all()
    assert gone() is not None
    cache.bind_operator(None)
    gc.collect()
    assert gone() is None
    for name, error in (("mine", kvc.NotFound), ("flash", kvc.NotSupported)):
        with pytest.raises(error):
            registry.unregister(name)


def test_names_are_taken_replaced_and_let_go(registry):
    calls = []
    first, second = (lambda call, n=n: calls.append(n) for n in (1, 2))
    registry.register("mine")(first)
    operator = kvc.Operator("mine", device=registry.device)
    with pytest.raises(kvc.InvalidArgument, match="the name mine is taken: .* replace=True"):
        registry.register("mine")(second)
    registry.register("mine", "sdpa", replace=True)(second)
    cache = make_cache(registry)
    k = np.ones((1, 2, 16), np.float32)
    for step, each in enumerate((operator, kvc.Operator("sdpa", device=registry.device))):
        cache.bind_operator(each)
        with cache.forward([step]):
            cache.put_attention(0, k, k, k)
    assert calls == [1, 2]  # what exists keeps what it has


@pytest.mark.parametrize(
    "names, options, target, error, message",
    [
        ((), {}, print, kvc.InvalidArgument, "name 0 is empty"),
        (("Mine",), {}, print, kvc.InvalidArgument, "name 0 has a character"),
        ((1,), {}, print, TypeError, "names must be a string"),
        (("mine",), dict(features=["all"]), print, kvc.InvalidArgument, "features names 'all'"),
        (("mine",), dict(modes=["insert"]), print, kvc.InvalidArgument, "modes"),
        (("mine",), dict(storage="i4"), print, kvc.DtypeError, "storage 'i4'"),
        (("mine",), dict(head_dim_min=-1), print, kvc.InvalidArgument, "head_dim_min"),
        (("mine",), {}, 3, TypeError, "int has no forward"),
        (("mine",), {}, type("Empty", (), {}), TypeError, r"Empty has no forward\(call\)"),
    ],
)
def test_wrong_registrations(registry, names, options, target, error, message):
    before = len(registry)
    with pytest.raises(error, match=message):
        registry.register(*names, **options)(target)
    assert len(registry) == before
