"""Generates an answer token by token, and verifies it with a computation without a cache."""

import dataclasses
import sys
import time

import numpy as np

from recomputed import RecomputedAttention


class Sampler:
    """Chooses the next token.

    temperature  0: the likeliest; else drawn from softmax(logits / temperature)
    end_tokens   tokens that end an answer; never chosen with keep_going
    """

    def __init__(self, temperature, seed, end_tokens, keep_going):
        self._temperature = temperature
        self._random = np.random.default_rng(seed)
        self._forbidden = sorted(end_tokens) if keep_going else []
        self.end_tokens = end_tokens

    def choose(self, logits):
        """The next token, from float32 [vocabulary], which may be changed."""
        logits[self._forbidden] = -np.inf
        if self._temperature == 0:
            return int(np.argmax(logits))
        weights = np.exp((logits - logits.max()).astype(np.float64) / self._temperature)
        return int(self._random.choice(len(weights), p=weights / weights.sum()))


@dataclasses.dataclass
class Answer:
    """An answer and its measurements."""

    tokens: list  # of the text
    end: list  # the token that ended it, if any
    n_fed: int  # tokens of the prompt that were computed
    n_shared: int  # tokens of the prompt that another sequence had
    prompt_seconds: float  # until the first token was known
    seconds: float  # after that
    kvc_seconds: float  # the part of `seconds` spent in kvc
    context: int  # positions in the sequence at the end


def answer(model, tokenizer, attention, sequence, prompt, limit, sampler, shared=None):
    """Generates up to `limit` tokens after a prompt and prints the text as it is generated.

    attention  cached.CachedAttention
    sequence   of the cache, empty
    prompt     list of tokens
    shared     (another sequence, how many leading tokens of the prompt it holds: not all)
    """
    start = time.perf_counter()
    n_shared = 0
    if shared is not None:
        n_shared = attention.copy_prefix(*shared, sequence)
    logits = attention.feed(model, prompt[n_shared:], sequence)
    token = sampler.choose(logits)
    prompt_seconds = time.perf_counter() - start

    tokens = []
    text_of = tokenizer.stream()
    attention.seconds = 0.0
    start = time.perf_counter()
    while token not in sampler.end_tokens:
        tokens.append(token)
        print(text_of(token), end="", flush=True)
        if len(tokens) == limit:
            break
        token = sampler.choose(attention.feed(model, [token], sequence))
    seconds = time.perf_counter() - start
    end = [token] if token in sampler.end_tokens else []
    return Answer(
        tokens,
        end,
        len(prompt) - n_shared,
        n_shared,
        prompt_seconds,
        seconds,
        attention.seconds,
        attention.cache.query(sequence).next,
    )


def verified(model, prompt, result, options, sampler):
    """Whether NumPy alone, recomputing the whole sequence for each token, chooses the same tokens.

    Prints the result. Keys and values are rounded to the storage type, as the cache stores them.
    """
    attention = RecomputedAttention(options.storage, options.window)
    sequence = list(prompt)
    tokens = result.tokens + result.end
    for index, token in enumerate(tokens):
        print(
            f"\r  verify      token {index + 1} of {len(tokens)}",
            end="",
            file=sys.stderr,
            flush=True,
        )
        logits = model.forward(sequence, np.arange(len(sequence)), attention)
        expected = sampler.choose(logits)
        if token != expected:
            lead = logits[expected] - logits[token]
            print(
                f"\n  verify      DIFFERS at token {index + 1}: kvc chose {token}, "
                f"NumPy {expected}, which leads by {lead:.2g} in the logits"
            )
            return False
        sequence.append(token)
    print("\r", end="", file=sys.stderr)
    print(f"  verify      the same {len(tokens)} tokens as NumPy alone, without a cache")
    return True
