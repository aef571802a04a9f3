"""A text and questions about it, in one sequence of a cache."""

import time

from conversation import Sampler, answer
from demo import DemoError

SEQUENCE = 0


class Conversation:
    """What was said, as tokens. The cache holds the first of them.

    text     what the questions are about
    limit    tokens of the longest answer
    tokens   all so far
    sampler  how the next token is chosen: the likeliest. The rest of a line is an answer
    """

    def __init__(self, model, tokenizer, attention, text, limit):
        self.model, self.cache = model, attention.cache
        self._tokenizer, self._attention = tokenizer, attention
        self._limit = limit
        self._questions = []  # where each begins
        self.tokens = [tokenizer.start, *tokenizer.tokens(text)]
        ends = tokenizer.end_tokens | tokenizer.line_ends
        self.sampler = Sampler(0.0, 0, ends, keep_going=False)

    def ask(self, question):
        """Prints the model's answer. Returns it, and all tokens before it."""
        prompt = self.tokens + self._tokenizer.tokens(f"\nQuestion: {question}\nAnswer:")
        context = self.model.config.context
        if len(prompt) + self._limit > context:
            raise DemoError(
                f"text and questions take {len(prompt)} tokens and --tokens asks for {self._limit}, "
                f"but the model's context is {context}: use a shorter text"
            )
        result = answer(
            self.model,
            self._tokenizer,
            self._attention,
            SEQUENCE,
            prompt,
            self._limit,
            self.sampler,
        )
        self._questions.append(len(self.tokens))
        self.tokens = prompt + result.tokens
        return result, prompt

    def take_back(self):
        """Takes the last question and its answer back. Returns how many tokens the cache keeps.

        Where a window has let go of what the next token would see, the cache keeps fewer than are
        left, and ask() computes the others again.
        """
        self.tokens = self.tokens[: self._questions.pop()]
        return self.cache.resume(SEQUENCE, len(self.tokens))

    def kept_of_half_the_text(self):
        """How many tokens could be kept if the text changed in its middle, and how many are before
        that. Changes nothing."""
        middle = self._questions[0] // 2
        return self.cache.can_resume(SEQUENCE, middle), middle

    def seconds_from_the_start(self, prompt):
        """How long all tokens of a prompt take, with nothing kept."""
        self.cache.resume(SEQUENCE, 0)
        start = time.perf_counter()
        self._attention.feed(self.model, prompt, SEQUENCE)
        return time.perf_counter() - start
