"""Hybrid models over one cache: after forks, aborts, cuts, restored checkpoints and ragged batches, what
they compute equals recomputing every sequence from its start."""

import numpy as np
import pytest

import kvc
import reference
from hybrid_layers import WIDTH, Attention, GatedDeltaRule, Mamba2, ShortConvolution

VOCABULARY = 50
MODELS = {
    "gated delta rule": [GatedDeltaRule] * 2,
    "Mamba-2": [Mamba2] * 2,
    "short convolution": [ShortConvolution] * 2,
    "Qwen3-Next": [GatedDeltaRule, GatedDeltaRule, GatedDeltaRule, Attention] * 2,
    "Mamba-2 and attention": [Mamba2, Attention, Mamba2],
    "LFM2": [ShortConvolution, ShortConvolution, Attention, ShortConvolution],
    "every kind": [ShortConvolution, GatedDeltaRule, Attention, Mamba2],
}


class Model:
    """Layers over one cache, and over no cache at all."""

    def __init__(self, kinds, in_place):
        random = np.random.default_rng(3)
        self.layers = [kind(random) for kind in kinds]
        self.tokens = random.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
        self.in_place = in_place
        self.exact = Attention not in kinds  # kvc adds in another order than the textbook

    def cache(self, device, **changes):
        return kvc.Cache.from_layers(
            [each.layer for each in self.layers],
            **{"capacity": 64, "max_sequences": 4, "max_batch": 16, "device": device, **changes},
        )

    def forward(self, cache, tokens):
        """The outputs [n, WIDTH] of the open pass; padding has any."""
        x = self.tokens[tokens]
        for number, layer in enumerate(self.layers):
            if isinstance(layer, Attention):
                q, k, v = layer.project(x)
                x = layer.finish(x, cache.put_attention(number, k, v, q))
            else:
                run = self._in_place if self.in_place else self._by_copy
                x = run(cache, number, layer, x)
        return x

    def _by_copy(self, cache, number, layer, x):
        layout = cache.owner(number)[0].state_layout()
        convs = cache.state_get(number, "conv")
        states = cache.state_get(number, "recurrent") if layer.state_shape else [None] * len(convs)
        y, rows = x.copy(), []
        for each, conv, state in zip(layout, convs, states):
            behind = []
            for token in each.tokens:
                y[token], conv, state = layer.step(x[token], conv, state)
                behind.append(state)
            rows += behind[-each.n_rows :]
        if layer.state_shape:
            cache.state_put(
                number,
                "recurrent",
                np.stack(rows) if rows else np.empty((0, *layer.state_shape), np.float32),
            )
        cache.state_conv(number, np.stack([layer.inputs(token) for token in x]))
        return y

    def _in_place(self, cache, number, layer, x):
        child = cache.owner(number)[0]
        convs = np.asarray(cache.state_view(number, "conv"))
        states = np.asarray(cache.state_view(number, "recurrent")) if layer.state_shape else None
        slots = child.state_slots()
        y = x.copy()
        for each in child.state_layout():
            conv = convs[each.read_slot]
            state = None if states is None else states[each.read_slot]
            own = [None] * (each.n_tokens - each.n_rows) + slots[each.rows].tolist()
            for token, slot in zip(each.tokens, own):
                y[token], conv, state = layer.step(x[token], conv, state)
                if slot is not None:
                    convs[slot] = conv
                    if states is not None:
                        states[slot] = state
        for part in ("conv", "recurrent")[: 1 if states is None else 2]:
            cache.state_done(number, part)
        return y

    def recomputed(self, tokens):
        """The outputs of a whole sequence, from its start and without a cache."""
        x = self.tokens[tokens]
        for layer in self.layers:
            if isinstance(layer, Attention):
                q, k, v = layer.project(x)
                at = np.arange(len(x))
                x = layer.finish(x, reference.attention(q, k, v, at, at)[0].astype(np.float32))
                continue
            conv, state = layer.zeros()
            x = x.copy()
            for i in range(len(x)):
                x[i], conv, state = layer.step(x[i], conv, state)
        return x


