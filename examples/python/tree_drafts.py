#!/usr/bin/env python3
"""Speculative decoding with a tree of drafts: a sequence per branch, one pass to verify them all.

Every branch starts as a copy of the verified text, which copies no K or V. One pass computes all
branches, and the model's choices show how much of each draft was right. commit_prefix keeps the
verified part of the best branch, and reorder makes the other branches copies of it. The text is the
same as with decoding token by token.

Drafts come from the text so far: what followed earlier occurrences of the last token.
"""

import numpy as np

import kvc

N_LAYERS, N_HEADS, N_KV_HEADS, HEAD_DIM, VOCABULARY = 2, 4, 2, 16, 24
WIDTH = N_HEADS * HEAD_DIM
BRANCHES, DEPTH, LENGTH = 4, 5, 160


class Model:
    """A transformer with random weights, to be replaced by yours."""

    def __init__(self, seed=5):
        random = np.random.default_rng(seed)
        heads = (N_HEADS, N_KV_HEADS, N_KV_HEADS)
        self.embedding = random.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
        self.layers = [
            [random.standard_normal((WIDTH, n * HEAD_DIM), dtype=np.float32) / 8 for n in heads]
            for _ in range(N_LAYERS)
        ]

    def next_tokens(self, cache, tokens):
        """The likeliest next token after each token of the open pass."""
        x = self.embedding[tokens]
        for layer, weights in enumerate(self.layers):
            q, k, v = ((x @ each).reshape(len(x), -1, HEAD_DIM) for each in weights)
            x = x + cache.put_attention(layer, k, v, q).reshape(len(x), WIDTH)
        return (x @ self.embedding.T).argmax(axis=1)


def new_cache(sequences):
    """A cache with room for the text and one branch behind it in every sequence."""
    return kvc.Cache(
        n_layers=N_LAYERS,
        n_kv_heads=N_KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=LENGTH + DEPTH + 1,
        max_sequences=sequences,
        max_batch=sequences * (DEPTH + 1),
    )


def drafts(text):
    """[BRANCHES][DEPTH] guesses of what follows the text, from the latest occurrence on."""
    found = []
    for at in range(len(text) - 2, -1, -1):
        guess = text[at + 1 : at + 1 + DEPTH]
        if text[at] == text[-1] and len(guess) == DEPTH and guess not in found:
            found.append(guess)
    return (found + [[0] * DEPTH] * BRANCHES)[:BRANCHES]


def one_by_one(model, prompt):
    """Decoding without drafts."""
    text = list(prompt)
    with new_cache(1) as cache:
        for position in range(LENGTH):
            with cache.forward([position]):
                following = int(model.next_tokens(cache, text[position : position + 1])[0])
            if position + 1 == len(text):
                text.append(following)
    return text[:LENGTH]


def with_drafts(model, prompt):
    """The same text, and how many passes it took after the prompt."""
    text, passes = list(prompt), 0
    branches = np.arange(BRANCHES)
    with new_cache(BRANCHES) as cache:
        for position, token in enumerate(prompt[:-1]):
            with cache.forward([position]):
                model.next_tokens(cache, [token])
        cache.reorder(branches[1:], [0] * (BRANCHES - 1))
        while len(text) < LENGTH:
            # Each branch is the last token of the text, which the cache does not hold, and a draft.
            batch = np.array([[text[-1], *draft] for draft in drafts(text)])
            start = len(text) - 1
            positions = np.tile(np.arange(start, start + DEPTH + 1), BRANCHES)
            cache.begin(positions, branches.repeat(DEPTH + 1))
            chosen = model.next_tokens(cache, batch.ravel()).reshape(batch.shape)
            right = (chosen[:, :-1] == batch[:, 1:]).cumprod(axis=1).sum(axis=1)
            best = int(right.argmax())
            keep = np.where(branches == best, right[best] + 1, 0)
            cache.commit_prefix(branches, keep)
            others = branches[branches != best]
            cache.reorder(others, [best] * len(others))
            text += chosen[best, : right[best] + 1].tolist()
            passes += 1
        shared = cache.stats().cells_shared
        assert shared == cache.stats().cells_used == cache.query(0).count
    return text[:LENGTH], passes


def main():
    """Decodes both ways and compares."""
    model, prompt = Model(), [1, 2, 3, 4]
    expected = one_by_one(model, prompt)
    text, passes = with_drafts(model, prompt)
    assert text == expected, "drafts must not change the text"
    new = LENGTH - len(prompt)
    print(f"{new} tokens in {passes} passes, {new / passes:.1f} per pass, the same as one by one")


if __name__ == "__main__":
    main()
