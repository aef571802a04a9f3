#!/usr/bin/env python3
"""Measures other libraries on a GPU beside kvc, on the same shapes in the same minutes, and prints one table.

    tests/bench/cuda/peers.py --bench build/release/bin/kvc_bench_cuda
    tests/bench/cuda/peers.py --self-test      needs no GPU and none of the libraries

PyTorch's SDPA (cuDNN and flash), FlashInfer and FlashAttention 3 are measured where they are installed; a row says of the others why
they were not. Calls rotate over three times the second-level cache and are replayed as CUDA graphs, as kvc's are.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple


@dataclass(frozen=True)
class Case:
    """A call as kvc_bench_cuda names its figure: bf16, all heads of one size."""

    name: str
    sequences: int
    length: int  # tokens that are seen
    queries: int  # tokens of each sequence in the call
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    causal: bool = False

    @property
    def bytes(self) -> int:
        return 2 * 2 * self.sequences * self.length * self.kv_heads * self.dim

    @property
    def operations(self) -> float:
        pairs = self.queries * self.length / (2 if self.causal else 1)
        return 4.0 * self.sequences * pairs * self.heads * self.dim

    def rate(self, microseconds: float) -> str:
        if self.queries == 1:
            return f"{self.bytes / microseconds * 1e-6:.2f} TB/s"
        return f"{self.operations / microseconds * 1e-6:.0f} TFLOP/s"


def _decode(name: str, sequences: int, length: int) -> Case:
    return Case(f"decode bf16, {name}", sequences, length, 1)


def _prefill(name: str, dim: int, tokens: int, causal: bool) -> Case:
    heads = 4096 // dim
    return Case(f"prefill runtime bf16, {name}", 1, tokens, tokens, heads, heads // 4, dim, causal)


CASES = [
    _decode("1 x 1k", 1, 1024),
    _decode("1 x 8k", 1, 8192),
    _decode("1 x 32k", 1, 32768),
    _decode("1 x 128k", 1, 131072),
    _decode("8 x 4k", 8, 4096),
    _decode("8 x 16k", 8, 16384),
    _decode("32 x 4k", 32, 4096),
    _prefill("D 128, not causal, 2k", 128, 2048, False),
    _prefill("D 128, not causal, 8k", 128, 8192, False),
    _prefill("D 128, causal, 8k", 128, 8192, True),
    _prefill("D 64, causal, 8k", 64, 8192, True),
    _prefill("D 256, causal, 8k", 256, 8192, True),
]

LARGEST_ERROR = 2e-2  # of ‖difference‖ / ‖result in f32‖: everybody rounds weights to bf16


def _sdpa(backend: str) -> Callable:
    def make(torch, case: Case, k, v, q) -> Callable:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attend = torch.nn.functional.scaled_dot_product_attention
        if case.queries == 1:  # the query heads of a KV head as rows: no mask, and K and V are read once
            q = q.reshape(case.sequences, case.kv_heads, case.heads // case.kv_heads, case.dim)
            options = {}
        else:
            q = q.transpose(1, 2)
            options = {"is_causal": case.causal, "enable_gqa": True}

        def call(i: int):
            with sdpa_kernel(getattr(SDPBackend, backend)):
                out = attend(q, k[i].transpose(1, 2), v[i].transpose(1, 2), **options)
            if case.queries == 1:
                return out.reshape(case.sequences, 1, case.heads, case.dim)
            return out.transpose(1, 2)

        return call

    return make


def _flash_attention_3(torch, case: Case, k, v, q) -> Callable:
    try:
        module = importlib.import_module("flash_attn_interface")
    except ImportError:
        module = importlib.import_module("fa3_fwd")

    def call(i: int):
        out = module.flash_attn_func(q, k[i], v[i], causal=case.causal)
        return out[0] if isinstance(out, tuple) else out

    return call


def _flashinfer(torch, case: Case, k, v, q) -> Callable:
    flashinfer = importlib.import_module("flashinfer")
    if case.queries > 1:
        return lambda i: flashinfer.single_prefill_with_kv_cache(
            q[0], k[i][0], v[i][0], causal=case.causal
        )[None]
    page = 64
    n_pages = case.length // page
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device="cuda"), "NHD", use_tensor_cores=True
    )
    begins = torch.arange(0, (case.sequences + 1) * n_pages, n_pages, dtype=torch.int32, device="cuda")
    indices = torch.arange(case.sequences * n_pages, dtype=torch.int32, device="cuda")
    last = torch.full((case.sequences,), page, dtype=torch.int32, device="cuda")
    wrapper.plan(
        begins, indices, last, case.heads, case.kv_heads, case.dim, page, q_data_type=torch.bfloat16
    )
    paged = (case.sequences * n_pages, page, case.kv_heads, case.dim)
    return lambda i: wrapper.run(q[:, 0], (k[i].reshape(paged), v[i].reshape(paged)))[:, None]


PEERS: Dict[str, Callable] = {
    "PyTorch SDPA, cuDNN": _sdpa("CUDNN_ATTENTION"),
    "PyTorch SDPA, flash": _sdpa("FLASH_ATTENTION"),
    "FlashAttention 3": _flash_attention_3,
    "FlashInfer": _flashinfer,
}


@dataclass
class Result:
    microseconds: Optional[float] = None
    error: Optional[float] = None
    why_not: str = ""


def _tensors(torch, case: Case) -> Tuple:
    """K and V as [sequences, tokens, heads, dim], several of them, and queries."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    sets = int(min(128, max(2, -(-max(3 * l2, 1 << 29) // case.bytes))))
    shape = (case.sequences, case.length, case.kv_heads, case.dim)

    def some(*shape: int):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    k = [some(*shape) for _ in range(sets)]
    v = [some(*shape) for _ in range(sets)]
    return k, v, some(case.sequences, case.queries, case.heads, case.dim)


