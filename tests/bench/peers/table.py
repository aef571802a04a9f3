"""What was measured, as tables in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import List, Sequence

from cases import Case
from measure import Record

NAMES = {
    "kvc": "kvc",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "llamacpp": "llama.cpp",
}


@dataclass
class Row:
    """A case, what the machine could do, and what was seen of each peer."""

    case: Case
    limits: List[float] = field(default_factory=list)  # seconds, before and after each process
    records: List[Record] = field(default_factory=list)  # of each peer one per process start

    def of(self, peer: str, what: str) -> list:
        return [r[what] for r in self.records if r["peer"] == peer and what in r]


def print_tables(rows: Sequence[Row]) -> None:
    versions = {version for row in rows for peer in NAMES for version in row.of(peer, "version")}
    print("; ".join(sorted(versions, key=str.lower)) + ". Times in ms.\n")
    print("| call | limit | beside | kvc | peer | times as fast | must | go for | reached |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for peer in row.case.peers:
            print(_line(row, peer))
    print("\n| largest error | " + " | ".join(row.case.name for row in rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for peer, name in NAMES.items():
        print(f"| {name} | " + " | ".join(_largest_error(row, peer) for row in rows) + " |")


def _largest_error(row: Row, peer: str) -> str:
    errors = row.of(peer, "error")
    if errors:
        return f"{max(errors):.1g}"
    return "not run" if peer in ("kvc", *row.case.peers) else "–"


def _line(row: Row, peer: str) -> str:
    case = row.case
    start = f"| {case.name} | {_ms(min(row.limits))} | {NAMES[peer]}"
    why = row.of(peer, "not_run")
    if why:
        return f"{start} | not run: {why[0]} | | | | | |"
    pairs = [pair for several in row.of(peer, "pairs") for pair in several]
    ours, theirs = zip(*pairs)
    ratios = [b / a for a, b in pairs]
    line = f"{start} | {_spread(ours)} | {_spread(theirs)} | {median(ratios):.2f}"
    line += f" ({min(ratios):.2f} – {max(ratios):.2f})"
    if peer != "openvino":  # the others must not be faster than kvc
        return f"{line} | 1 | | {'must' if median(ratios) >= 1 else 'missed'} |"
    return f"{line} | {case.must:g} | {case.go_for:g} | {_reached(case, median(ratios))} |"


def _reached(case: Case, ratio: float) -> str:
    return "go" if ratio >= case.go_for else "must" if ratio >= case.must else "missed"


def _spread(seconds: Sequence[float]) -> str:
    return f"{_ms(median(seconds))} ({_ms(min(seconds))} – {_ms(max(seconds))})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