class Conversations:
    """Sequences of a cache, and beside them the tokens that each should hold."""

    def __init__(self, model, cache, random):
        self.model, self.cache, self.random = model, cache, random
        self.held = [[] for _ in range(cache.max_sequences)]

    def feed(self, counts, end="commit"):
        """A pass of counts[s] new tokens of sequence s, mixed with each other and with padding.
        Checks every output, then ends the pass."""
        sequences = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        padding = np.full(len(sequences) % 3, kvc.PADDING, np.int32)
        sequences = np.concatenate([sequences, padding])
        self.random.shuffle(sequences)
        tokens = self.random.integers(0, VOCABULARY, len(sequences))
        new = [tokens[sequences == s].tolist() for s in range(len(counts))]
        positions = np.zeros(len(sequences), np.int32)
        for s, each in enumerate(new):
            positions[sequences == s] = np.arange(len(each)) + len(self.held[s])
        self.cache.begin(positions, sequences)
        out = self.model.forward(self.cache, tokens)
        for s, each in enumerate(new):
            if each:
                expected = self.model.recomputed(self.held[s] + each)[len(self.held[s]) :]
                self.compare(out[sequences == s], expected)
        if end == "commit":
            self.cache.commit()
        elif end == "abort":
            self.cache.abort()
            new = [[] for _ in new]
        else:
            self.cache.commit_prefix(range(len(end)), end)
            new = [each[:n] for each, n in zip(new, end)]
        self.held = [a + b for a, b in zip(self.held, new)]

    def compare(self, out, expected):
        if self.model.exact:
            np.testing.assert_array_equal(out, expected)
        else:
            np.testing.assert_allclose(out, expected, atol=2e-5)

    def check(self):
        """Every sequence continues where it should, with one token more."""
        for s, held in enumerate(self.held):
            assert self.cache.query(s).next == len(held)
        self.feed([1] * len(self.held), end="abort")
        self.cache.check()


@pytest.fixture(params=["by copy", "in place"])
def conversations(request, device, random):
    """Conversations with a model of MODELS, which close their cache in the end."""
    made = []

    def start(name, **changes):
        model = Model(MODELS[name], request.param == "in place")
        made.append(model.cache(device, **changes))
        return Conversations(model, made[-1], random)

    yield start
    for cache in made:
        cache.close()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_itself_recomputed(conversations, name):
    talk = conversations(name)
    talk.feed([5, 2, 0, 1])  # a ragged batch
    talk.feed([1, 4, 0, 2])
    talk.feed([2, 9, 1, 0], end="abort")
    talk.feed([1, 1, 1, 1])
    talk.check()

    talk.feed([4, 3, 2, 0], end=[1, 3, 0, 0])  # drafts of which some are kept
    talk.check()

    got = talk.cache.copy_prefix(0, 3, 5)  # a fork, where both children can continue
    assert 0 < got <= 5
    talk.held[3] = talk.held[0][:got]
    talk.feed([1, 0, 0, 2])
    talk.check()

    want = len(talk.held[1]) - 3
    got = talk.cache.resume(1, want)  # a checkpoint is restored
    assert got == max(at for at in (0, *checkpoints(talk.cache, 1)) if at <= want)
    talk.held[1] = talk.held[1][:got]
    talk.feed([0, 3, 0, 1])
    talk.check()

    talk.cache.reorder([2, 1], [1, 0])
    talk.held[2], talk.held[1] = talk.held[1], talk.held[0]
    talk.check()
    talk.cache.remove(0)
    talk.held[0] = []
    talk.check()


def checkpoints(cache, sequence):
    return next(c for c in cache.children if c.kind == "recurrent").checkpoint_list(sequence)


@pytest.mark.parametrize("name", MODELS)
def test_random_lives_of_a_model(conversations, name):
    talk = conversations(name)
    random, cache = talk.random, talk.cache
    for _ in range(40):
        counts = random.integers(0, 5, 4)
        room = [len(held) < 40 for held in talk.held]
        counts = [int(n) if fits else 0 for n, fits in zip(counts, room)]
        dst, src = (int(each) for each in random.choice(4, 2, replace=False))
        choice = random.integers(6)
        if choice < 2 and any(counts):
            talk.feed(counts, end=("commit", "abort")[choice])
        elif choice == 2 and any(counts):
            talk.feed(counts, end=[int(random.integers(0, n + 1)) for n in counts])
        elif choice == 3:
            got = cache.copy_prefix(src, dst, int(random.integers(0, 40)))
            talk.held[dst] = talk.held[src][:got]
        elif choice == 4:
            got = cache.resume(dst, int(random.integers(0, 40)))
            talk.held[dst] = talk.held[dst][:got]
        elif choice == 5 and talk.held[dst]:
            cache.checkpoint_take(dst)
            assert cache.can_resume(dst, len(talk.held[dst])) == len(talk.held[dst])
    talk.check()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("split", [1, 2, 7])
def test_a_prompt_in_pieces_equals_the_whole_prompt(conversations, name, split):
    """prefill(n) = prefill(k) + decode(n - k); feed() compares with the whole."""
    talk = conversations(name)
    talk.feed([split])
    for _ in range(10 - split):
        talk.feed([1])
    talk.check()


def test_the_same_prompt_again_restores_the_checkpoint_before_its_last_token(conversations):
    talk = conversations("Qwen3-Next")
    talk.feed([9])
    talk.cache.checkpoint_take(0)
    talk.feed([1])
    before = talk.cache.digest()
    assert talk.cache.resume(0, 9) == 9
    last = talk.held[0].pop()
    talk.cache.begin([9])
    out = talk.model.forward(talk.cache, np.array([last]))
    talk.compare(out, talk.model.recomputed([*talk.held[0], last])[9:])
    talk.cache.commit()
    assert len(before) == len(talk.cache.digest())
