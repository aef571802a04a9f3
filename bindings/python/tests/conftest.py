"""A small model's worth of caches and arrays."""

import os
import pathlib
import sys

import numpy as np
import pytest

# `python -m pytest` puts the current folder first. The source folder has no compiled extension.
_SOURCE = pathlib.Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != _SOURCE]

import kvc  # noqa: E402

GEOMETRY = dict(
    n_layers=2, n_kv_heads=2, head_dim=16, capacity=64, max_sequences=4, max_batch=32, max_q_heads=4
)

STATE, CONV = (2, 3, 4), (5, 3)  # of the recurrent caches
LAYERS = dict(capacity=64, max_sequences=3, max_batch=32)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """`make test` installs all that tests need and sets KVC_ALL_TESTS: none may be skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("KVC_ALL_TESTS"):
        for report in skipped:
            reporter.write_line(f"\nmust not be skipped: {report.nodeid}: {report.longrepr[2]}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def device():
    with kvc.Device(n_threads=2) as device:
        yield device


@pytest.fixture
def closing():
    """Returns the cache that it is given; when the test ends, checks and closes it."""
    caches = []

    def keep(cache):
        caches.append(cache)
        return cache

    yield keep
    for cache in caches:
        cache.check() if not cache.closed else None
        cache.close()


@pytest.fixture
def make(device, closing):
    """Creates caches of two layers, two KV heads of 16 and four query heads, and closes them."""

    def create(**changes):
        return closing(kvc.Cache(**{"device": device, **GEOMETRY, **changes}))

    return create


@pytest.fixture
def recurrent(device, closing):
    """Creates recurrent caches of two layers, and closes them."""

    def make(**changes):
        sizes = dict(
            kind="recurrent",
            n_layers=2,
            state_shape=STATE,
            conv_channels=CONV[0],
            conv_dim=CONV[1],
            max_sequences=4,
            max_batch=32,
            device=device,
        )
        return closing(kvc.Cache(**{**sizes, **changes}))

    return make


@pytest.fixture
def model(device, closing):
    """A wrapper from layers; closes it."""
    def make(*layers, **common):
        return closing(kvc.Cache.from_layers(layers, device=device, **{**LAYERS, **common}))

    return make


@pytest.fixture
def cache(make):
    return make()


@pytest.fixture
def random():
    return np.random.default_rng(7)


@pytest.fixture
def kvq(random):
    """Random float32 (k, v, q) for n tokens."""

    def draw(n_tokens, n_kv_heads=2, n_q_heads=4, head_dim_k=16, head_dim_v=16):
        return (
            random.standard_normal((n_tokens, n_kv_heads, head_dim_k), dtype=np.float32),
            random.standard_normal((n_tokens, n_kv_heads, head_dim_v), dtype=np.float32),
            random.standard_normal((n_tokens, n_q_heads, head_dim_k), dtype=np.float32),
        )

    return draw


@pytest.fixture
def fill(kvq):
    """Puts n new tokens of a sequence into every layer; returns (k, v, q)."""

    def put(cache, n_tokens, sequence=0, start=None):
        start = cache.query(sequence).next if start is None else start
        k, v, q = kvq(n_tokens)
        with cache.forward(np.arange(start, start + n_tokens), sequence):
            for layer in range(cache.n_layers):
                cache.put(layer, k, v)
        return k, v, q

    return put
