"""Whisper's decoder with kvc: keys and values of text and sound in one cache, all attention in kvc."""

import dataclasses
import time

import numpy as np

import kvc


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the cache took."""

    seconds: float  # spent in kvc
    text_bytes: int
    sound_bytes: int


class CachedDecoder:
    """The attention of a Whisper decoder, and the time spent in kvc.

    One cache has two layers for each of the model's: layer 2 * i holds the texts, layer 2 * i + 1 the
    sound that each text is about. kvc makes two caches of them, a causal one and one for the inputs
    of encoders, which begin and end passes together. A sequence that becomes a copy of another
    shares its sound and the text before.

    model      whisper.Whisper
    storage    "f16", "q8_0" …: how keys and values are stored
    sequences  texts at a time
    sounds     pieces of sound that these hear at a time
    capacity   tokens of a text, its prompt included
    max_batch  tokens of a pass
    threads    threads of the device
    rotate     whether they are stored rotated
    """

    def __init__(
        self, model, *, storage, sequences, sounds, capacity, max_batch, threads, rotate=False
    ):
        config = model.config
        self._model = model
        self._seconds = 0.0
        heads = {
            "n_kv_heads": config.n_heads,
            "head_dim": config.head_dim,
            "max_q_heads": config.n_heads,
            "rotate": rotate,
        }
        text = kvc.Layer(capacity=capacity, **heads)
        sound = kvc.Layer(kind="encoder", capacity=config.n_sounds, inputs=sounds, **heads)
        with kvc.Device("cpu", n_threads=threads) as device:
            self.cache = kvc.Cache.from_layers(
                [text, sound] * config.n_layers,
                dtype=storage,
                max_sequences=sequences,
                max_batch=max_batch,
                prefault=True,
                device=device,
            )
        self.cache.bind_attention(config.n_heads)

    def forward(self, texts, sounds):
        """Runs tokens at the ends of texts; see PlainDecoder.forward."""
        tokens, positions, sequences, begins, last = [], [], [], [], []
        for sequence, new in texts:
            if sequence in sounds:
                begins.append(len(tokens))  # the token from which on the text hears its sound
            start = self._timed(self.cache.query, sequence).next
            tokens.extend(new)
            positions.extend(range(start, start + len(new)))
            sequences.extend([sequence] * len(new))
            last.append(len(tokens) - 1)
        self._timed(
            self.cache.begin,
            np.array(positions, np.int32),
            np.array(sequences, np.int32),
            carries_input=begins,
        )
        for sequence, layers in sounds.items():
            for layer, (k, v) in enumerate(layers):
                self._timed(self.cache.encoder_put, 2 * layer + 1, sequence, k, v)
        logits = self._model.forward(np.array(tokens), np.array(positions), self, last)
        self._timed(self.cache.commit)
        return logits

    def text(self, layer, q, k, v):
        """Called by Whisper.forward: stores k and v, returns the attention of q over the text."""
        return self._timed(self.cache.put_attention, 2 * layer, k, v, q)

    def sound(self, layer, q):
        """Called by Whisper.forward: returns the attention of q over the sound."""
        return self._timed(self.cache.attention, 2 * layer + 1, q)

    def reorder(self, targets, sources):
        """Makes each target sequence a copy of what its source was. Neither text nor sound moves."""
        self._timed(self.cache.reorder, targets, sources)

    def forget(self, sequences):
        """Empties sequences. A sound is freed with the last text that hears it."""
        for sequence in sequences:
            self._timed(self.cache.remove, sequence)

    def stats(self):
        """What the cache took."""
        text, sound = self.cache.children
        return Stats(self._seconds, text.stats().bytes, sound.stats().bytes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.cache.close()

    def _timed(self, call, *arguments, **named):
        start = time.perf_counter()
        result = call(*arguments, **named)
        self._seconds += time.perf_counter() - start
        return result
