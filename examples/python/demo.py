"""What the demos' commands share: options, and one line of advice instead of a traceback."""

import argparse
import os
import sys


class DemoError(Exception):
    """A message for the user, with advice. It is printed without a traceback."""


def run(command, options, memory):
    """Runs `command(options)` and returns the exit code of the program.

    command  a function that returns an exit code. It imports NumPy, kvc and whatever imports them
    options  of its parser; options.threads is the number of threads of NumPy's BLAS
    memory   what the model takes, for the message of a machine that has less: "0.8 GB"
    """
    # NumPy's BLAS reads this when NumPy is first imported.
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    try:
        return command(options)
    except DemoError as error:
        return _failed(str(error))
    except ImportError as error:
        return _failed(_not_importable(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe. Python must not fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        return _failed(
            f"not enough memory for the model ({memory}) and the cache ({error}): free some"
        )
    except ValueError as error:
        if not type(error).__module__.startswith("kvc."):
            raise
        return _failed(str(error))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return _failed(f"{error.strerror or error}{place}")


def _failed(message):
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    return 1


def _not_importable(error):
    if error.name == "kvc":
        return "the kvc package is not installed: `make python`, or `pip install ./bindings/python`"
    if isinstance(error, ModuleNotFoundError):
        install = "pip install -r tools/requirements-demo.txt"
        return f"the Python package {error.name} is missing: {install}"
    return f"{error}: install it again"


def integer(low, high):
    """The type of an option: a whole number from low to high."""

    def checked(text):
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is outside {low} … {high}")
        return value

    checked.__name__ = "integer"  # argparse names it in its message
    return checked


def add_threads(parser):
    """Adds the option --threads: as many as the program may use cores."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser.add_argument(
        "--threads",
        type=integer(1, 256),
        default=min(cores, 256),
        help="threads of NumPy's BLAS and of kvc (%(default)s)",
    )


STORAGES = ("f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "q8_0", "q4_0", "int8", "nf4")


def add_storage(parser):
    """Adds the options --storage and --rotate: how a cache stores keys and values."""
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        default="f16",
        help="how the cache stores keys and values (%(default)s)",
    )
    parser.add_argument(
        "--rotate",
        action="store_true",
        help="store them rotated, which spreads outliers: with q8_0, q4_0, int8 and nf4",
    )


def check_verify(parser, options):
    """Refuses to verify what cannot be compared token by token."""
    if options.verify and options.storage not in ("f32", "f16", "bf16"):
        parser.error(
            f"--verify goes with f32, f16 and bf16. With {options.storage}, a last bit of a key that "
            "NumPy rounds otherwise may change its code, and then the tokens behind it"
        )


class Progress:
    """A line on a terminal that counts; elsewhere one line for the whole."""

    def __init__(self, what):
        self._what = what
        self._terminal = sys.stderr.isatty()
        end = "" if self._terminal else " …\n"
        print(what, end=end, file=sys.stderr, flush=True)

    def __call__(self, part):
        """Shows how far it is: a part like "layer 3 of 30"."""
        if self._terminal:
            print(f"\r{self._what}: {part}", end="", file=sys.stderr, flush=True)

    def done(self, result):
        """Replaces the line by what became of it."""
        start = "\r\x1b[K" if self._terminal else ""
        print(f"{start}{result}", file=sys.stderr)
