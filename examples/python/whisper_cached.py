"""Whisper's decoder with kvc: the keys and values of text and sound in caches, all attention in kvc."""

import dataclasses
import time

import numpy as np

import kvc


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the caches took."""

    seconds: float  # spent in kvc
    text_bytes: int
    sound_bytes: int


class CachedDecoder:
    """The attention of a Whisper decoder, and the time spent in kvc.

    Two caches move together: a causal one holds the texts, and an encoder cache the sound that each
    text is about. A sequence that becomes a copy of another shares its sound and the text before.

    model      whisper.Whisper
    storage    "f32", "f16" or "bf16": how keys and values are stored
    sequences  texts at a time
    sounds     pieces of sound that these hear at a time
    capacity   tokens of a text, its prompt included
    max_batch  tokens of a pass
    threads    threads of the device
    """

    def __init__(self, model, *, storage, sequences, sounds, capacity, max_batch, threads):
        config = model.config
        self._model = model
        self._seconds = 0.0
        with kvc.Device("cpu", n_threads=threads) as device:
            shared = {
                "device": device,
                "n_layers": config.n_layers,
                "n_kv_heads": config.n_heads,
                "head_dim": config.head_dim,
                "dtype": storage,
                "max_sequences": sequences,
                "max_batch": max_batch,
                "max_q_heads": config.n_heads,
                "prefault": True,
            }
            self.text_cache = kvc.Cache(capacity=capacity, **shared)
            self.sound_cache = kvc.Cache(
                kind="encoder", capacity=config.n_sounds, inputs=sounds, **shared
            )
        self._caches = (self.text_cache, self.sound_cache)
        for cache in self._caches:
            cache.bind_attention(config.n_heads)

    def forward(self, texts, sounds):
        """Runs tokens at the ends of texts; see PlainDecoder.forward."""
        lengths = [len(tokens) for _, tokens in texts]
        ends = np.cumsum(lengths)
        sequences = np.repeat(np.array([sequence for sequence, _ in texts]), lengths)
        positions = np.concatenate(
            [
                self.text_cache.query(sequence).next + np.arange(len(tokens))
                for sequence, tokens in texts
            ]
        )
        begins = [
            end - length
            for end, length, (sequence, _) in zip(ends, lengths, texts)
            if sequence in sounds
        ]
        self._timed(self.text_cache.begin, positions, sequences)
        self._timed(self.sound_cache.begin, positions, sequences, carries_input=begins)
        for sequence, layers in sounds.items():
            for layer, (k, v) in enumerate(layers):
                self._timed(self.sound_cache.encoder_put, layer, sequence, k, v)
        tokens = np.concatenate([tokens for _, tokens in texts])
        logits = self._model.forward(tokens, positions, self, ends - 1)
        for cache in self._caches:
            self._timed(cache.commit)
        return logits

    def text(self, layer, q, k, v):
        """Called by Whisper.forward: stores k and v, returns the attention of q over the text."""
        return self._timed(self.text_cache.put_attention, layer, k, v, q)

    def sound(self, layer, q):
        """Called by Whisper.forward: returns the attention of q over the sound."""
        return self._timed(self.sound_cache.attention, layer, q)

    def reorder(self, targets, sources):
        """Makes each target sequence a copy of what its source was. Neither text nor sound moves."""
        for cache in self._caches:
            self._timed(cache.reorder, targets, sources)

    def forget(self, sequences):
        """Empties sequences. A sound is freed with the last text that hears it."""
        for cache in self._caches:
            for sequence in sequences:
                self._timed(cache.remove, sequence)

    def stats(self):
        """What the caches took."""
        return Stats(self._seconds, self.text_cache.stats().bytes, self.sound_cache.stats().bytes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for cache in self._caches:
            cache.close()

    def _timed(self, call, *arguments, **named):
        start = time.perf_counter()
        result = call(*arguments, **named)
        self._seconds += time.perf_counter() - start
        return result