def _error(torch, case: Case, out, k, v, q) -> float:
    """Of the last rows of the first sequence, beside f32."""
    rows, group = min(case.queries, 16), case.heads // case.kv_heads
    keys, values = (x[0][0].float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q[0, -rows:].float(), keys) / case.dim**0.5
    if case.causal:
        seen = torch.arange(case.length, device="cuda")
        scores.masked_fill_(seen[None, None] > seen[-rows:][None, :, None], -float("inf"))
    want = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return float((out[0, -rows:].float() - want).norm() / want.norm())


def _time(torch, call: Callable, sets: int, repeats: int) -> float:
    """Median microseconds of a call, from replays of a graph that calls once with each set."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(min(3, sets)):
            call(i)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(sets):
                call(i)
        times = []
        for i in range(repeats + repeats // 4 + 1):
            begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i > repeats // 4:
                times.append(1e3 * begin.elapsed_time(end) / sets)
    return statistics.median(times)


def measure(case: Case, repeats: int) -> Dict[str, Result]:
    try:
        torch = importlib.import_module("torch")
        k, v, q = _tensors(torch, case)
    except Exception as why:  # no PyTorch, no GPU, no memory
        return {peer: Result(why_not=_reason(why)) for peer in PEERS}
    results = {}
    for peer, make in PEERS.items():
        try:
            call = make(torch, case, k, v, q)
            error = _error(torch, case, call(0), k, v, q)
            if not error <= LARGEST_ERROR:
                raise ValueError(f"its result is off by {error:.2g}")
            results[peer] = Result(_time(torch, call, len(k), repeats), error)
        except Exception as why:  # whatever a library raises: the others go on
            results[peer] = Result(why_not=_reason(why))
    return results


def _reason(why: Exception) -> str:
    lines = str(why).strip().splitlines() or [""]
    return f"{type(why).__name__}: {lines[0]}"[:120].replace("|", "/")


def kvc_results(lines: List[str]) -> Dict[str, Result]:
    """What kvc_bench_cuda --lines printed: name, unit, median, least, greatest, microseconds, error, verdict."""
    results = {}
    for line in lines:
        fields = line.rstrip("\n").split("\t")
        if len(fields) == 8:
            wrong = "its result is WRONG" if fields[7] == "WRONG" else ""
            results[fields[0]] = Result(None if wrong else float(fields[5]), float(fields[6]), wrong)
    return results


def run_kvc(bench: str, quick: bool) -> Dict[str, Result]:
    lines: List[str] = []
    for group in ("decode", "prefill"):
        command = [bench, "--lines", "--only", group] + (["--quick"] if quick else [])
        print(" ".join(command), file=sys.stderr, flush=True)
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        lines += run.stdout.splitlines()
        if run.returncode != 0:
            print(f"kvc_bench_cuda ended with {run.returncode}: {run.stdout[-200:]}", file=sys.stderr)
    return kvc_results(lines)


def table(cases: List[Case], ours: Dict[str, Result], theirs: List[Dict[str, Result]]) -> str:
    rows = ["| call | kvc | " + " | ".join(PEERS) + " | best peer / kvc |"]
    rows.append("|---" * (len(PEERS) + 3) + "|")
    for case, results in zip(cases, theirs):
        kvc = ours.get(case.name, Result(why_not="kvc_bench_cuda printed no such figure"))
        cells = [_cell(case, r) for r in (kvc, *(results[peer] for peer in PEERS))]
        times = [r.microseconds for r in results.values() if r.microseconds is not None]
        ratio = f"{min(times) / kvc.microseconds:.2f}" if times and kvc.microseconds else ""
        rows.append(f"| {case.name} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(rows)


def _cell(case: Case, result: Result) -> str:
    if result.microseconds is None:
        return f"not run: {result.why_not}"
    return f"{result.microseconds:.1f} µs, {case.rate(result.microseconds)}"


def self_test() -> None:
    """Everything but the calls: what kvc prints, libraries that are not there, and the table."""
    line = "decode bf16, 1 x 1k\t% of copy rate\t50\t49\t51\t4.0\t0.002\tgo\n"
    ours = kvc_results([line, line.replace("1k", "8k").replace("go", "WRONG"), "not a figure\n"])
    assert ours["decode bf16, 1 x 1k"].microseconds == 4.0
    assert ours["decode bf16, 1 x 8k"].microseconds is None
    theirs = [{peer: Result(why_not="absent") for peer in PEERS} for _ in CASES]
    theirs[0]["FlashInfer"] = Result(5.0, 0.002)
    text = table(CASES, ours, theirs)
    assert "| 1.25 |" in text and "its result is WRONG" in text and "not run: absent" in text
    assert "printed no such figure" in text and len(text.splitlines()) == len(CASES) + 2
    assert Case("", 1, 8192, 8192, causal=True).rate(1e6).endswith("TFLOP/s")
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    results = measure(CASES[0], 1)
    assert set(results) == set(PEERS) and all("torch" in r.why_not for r in results.values())
    print("peers: the table and what is not run are right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/release/bin/kvc_bench_cuda")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="5 measurements of each, not 24")
    parser.add_argument("--self-test", action="store_true", help="without a GPU")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    cases = [case for case in CASES if options.only in case.name]
    ours = run_kvc(options.bench, options.quick)
    theirs = []
    for case in cases:
        print(case.name, file=sys.stderr, flush=True)
        theirs.append(measure(case, 5 if options.quick else 24))
    print(table(cases, ours, theirs))
    results = [*ours.values(), *(result for of_case in theirs for result in of_case.values())]
    if all(result.microseconds is None for result in results):
        sys.exit("nothing was measured")


if __name__ == "__main__":
    main()
