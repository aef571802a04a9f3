"""The model's tokenizer and chat template, built from the model file itself."""

import jinja2.sandbox
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from demo import DemoError

_MARK = "\x00answer\x00"  # replaces an answer while a template is rendered
_CONTROL = 3  # GGUF token type of <|im_start|> and similar tokens


class Tokenizer:
    """Text to token numbers and back, and conversations to prompts."""

    def __init__(self, file):
        kind = (file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre", "unknown"))
        if kind != ("gpt2", "smollm"):
            raise DemoError(
                f"{file.path} has a tokenizer of kind {kind[0]}/{kind[1]}; this demo knows "
                "gpt2/smollm"
            )
        tokens = file.field("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in file.field("tokenizer.ggml.merges")]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        self._tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        # "smollm": every digit is a word of its own, then the words of GPT-2, as bytes.
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        kinds = file.field("tokenizer.ggml.token_type")
        self._tokenizer.add_special_tokens(
            [
                tokenizers.AddedToken(token, normalized=False, special=True)
                for token, kind in zip(tokens, kinds)
                if kind == _CONTROL
            ]
        )
        self.end_tokens = {file.field("tokenizer.ggml.eos_token_id"), vocabulary["<|endoftext|>"]}
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
        self._template = environment.from_string(file.field("tokenizer.chat_template"))

    def prompt(self, messages):
        """The tokens of a conversation, up to where the assistant answers.

        messages  list of {"role": "system" | "user" | "assistant", "content": text}
        """
        return self._tokens(self._rendered(messages))

    def next_turn(self, messages, content):
        """The tokens between the assistant's answer to a conversation and its answer to `content`.

        An answer is continued as the tokens that were generated: if its text were tokenized again,
        they could differ.
        """
        before = self._rendered(messages)
        answered = [*messages, {"role": "assistant", "content": _MARK}]
        after = self._rendered([*answered, {"role": "user", "content": content}])
        if not after.startswith(before + _MARK):
            raise DemoError(
                "the model's chat template changes what was said before: it cannot be continued"
            )
        return self._tokens(after[len(before) + len(_MARK) :])

    def tokens(self, text):
        """The tokens of a plain text."""
        return self._tokens(text)

    def _rendered(self, messages):
        return self._template.render(messages=messages, add_generation_prompt=True)

    def _tokens(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def stream(self):
        """A function from one token to the text that it completes ("" within a character)."""
        stream = decoders.DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""
