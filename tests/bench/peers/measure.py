"""One case in one process: every peer is checked, then timed against kvc, call after call."""

from __future__ import annotations

import gc
import importlib
import itertools
import subprocess
import time
from typing import Any, Dict, Iterator

import numpy as np

from cases import Case, Tensors, expected

AWAKE_SECONDS = 0.01  # of calls before the timed one, as in a model, whose layers follow one another

Record = Dict[str, Any]


def measure(case: Case, n_threads: int, pairs: int) -> Iterator[Record]:
    """A record per peer: its error and the seconds of each pair, or why it did not run."""
    last_level = _last_level_bytes()
    rotate_bytes = max(512 << 20, 2 * last_level) if case.tokens == 1 else 256 << 20
    tensors = Tensors(case, rotate_bytes)
    right = expected(tensors)
    ours = _made("kvc", tensors, n_threads)
    our_error = _warmed(ours, tensors, right)
    yield {"peer": "kvc", "version": ours.version, "error": our_error}
    gc.disable()
    for peer in case.peers:
        record: Record = {"peer": peer}
        try:
            theirs = _made(peer, tensors, n_threads)
            record["version"] = theirs.version
            record["error"] = _warmed(theirs, tensors, right)
            _clean_caches(ours, theirs, tensors.layers)
            record["pairs"] = _paired(ours, theirs, tensors.layers, pairs)
            del theirs
        except Exception as why:  # whatever a peer raises: the others go on
            record["not_run"] = f"{type(why).__name__}: {why}".splitlines()[0]
        gc.collect()
        yield record


def _last_level_bytes() -> int:
    return int(subprocess.check_output(["getconf", "LEVEL3_CACHE_SIZE"], text=True).strip() or 0)


def _made(peer: str, tensors: Tensors, n_threads: int) -> Any:
    module = importlib.import_module("peer_" + peer)
    made = module.Peer(tensors, n_threads)
    made.version = f"{module.NAME} {module.VERSION}"
    return made


def _warmed(peer: Any, tensors: Tensors, right: np.ndarray) -> float:
    """Calls every layer once, and returns the largest error that was met in any of them."""
    error = 0.0
    for layer in range(tensors.layers):
        peer.run(layer)
        last_rows = peer.result(layer)[:, -right.shape[1] :].astype(np.float64)
        error = max(error, float(np.abs(last_rows - right).max()))
    if not error < tensors.case.largest_error:
        raise ValueError(f"differs from the exact result by {error:.2g}")
    return error


def _clean_caches(ours: Any, theirs: Any, n_layers: int) -> None:
    """Reads every layer of both: what filling them left in the caches goes back to memory while the next ones are read,
    which halves the rate of those that come first."""
    for layer in range(n_layers):
        ours.run(layer)
        theirs.run(layer)


def _paired(ours: Any, theirs: Any, n_layers: int, pairs: int) -> list:
    """[seconds of kvc, seconds of the peer] of each pair; the order changes from pair to pair."""
    rotations = itertools.cycle(range(n_layers)), itertools.cycle(range(n_layers))
    result = []
    for pair in range(pairs):
        seconds = [0.0, 0.0]
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[which] = _timed((ours, theirs)[which], rotations[which])
        result.append(seconds)
    return result


def _timed(peer: Any, layers: Iterator[int]) -> float:
    """Seconds of one call, after calls of the layers before it, as in a model."""
    _settle()
    awake = time.perf_counter() + AWAKE_SECONDS
    while time.perf_counter() < awake:
        peer.run(next(layers))
    layer = next(layers)
    start = time.perf_counter()
    peer.run(layer)
    return time.perf_counter() - start


def _settle() -> None:
    """Waits until the threads of the runtime before have stopped spinning; it may take 0.1 s."""
    for _ in range(100):
        start = time.process_time()
        time.sleep(0.005)
        if time.process_time() - start < 0.0005:
            return
