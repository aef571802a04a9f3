"""The cache that a model of `transformers` is given, with all it keeps in kvc."""

import contextlib

import torch
import transformers

import kvc

_running = None  # the cache of the model that runs: attention functions are given none


class CacheInKvc(transformers.Cache):
    """Keys, values and states of a model's layers, in one kvc cache made from their description.

    layers     a kvc.Layer for each layer of the model
    n_heads    query heads
    scale      of the attention's logits
    sequences  how many there may be
    """

    def __init__(self, layers, *, n_heads, scale, sequences):
        super().__init__(layers=[])
        self.kvc = kvc.Cache.from_layers(
            layers, capacity=64, max_sequences=sequences, max_batch=64, dtype="f32"
        )
        for child in self.kvc.children:
            if child.kind == "causal":
                child.bind_attention(n_heads, scale=scale)
        self._recurrent = [layer.state_shape is not None for layer in layers]
        self._states = {}  # of the pass: recurrent states by layer
        self._start = 0  # of the pass: its first position

    def forward(self, model, tokens, sequences):
        """The logits after each token [n_sequences, n, vocabulary] of a pass of equally long parts.

        tokens  [n_sequences, n] that follow what the sequences hold, as many in each
        """
        global _running
        places = {self.kvc.query(sequence).next for sequence in sequences}
        assert len(places) == 1, "transformers gives all sequences the same positions"
        self._start = places.pop()
        count = tokens.shape[1]
        positions = torch.arange(self._start, self._start + count).repeat(len(sequences))
        owners = torch.tensor(sequences).repeat_interleave(count)
        with self.kvc.forward(positions.int().numpy(), owners.int().numpy()):
            _running, self._states = self, {}
            with contextlib.ExitStack() as stack:
                stack.callback(_stopped)
                logits = model(input_ids=tokens, cache=self, use_cache=True).logits
            for layer, states in self._states.items():
                self.kvc.state_put(layer, "recurrent", states.contiguous())
        return logits

    # What the models of transformers call.

    def get_seq_length(self, layer_idx=0):
        return self._start

    def has_previous_state(self, layer_idx=None, state_idx=None):
        return self._start > 0

    def is_recording_past(self, layer_idx):
        return True  # so that update_conv_state is called for single tokens too

    def update(self, key_states, value_states, layer_idx, *arguments, **options):
        return key_states, value_states  # attention() stores them

    def get_conv_state(self, layer_idx, state_idx=0):
        if self._start == 0:
            return None
        return torch.from_numpy(self.kvc.state_get(layer_idx, "conv"))

    def update_conv_state(self, conv_states, layer_idx, state_idx=0, **options):
        before = torch.from_numpy(self.kvc.state_get(layer_idx, "conv"))
        channels = conv_states.shape[1]
        self.kvc.state_conv(layer_idx, conv_states.transpose(1, 2).reshape(-1, channels))
        return torch.cat([before, conv_states], dim=-1)

    def get_recurrent_state(self, layer_idx, state_idx=0):
        if self._start == 0 or not self._recurrent[layer_idx]:
            return None
        # Some models change it in place, others call update_recurrent_state.
        states = torch.from_numpy(self.kvc.state_get(layer_idx, "recurrent"))
        self._states[layer_idx] = states
        return states

    def update_recurrent_state(self, recurrent_states, layer_idx, state_idx=0, **options):
        self._states[layer_idx] = recurrent_states
        return recurrent_states


def _stopped():
    global _running
    _running = None


def attention(module, query, key, value, attention_mask, **options):
    """An attention function of transformers: stores keys and values in kvc, which computes it."""
    batch, n_heads, count, _ = query.shape
    rows = [each.transpose(1, 2).reshape(batch * count, each.shape[1], -1) for each in (key, value)]
    q = query.transpose(1, 2).reshape(batch * count, n_heads, -1)
    out = torch.empty(batch * count, n_heads, value.shape[-1])
    _running.kvc.put_attention(module.layer_idx, *rows, q, out)
    return out.view(batch, count, n_heads, -1), None


# A name without a mask function: kvc decides what a token sees.
transformers.AttentionInterface.register("kvc_without_mask", attention)
