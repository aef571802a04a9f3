"""Gemma's tokenizer: pieces of text with scores, as SentencePiece makes them."""

import codecs
import heapq
import re

from demo import DemoError

_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6  # token types of GGUF
_SPACE = "\u2581"  # what a space is called in a piece


class GemmaTokenizer:
    """Text to token numbers and back.

    start       the token that every text starts with
    end_tokens  the tokens that end one
    line_ends   the tokens that end a line: one or more line breaks
    """

    def __init__(self, file):
        kind = file.field("tokenizer.ggml.model")
        if kind != "llama":
            raise DemoError(f"{file.path} has a tokenizer of kind {kind}; this demo knows llama")
        self._pieces = file.field("tokenizer.ggml.tokens")
        self._kinds = file.field("tokenizer.ggml.token_type")
        self._scores = file.field("tokenizer.ggml.scores")
        self.start = file.field("tokenizer.ggml.bos_token_id")
        self.end_tokens = {file.field("tokenizer.ggml.eos_token_id")}
        self._normal = self._numbers(_NORMAL)
        of_byte = self._numbers(_BYTE)
        self._bytes = [of_byte[f"<0x{byte:02X}>"] for byte in range(256)]
        self._whole = self._numbers(_USER_DEFINED)
        self.line_ends = {number for piece, number in self._whole.items() if not piece.strip("\n")}
        longest_first = sorted(self._whole, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _numbers(self, kind):
        """The tokens of a kind, by their piece."""
        return {p: i for i, (p, own) in enumerate(zip(self._pieces, self._kinds)) if own == kind}

    def tokens(self, text):
        """The tokens of a text, without the start."""
        result = []
        for part in self._split.split(text):
            if part in self._whole:
                result.append(self._whole[part])
            else:
                for piece in self._merged(part.replace(" ", _SPACE)):
                    number = self._normal.get(piece)
                    result += (
                        [self._bytes[b] for b in piece.encode()] if number is None else [number]
                    )
        return result

    def _merged(self, text):
        """The pieces of a text: neighbours are joined, those with the best score first."""
        pieces = list(text)
        after = list(range(1, len(pieces) + 1))  # the next piece's index
        before = list(range(-1, len(pieces) - 1))
        candidates = []

        def consider(left):
            right = after[left]
            if right < len(pieces):
                joined = pieces[left] + pieces[right]
                if joined in self._normal:
                    score = self._scores[self._normal[joined]]
                    heapq.heappush(candidates, (-score, left, joined))

        for left in range(len(pieces) - 1):
            consider(left)
        while candidates:
            _, left, joined = heapq.heappop(candidates)
            right = after[left]
            # One of the two may have been joined with another since.
            if (
                pieces[left] is None
                or right == len(pieces)
                or pieces[left] + pieces[right] != joined
            ):
                continue
            pieces[left], pieces[right] = joined, None
            after[left] = after[right]
            if after[left] < len(pieces):
                before[after[left]] = left
            consider(left)
            if before[left] >= 0:
                consider(before[left])
        return [piece for piece in pieces if piece is not None]

    def stream(self):
        """A function from one token to the text that it completes ("" within a character)."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def text(token):
            kind, piece = self._kinds[token], self._pieces[token]
            if kind == _BYTE:
                return decoder.decode(bytes([int(piece[3:5], 16)]))
            return decoder.decode(piece.replace(_SPACE, " ").encode())

        return text
