"""A cache for models of transformers whose keys and values are in kvc.

What the library calls keys and values, it gets as NaN of the right shape: whoever computes with them
instead of asking kvc is found out.
"""

import torch
from transformers import AttentionInterface, Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import kvc


def attention(module, query, key, value, mask, *, scaling=None, position_bias=None, **others):
    """The attention function "kvc": kvc's where keys are held there, else PyTorch's."""
    if hasattr(key, "held_by"):
        return key.held_by.attend(query, position_bias), None
    if position_bias is not None:
        mask = position_bias if mask is None else position_bias.masked_fill(~mask, -torch.inf)
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **others)


AttentionInterface.register("kvc", attention)
AttentionMaskInterface.register("kvc", sdpa_mask)


class EncoderDecoder(EncoderDecoderCache):
    """Self attention and cross attention of every layer, in one cache of kvc.

    lengths  [n_sequences] of the encoder's output; what is behind them is padding
    beams    sequences in a row that read the same
    """

    def __init__(self, *, n_layers, n_heads, head_dim, lengths, beams=1, capacity=64):
        heads = {"n_kv_heads": n_heads, "head_dim": head_dim}
        own = kvc.Layer(capacity=capacity, **heads)
        cross = kvc.Layer(kind="encoder", capacity=max(lengths), **heads)
        self.held = kvc.Cache.from_layers([own, cross] * n_layers, max_sequences=len(lengths))
        self.held.bind_attention(n_heads, scale=1.0)
        text = Cache([_Text(self.held, 2 * layer) for layer in range(n_layers)])
        sounds = [_Input(self.held, 2 * layer + 1, lengths, beams) for layer in range(n_layers)]
        super().__init__(text, Cache(sounds))

    def reorder_cache(self, beam_idx):
        self.held.reorder(range(len(beam_idx)), beam_idx.tolist())


class _Layer(CacheLayerMixin):
    """What the two kinds of layers have in common."""

    def __init__(self, held, number):
        super().__init__()
        self._held, self._number = held, number
        self._length = 0
        self._new = None  # (k, v) that attend() is to put

    def lazy_initialization(self, key_states, value_states):
        self.is_initialized = True

    def get_seq_length(self):
        return self._length

    def get_max_length(self):
        return -1

    def get_mask_sizes(self, query_length):
        return self._length + query_length, 0

    def _shown(self, k, length):
        """NaN in the shape of all keys and values, which name this layer."""
        shape = (*k.shape[:2], length, k.shape[3])
        self.keys = torch.full((), torch.nan).expand(shape)
        self.values = torch.full((), torch.nan).expand(shape)
        self.keys.held_by = self
        return self.keys, self.values


class _Text(_Layer):
    """Self attention: every pass begins in the first of these layers."""

    def update(self, k, v, *others, **named):
        n_sequences, _, n_tokens, _ = k.shape
        if self._number == 0:
            positions = [self._length + token for token in range(n_tokens)] * n_sequences
            sequences = [sequence for sequence in range(n_sequences) for _ in range(n_tokens)]
            begins = range(0, len(positions), n_tokens) if self._length == 0 else None
            self._held.begin(positions, sequences, carries_input=begins)
        self._new = k, v
        self._length += n_tokens
        return self._shown(k, self._length)

    def attend(self, query, position_bias):
        (k, v), self._new = self._new, None
        bias = None if position_bias is None else self._by_cell(position_bias[0], len(query))
        out = self._held.put_attention(
            self._number, _by_token(k), _by_token(v), _by_token(query), bias=bias
        )
        return out.reshape(len(query), -1, *out.shape[1:])

    def _by_cell(self, by_position, n_sequences):
        """Spreads a bias [n_heads, n_tokens, positions] over the cells of each sequence."""
        n_heads, n_tokens, _ = by_position.shape
        cells = self._held.history(self._number)
        bias = torch.zeros(n_heads, n_sequences * n_tokens, len(cells))
        for sequence in range(n_sequences):
            rows = slice(sequence * n_tokens, (sequence + 1) * n_tokens)
            for run in self._held.runs(self._number, sequence):
                first = run.cell - cells.start
                bias[:, rows, first : first + run.length] = by_position[
                    :, :, run.position : run.position + run.length
                ]
        return bias


class _Input(_Layer):
    """Cross attention: the first pass puts what the encoder read."""

    def __init__(self, held, number, lengths, beams):
        super().__init__(held, number)
        self._lengths, self._beams = lengths, beams

    def update(self, k, v, *others, **named):
        self._new = k, v
        self._length = k.shape[2]
        return self._shown(k, self._length)

    def attend(self, query, position_bias):
        assert position_bias is None or not position_bias.any()
        if self._new is not None:
            (k, v), self._new = self._new, None
            for sequence, length in enumerate(self._lengths):
                if sequence % self._beams == 0:
                    inputs = (each[sequence, :, :length].transpose(0, 1) for each in (k, v))
                    self._held.encoder_put(self._number, sequence, *inputs)
                elif self._number == 1:
                    self._held.encoder_share(sequence, sequence - sequence % self._beams)
        out = self._held.attention(self._number, _by_token(query))
        return out.reshape(len(query), -1, *out.shape[1:])


def _by_token(states):
    """[n_sequences, n_heads, n_tokens, head_dim] as [n_sequences * n_tokens, n_heads, head_dim]."""
    return states.transpose(1, 2).flatten(0, 1)
