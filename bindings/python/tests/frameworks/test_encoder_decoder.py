"""transformers: Whisper and T5 with their keys and values in kvc generate the library's own tokens."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import transformers_cache  # noqa: E402

LAYERS, HEADS, HEAD_DIM, VOCABULARY, TOKENS = 2, 4, 16, 200, 24
WIDTH = HEADS * HEAD_DIM


def whisper(attention):
    """Random weights, and three recordings for it."""
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        max_source_positions=60,
        max_target_positions=64,
        num_mel_bins=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.4,
        attn_implementation=attention,
    )
    model = drawn(transformers.WhisperForConditionalGeneration, config)
    return model, {"input_features": torch.randn(3, 8, 120)}, [60] * 3


def t5(attention):
    """Random weights, and three sentences of different lengths for it."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=HEAD_DIM,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        initializer_factor=3.0,
        attn_implementation=attention,
    )
    model = drawn(transformers.T5ForConditionalGeneration, config)
    # Embeddings are small beside what the layers add, so that no token repeats itself; queries are
    # small, so that the relative positions matter.
    scales = {"shared": 0.05, "q": 0.05, "relative_attention_bias": 4.0}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=scales.get(name.split(".")[-2], 0.5))
    lengths = [9, 30, 17]
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(3, VOCABULARY, (3, 30)) * mask
    return model, {"input_ids": tokens, "attention_mask": mask.long()}, lengths


def drawn(kind, config):
    torch.manual_seed(4)
    return kind(config).eval()


def generated(make, attention, beams):
    model, inputs, lengths = make(attention)
    extra = {}
    if attention == "kvc":
        extra["cache"] = transformers_cache.EncoderDecoder(
            n_layers=LAYERS,
            n_heads=HEADS,
            head_dim=HEAD_DIM,
            lengths=[length for length in lengths for _ in range(beams)],
            beams=beams,
        )
    tokens = transformers.GenerationMixin.generate(
        model,
        **inputs,
        **extra,
        num_beams=beams,
        do_sample=False,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
    )
    return tokens, extra.get("cache")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("make", [whisper, t5])
def test_generates_the_librarys_own_tokens(make, beams):
    expected, _ = generated(make, "eager", beams)
    tokens, cache = generated(make, "kvc", beams)
    assert tokens.tolist() == expected.tolist()
    assert len(expected.unique()) > TOKENS / 2  # a model that repeats itself would prove little
    text, inputs = (child.stats() for child in cache.held.children)
    lengths = make("eager")[2]
    assert inputs.cells_used == sum(lengths)  # once, however many beams read it
    assert text.cells_used > 0
