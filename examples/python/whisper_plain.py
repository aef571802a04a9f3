"""What the speech demo verifies kvc with: Whisper's decoder in NumPy, without kvc."""

import numpy as np

from recomputed import stored_as


class PlainDecoder:
    """The attention of a Whisper decoder over arrays that are copied whenever they change.

    model    whisper.Whisper
    storage  "f32", "f16" or "bf16": keys and values are rounded as a cache of that type stores them
    """

    def __init__(self, model, *, storage):
        self._model = model
        self._stored = stored_as(storage)
        self._texts = {}  # sequence: for each layer (k, v)
        self._sounds = {}
        self._batch = []  # the sequences of the open pass, and their tokens' rows

    def forward(self, texts, sounds):
        """Runs tokens at the ends of texts. Returns logits [len(texts), vocabulary].

        texts   list of (sequence, tokens to append to it)
        sounds  {sequence: for each layer (k, v)} for those that begin, as Whisper.encode returns it
        """
        for sequence, layers in sounds.items():
            self._sounds[sequence] = [tuple(map(self._stored, layer)) for layer in layers]
            self._texts[sequence] = [None] * len(layers)
        self._batch, positions, end = [], [], 0
        for sequence, tokens in texts:
            before = self._texts[sequence][0]
            start = 0 if before is None else len(before[0])
            self._batch.append((sequence, slice(end, end + len(tokens))))
            positions.extend(range(start, start + len(tokens)))
            end += len(tokens)
        tokens = np.concatenate([tokens for _, tokens in texts])
        last = [rows.stop - 1 for _, rows in self._batch]
        return self._model.forward(tokens, np.array(positions), self, last)

    def text(self, layer, q, k, v):
        """Called by Whisper.forward: keeps k and v, returns the attention of q over the text."""
        out = np.empty(q.shape, dtype=np.float32)
        k, v = self._stored(k), self._stored(v)
        for sequence, rows in self._batch:
            new, before = (k[rows], v[rows]), self._texts[sequence][layer]
            if before is not None:
                new = tuple(np.concatenate(pair) for pair in zip(before, new))
            self._texts[sequence][layer] = new
            out[rows] = _attention(q[rows], *new, causal=True)
        return out

    def sound(self, layer, q):
        """Called by Whisper.forward: returns the attention of q over the sound."""
        out = np.empty(q.shape, dtype=np.float32)
        for sequence, rows in self._batch:
            out[rows] = _attention(q[rows], *self._sounds[sequence][layer], causal=False)
        return out

    def reorder(self, targets, sources):
        """Makes each target sequence a copy of what its source was."""
        texts = [list(self._texts[source]) for source in sources]
        sounds = [self._sounds[source] for source in sources]
        self._texts.update(zip(targets, texts))
        self._sounds.update(zip(targets, sounds))

    def forget(self, sequences):
        """Empties sequences."""
        for sequence in sequences:
            self._texts.pop(sequence, None)
            self._sounds.pop(sequence, None)


def _attention(q, k, v, *, causal):
    """softmax(q k^T / sqrt(head_dim)) v; with causal the last query is at the last key."""
    scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) * np.float32(q.shape[2] ** -0.5)
    if causal:
        own = np.arange(len(k) - len(q), len(k))
        scores[:, np.arange(len(k)) > own[:, None]] = -np.inf
    scores -= scores.max(axis=2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=2, keepdims=True)
    return np.einsum("hqk,khd->qhd", scores, v, optimize=True)
