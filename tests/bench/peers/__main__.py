"""Measures kvc beside other libraries on the same tensors and prints a table.

    make bench-peers PEERS="--only 4k"

Each case runs in a process of its own, several times, because where memory happens to lie counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from cases import CASES, Case
from measure import measure
from table import Row, print_tables

BENCH = Path(__file__).resolve().parents[3] / "build/release/bin/kvc_bench"


def main() -> None:
    options = _arguments()
    n_threads = options.threads or len(os.sched_getaffinity(0))
    if options.child:
        case = next(case for case in CASES if case.name == options.child)
        for record in measure(case, n_threads, options.pairs):
            print(json.dumps(record), flush=True)
        return
    rows = []
    for case in CASES:
        if options.only in case.name:
            rows.append(_collect(case, n_threads, options))
    print(f"{n_threads} threads, {options.starts} starts of {options.pairs} pairs", end="; ")
    print_tables(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--starts", type=int, default=3, help="process starts of each case")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of calls in each process")
    parser.add_argument("--threads", type=int, default=0, help="of every library; 0: all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _collect(case: Case, n_threads: int, options: argparse.Namespace) -> Row:
    row = Row(case)
    for start in range(options.starts):
        print(f"{case.name}, start {start + 1} of {options.starts}", file=sys.stderr, flush=True)
        row.limits.append(_limit(case, n_threads))
        command = [sys.executable, str(Path(__file__).parent), "--child", case.name]
        command += ["--threads", str(n_threads), "--pairs", str(options.pairs)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        row.limits.append(_limit(case, n_threads))
        records = [json.loads(line) for line in child.stdout.splitlines()]
        for peer in {"kvc", *case.peers} - {record["peer"] for record in records}:
            records.append({"peer": peer, "not_run": f"the process ended ({child.returncode})"})
        row.records += records
    return row


def _limit(case: Case, n_threads: int) -> float:
    """Seconds that reading K and V once, or the products, take at best on this machine now."""
    command = [BENCH, "--only", "limits", "--starts", "1", "--pairs", "5"]
    command += ["--threads", str(n_threads)]
    text = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    read, multiply = (float(rate) for rate in re.findall(r"\| G\S+/s \| (\S+) \|", text))
    return max(case.bytes / read, case.operations / multiply) / 1e9


if __name__ == "__main__":
    main()
