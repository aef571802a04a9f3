"""examples/python/gemma.py computes what transformers' Gemma 3 computes."""

import pathlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

TESTS = pathlib.Path(__file__).resolve().parents[1]
DEMO = TESTS.parents[2] / "examples" / "python"
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@pytest.fixture
def file(monkeypatch, tmp_path):
    """The tiny model of the demo's tests."""
    monkeypatch.setattr(sys, "path", [str(DEMO), str(TESTS), *sys.path])
    import gguf_file
    import tiny_gemma

    tiny_gemma.write(tmp_path / "tiny.gguf")
    return gguf_file.GgufFile(tmp_path / "tiny.gguf")


def of_transformers(file, config, windows):
    """The same model in transformers, which keeps the gains of norms less 1."""
    base = file.field("gemma3.rope.freq_base")
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    embeddings = file.tensor("token_embd.weight")
    model = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            vocab_size=len(embeddings),
            hidden_size=config.embedding,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            query_pre_attn_scalar=config.head_dim,
            sliding_window=min(window for window in windows if window),
            layer_types=kinds,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": base},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        )
    )
    weights = {"embed_tokens": embeddings, "norm": file.tensor("output_norm.weight") - 1}
    for layer in range(config.n_layers):
        for name, theirs in NAMES.items():
            tensor = file.tensor(f"blk.{layer}.{name}.weight")
            weights[f"layers.{layer}.{theirs}"] = tensor - 1 if tensor.ndim == 1 else tensor
    state = {f"model.{name}.weight": torch.tensor(each) for name, each in weights.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def test_gemma_of_the_demo_is_gemma_of_transformers(file):
    from gemma import Gemma
    from layer_windows import RecomputedLayers

    model = Gemma(file)
    theirs = of_transformers(file, model.config, model.windows)
    tokens = np.random.default_rng(4).integers(0, theirs.config.vocab_size, 90)
    assert len(tokens) > 3 * theirs.config.sliding_window
    plain = RecomputedLayers("f32", model.windows)
    logits = model.forward(tokens, np.arange(len(tokens)), plain, last=len(tokens))
    expected = theirs(input_ids=torch.tensor(tokens)[None], use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
