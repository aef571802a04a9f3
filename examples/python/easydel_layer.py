#!/usr/bin/env python3
"""A small model of attention layers in EasyDeL's nouns: TransformerCache, LightningCache and
AttentionRegistry. Who knows EasyDeL's documents knows these names; only the import is another.

Two layers of softmax attention stand behind one of linear attention. A batch of three prompts of
different lengths, padded on the left, is read at once; then each row is continued token by token. Each
row's results are the same as those of its prompt alone.
"""

import numpy as np

import kvc.easydel as ed

LENGTH, HEADS, KV_HEADS, HEAD_DIM, PAD = 64, 4, 2, 16, 0
WIDTH = HEADS * HEAD_DIM
LAYERS = 2  # of softmax attention


class Attention:
    """Softmax attention of one layer."""

    def __init__(self, weights, metadata):
        self.weights = weights
        self.prefill = ed.AttentionRegistry.create("flash_attn2", metadata)
        self.decode = ed.AttentionRegistry.create("autoregressive_decodeattn", metadata)

    def __call__(self, x, cache_view, attention_mask, causal_mask):
        query, key, value = (
            (x @ each).reshape(*x.shape[:2], -1, HEAD_DIM) for each in self.weights
        )
        key, value, mask = cache_view.concatenate_to_cache(
            query=query,
            key=key,
            value=value,
            quantizer=None,
            cache_metadata=None,
            attention_mask=attention_mask,
            partition_manager=None,
            causal_mask=causal_mask,
        )
        mode = self.prefill.get_mode(query)
        attention = self.decode if mode == "__autoregressive__" else self.prefill
        output = attention(
            q=query, k=key, v=value, mask=mask, causal=True, cache_view=cache_view
        )
        return x + output.attention_outputs.reshape(x.shape)


class LightningAttention:
    """Linear attention of one layer."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x, cache_view, token_mask):
        query, key, value = ((x @ each).reshape(*x.shape[:2], HEADS, HEAD_DIM) for each in self.weights)
        outputs, _, _ = cache_view.concatenate_to_cache(query, key, value, token_mask)
        return x + outputs.reshape(x.shape)


class Model:
    """The layers, and an embedding of tokens."""

    def __init__(self, seed=5):
        random = np.random.default_rng(seed)

        def matrices(*heads):
            return [
                random.standard_normal((WIDTH, n * HEAD_DIM), dtype=np.float32) / 8 for n in heads
            ]

        metadata = ed.AttentionMetadata(softmax_scale=HEAD_DIM**-0.5)
        self.embedding = random.standard_normal((100, WIDTH), dtype=np.float32)
        self.lightning = LightningAttention(matrices(HEADS, HEADS, HEADS))
        self.layers = [
            Attention(matrices(HEADS, KV_HEADS, KV_HEADS), metadata) for _ in range(LAYERS)
        ]
        self.causal_mask = np.tril(np.ones((1, 1, LENGTH, LENGTH), bool))

    def caches(self, batch_size, starts):
        """Empty caches of a batch."""
        metadata = ed.TransformerCacheMetaData.create(
            batch_size=batch_size,
            sequence_length=LENGTH,
            num_hidden_layers=LAYERS,
            pad_token_id=PAD,
            num_heads=KV_HEADS,
            head_dim=HEAD_DIM,
        )
        transformer = ed.TransformerCache.init_cache(
            mesh=None, metadata=metadata, partition_manager=None, dtype=np.float32, starts=starts
        )
        lightning = ed.LightningCache.init_cache(
            num_hidden_layers=1,
            metadata=ed.LightningCacheMetaData.create(
                partition_axis=None, batch_size=batch_size, num_heads=HEADS, head_dim=HEAD_DIM
            ),
        )
        return transformer, lightning

    def __call__(self, tokens, caches, attention_mask):
        """Hidden states of new tokens [batch, length], which the caches then hold."""
        transformer, lightning = caches
        index = int(transformer.views[0].index[0])
        new = attention_mask[:, index : index + tokens.shape[1]]
        x = self.lightning(self.embedding[tokens], lightning.views[0], new)
        for layer, view in zip(self.layers, transformer.views):
            x = layer(x, view, attention_mask, self.causal_mask)
        return x


def run(model, prompts, continuation):
    """Hidden states of the last prompt token and of each token that follows, for every row."""
    longest = max(map(len, prompts))
    tokens = np.array([[PAD] * (longest - len(each)) + each for each in prompts], np.int32)
    metadata = ed.TransformerCacheMetaData.create(
        len(prompts), LENGTH, LAYERS, PAD, KV_HEADS, HEAD_DIM
    )
    starts, _ = metadata.padding(tokens)
    attention_mask = np.arange(LENGTH) >= starts[:, None]
    caches = model.caches(len(prompts), starts)
    states = [model(tokens, caches, attention_mask)[:, -1]]
    for token in continuation:
        states.append(model(np.full((len(prompts), 1), token), caches, attention_mask)[:, 0])
    return np.stack(states, axis=1), caches


def main():
    """Reads a batch of prompts and each prompt alone, and compares the results."""
    random = np.random.default_rng(1)
    prompts = [random.integers(1, 100, n).tolist() for n in (20, 7, 13)]
    continuation = random.integers(1, 100, 10).tolist()
    model = Model()
    together, (transformer, lightning) = run(model, prompts, continuation)
    for row, prompt in enumerate(prompts):
        alone, _ = run(model, [prompt], continuation)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4, atol=1e-4)
    print(
        f"{len(prompts)} rows with {transformer.views[0].starts.tolist()} tokens of padding continue at "
        f"{transformer.views[0].index.tolist()}; {lightning.views[0]}; the same as each prompt alone"
    )


if __name__ == "__main__":
    main()
