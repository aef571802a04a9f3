"""The command line: `python -m kvc …`, or `kvc …` once the package is installed."""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import re
import runpy
import sys
import weakref
from typing import List, Optional, Tuple

import numpy as np

from . import __version__, build_info
from .cache import Cache
from .inspect import History, Snapshot, draw
from .kvc_capi import kvc_version_number

DESCRIPTION = """Runs a Python program and draws the caches that it creates: cells, sequences, and
memory over the run, sampled whenever a pass ends. A cache is drawn as it was before it was closed;
one that was never closed, as it was when its last pass ended."""


OUTPUT = re.compile(r"-o|--output(=|$)")


class Recorder:
    """Records the caches of a running program."""

    def __init__(self) -> None:
        self.seen: List[Tuple[History, List[Snapshot]]] = []
        self._of: weakref.WeakKeyDictionary[Cache, int] = weakref.WeakKeyDictionary()

    def __call__(self, cache: Cache) -> None:
        """Takes a sample, and a snapshot that replaces the previous one."""
        if cache not in self._of:
            self._of[cache] = len(self.seen)
            self.seen.append((History(), []))
        history, latest = self.seen[self._of[cache]]
        history.sample(cache)
        latest[:] = [Snapshot.of(cache)]


def versions() -> str:
    """What a report of a bug needs: the versions of everything that works together."""
    number = kvc_version_number()
    library = f"{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}"
    return (
        f"kvc {__version__} (Python package), in {pathlib.Path(__file__).parent}\n"
        f"libkvc {library}: {build_info()}\n"
        f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}"
    )


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="kvc",
        description="Tools around a KV cache.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect", help="draw the caches of a program", description=DESCRIPTION
    )
    inspect.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        help="picture to write (cache.svg), in the format of its suffix; further caches are "
        "numbered: cache-2.svg … It comes before the program",
    )
    inspect.add_argument("program", type=pathlib.Path, help="Python program to run")
    inspect.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="all that is behind the program: its own arguments, if it takes any",
    )
    options = parser.parse_args(arguments)
    try:
        import matplotlib
    except ImportError:
        inspect.error("drawing needs matplotlib: pip install matplotlib")
    output = (options.output or pathlib.Path("cache.svg")).absolute()  # the program may chdir
    if reason := unwritable(output):
        inspect.error(reason)
    if not options.program.is_file():
        inspect.error(f"there is no program {options.program}")
    if options.output is None and any(OUTPUT.match(each) for each in options.arguments):
        print(
            f"kvc: the -o behind {options.program} is the program's; the picture goes to {output}",
            file=sys.stderr,
        )
    # The same cache must give the same file, and text must stay text.
    matplotlib.rcParams.update({"svg.hashsalt": "kvc", "svg.fonttype": "none"})
    recorder = Recorder()
    status = run(options.program, options.arguments, recorder)
    if not recorder.seen:
        parser.exit(1, f"kvc: {options.program} ended no pass, so there is nothing to draw\n")
    for number, (history, latest) in enumerate(recorder.seen, start=1):
        path = output
        if number > 1:
            path = path.with_name(f"{path.stem}-{number}{path.suffix}")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        draw(latest[0], history).savefig(path, metadata=metadata)
        print(f"kvc: {path}", file=sys.stderr)
    return status


def unwritable(output: pathlib.Path) -> Optional[str]:
    """Why no picture can be written there; None: it can, as far as that is known before."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if output.suffix[1:].lower() not in formats:
        return f"the suffix of {output.name} must be one of .{' .'.join(formats)}"
    if not output.parent.is_dir():
        return f"there is no folder {output.parent}"
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        return f"{output} cannot be written"
    return None


def run(program: pathlib.Path, arguments: List[str], recorder: Recorder) -> int:
    """Runs the program as if it had been started by itself, and returns its exit code."""
    sys.argv = [str(program), *arguments]
    sys.path[0] = str(program.resolve().parent)
    Cache._watcher = recorder
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        Cache._watcher = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
