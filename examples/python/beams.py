"""Beam search over several pieces of sound at once.

A piece has a place in the batch while its text is written, and a place has as many sequences as
there are beams. A pass has one token for each sequence that is in use, so a piece that begins (with
its prompt) may be in the same pass as others that go on.
"""

import collections
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a text begins and ends with, and what it must not contain."""

    prompt: list  # of tokens
    end: int  # the token after the last of a text
    suppressed: np.ndarray  # tokens that are never chosen
    suppressed_first: np.ndarray  # nor these as the first
    limit: int  # tokens of a text


@dataclasses.dataclass(frozen=True)
class Text:
    """A text so far."""

    tokens: list
    score: float  # log of its probability


class Search:
    """Writes the texts of pieces of sound.

    decoder   object with forward, reorder and forget, see PlainDecoder
    encode    function from a piece to what the decoder's layers see of it
    n_places  pieces that are written at the same time
    """

    def __init__(self, decoder, encode, rules, *, n_places, n_beams):
        self._decoder, self._encode, self._rules = decoder, encode, rules
        self._n_places, self._n_beams = n_places, n_beams
        self.n_passes = 0
        self.n_rows = 0  # tokens that went through the decoder

    def run(self, pieces, progress=lambda done: None):
        """The tokens of each piece's text."""
        texts = [None] * len(pieces)
        waiting = collections.deque(enumerate(pieces))
        places = {}  # place: (number of its piece, its _Beams)
        while waiting or places:
            sounds = {}
            for place in range(self._n_places):
                if waiting and place not in places:
                    number, piece = waiting.popleft()
                    first = place * self._n_beams
                    places[place] = number, _Beams(first, self._n_beams, self._rules)
                    sounds[first] = self._encode(piece)
            self._pass([beams for _, beams in places.values()], sounds)
            for place, (number, beams) in list(places.items()):
                if beams.done:
                    texts[number] = beams.best()
                    self._decoder.forget(beams.sequences)
                    del places[place]
            progress(len(pieces) - texts.count(None))
        return texts

    def _pass(self, searches, sounds):
        """Runs the newest tokens of all beams through the decoder, and chooses the next."""
        batch = [tokens for beams in searches for tokens in beams.fed()]
        logits = self._decoder.forward(batch, sounds)
        self.n_passes += 1
        self.n_rows += sum(len(tokens) for _, tokens in batch)
        sources, row = {}, 0
        for beams in searches:
            n_rows = len(beams.fed())
            sources.update(beams.advance(logits[row : row + n_rows]))
            row += n_rows
        if any(target != source for target, source in sources.items()):
            self._decoder.reorder(list(sources), list(sources.values()))


class _Beams:
    """The likeliest texts of one piece."""

    def __init__(self, first, count, rules):
        self.sequences = range(first, first + count)
        self._rules = rules
        self._texts = [Text([], 0.0)]  # the text of the sequence in the same place
        self._finished = []

    def fed(self):
        """A list of (sequence, tokens that it does not hold yet)."""
        if not self._texts[0].tokens:
            return [(self.sequences[0], self._rules.prompt)]
        return [(seq, text.tokens[-1:]) for seq, text in zip(self.sequences, self._texts)]

    @property
    def done(self):
        """Whether there are as many finished texts as beams, or the texts are as long as allowed."""
        count, limit = len(self.sequences), self._rules.limit
        return len(self._finished) >= count or len(self._texts[0].tokens) == limit

    def best(self):
        """The tokens of the text that is likeliest for its length."""
        unfinished = self._texts if len(self._finished) < len(self.sequences) else []
        texts = [*self._finished, *unfinished]
        return max(texts, key=lambda text: text.score / (len(text.tokens) + 1)).tokens

    def advance(self, logits):
        """Chooses the next token of every beam. Returns which sequence each becomes a copy of.

        logits  float32 [n_texts, vocabulary], which may be changed
        """
        rules, count = self._rules, len(self.sequences)
        logits[:, rules.suppressed] = -np.inf
        if not self._texts[0].tokens:
            logits[:, rules.suppressed_first] = -np.inf
        scores = _log_softmax(logits)
        scores += np.array([[text.score] for text in self._texts], dtype=np.float32)
        # At most one candidate of each text ends it, so twice as many as there are beams are enough.
        candidates = _largest(scores.ravel(), min(2 * count, scores.size))
        texts, sources = [], {}
        for candidate in candidates:
            if len(texts) == count:
                break  # a text that ends is finished only if it is likelier than those that go on
            parent, token = divmod(int(candidate), scores.shape[1])
            tokens, score = self._texts[parent].tokens, float(scores.flat[candidate])
            if token == rules.end:
                self._finished.append(Text(tokens, score))
            else:
                sources[self.sequences[len(texts)]] = self.sequences[parent]
                texts.append(Text([*tokens, token], score))
        self._texts = texts
        return sources


def _log_softmax(logits):
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _largest(values, count):
    """The indexes of the largest values, the largest first."""
    found = np.argpartition(values, -count)[-count:]
    return found[np.argsort(-values[found], kind="stable")]
