"""Generates an answer token by token, and verifies it with a computation without a cache."""

import dataclasses
import time

import numpy as np


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
    n_held: int  # tokens of the prompt that the cache had
    prompt_seconds: float  # until the first token was known
    seconds: float  # after that
    kvc_seconds: float  # the part of `seconds` spent in kvc
    context: int  # positions in the sequence at the end


def answer(model, tokenizer, attention, sequence, prompt, limit, sampler, shared=None):
    """Generates up to `limit` tokens after a prompt and prints the text as it is generated.

    attention  cached.CachedAttention
    sequence   of the cache. It may hold leading tokens of the prompt, but not all
    prompt     list of tokens
    shared     None, or (another sequence, how many leading tokens of it are to be copied first)
    """
    start = time.perf_counter()
    if shared is not None:
        attention.copy_prefix(*shared, sequence)
    n_held = attention.cache.query(sequence).next
    logits = attention.feed(model, prompt[n_held:], sequence)
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
        len(prompt) - n_held,
        n_held,
        prompt_seconds,
        seconds,
        attention.seconds,
        attention.cache.query(sequence).next,
    )


def report(result, stats):
    """Prints the measurements of an answer."""
    print(
        f"\n\n  prompt      {result.n_fed} tokens in {1e3 * result.prompt_seconds:.0f} ms "
        f"({result.n_fed / result.prompt_seconds:.0f} tokens/s)"
        + (f", {result.n_held} more were in the cache" if result.n_held else "")
    )
    steps = len(result.tokens + result.end) - 1
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


def verified(model, prompt, result, attention, sampler):
    """Whether NumPy alone, without kvc and without a cache, chooses the same tokens. Prints it.

    attention  recomputed.RecomputedAttention, or another that keeps nothing

    One pass computes the whole text and what follows each of its tokens. If each token of the
    answer is what follows the text before it, NumPy would have generated the same answer.
    """
    tokens = result.tokens + result.end
    text = (prompt + tokens)[:-1]
    all_logits = model.forward(text, np.arange(len(text)), attention, last=len(tokens))
    for index, (token, logits) in enumerate(zip(tokens, all_logits)):
        expected = sampler.choose(logits)
        if token != expected:
            lead = logits[expected] - logits[token]
            print(
                f"  verify      DIFFERS at token {index + 1}: kvc chose {token}, "
                f"NumPy {expected}, which leads by {lead:.2g} in the logits"
            )
            return False
    print(f"  verify      the same {len(tokens)} tokens as NumPy alone, without a cache")
    return True
