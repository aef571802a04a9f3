"""Models of transformers with what they keep in kvc: they generate what they generate without."""

import pytest

import kvc

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hybrid_cache import CacheInKvc  # noqa: E402

WINDOW, PROMPT, NEW = 8, 21, 16
COMMON = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.4,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
    tie_word_embeddings=False,
)
FULL = kvc.Layer(n_kv_heads=2, head_dim=8)


def gemma3():
    config = transformers.Gemma3TextConfig(
        **{**COMMON, "num_hidden_layers": 4},
        head_dim=8,
        query_pre_attn_scalar=11,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    window = kvc.Layer(n_kv_heads=2, head_dim=8, sliding_window=WINDOW, memory=WINDOW + NEW)
    return transformers.Gemma3ForCausalLM(config), [window, FULL] * 2


def mamba2():
    config = transformers.Mamba2Config(
        **{**COMMON, "num_hidden_layers": 3},
        num_heads=8,
        head_dim=8,
        state_size=12,
        n_groups=2,
        chunk_size=4,
    )
    state = kvc.Layer(
        kind="recurrent", state_shape=(8, 8, 12), conv_channels=64 + 2 * 2 * 12, conv_dim=3
    )
    return transformers.Mamba2ForCausalLM(config), [state] * 3


def qwen3_next():
    config = transformers.Qwen3NextConfig(
        **COMMON,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    )
    delta = kvc.Layer(
        kind="recurrent", state_shape=(4, 8, 12), conv_channels=2 * 2 * 8 + 4 * 12, conv_dim=3
    )
    return transformers.Qwen3NextForCausalLM(config), [delta, delta, delta, FULL]


def lfm2():
    config = transformers.Lfm2Config(
        **COMMON,
        conv_L_cache=3,
        layer_types=["conv", "full_attention", "conv", "conv"],
    )
    conv = kvc.Layer(kind="recurrent", conv_channels=32, conv_dim=2)
    return transformers.Lfm2ForCausalLM(config), [conv, FULL, conv, conv]


def jamba():
    config = transformers.JambaConfig(
        **COMMON,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=12,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    state = kvc.Layer(kind="recurrent", state_shape=(64, 12), conv_channels=64, conv_dim=3)
    return transformers.JambaForCausalLM(config), [state, FULL] * 2


def granite_hybrid():
    config = transformers.GraniteMoeHybridConfig(
        **COMMON,
        layer_types=["mamba", "attention", "mamba", "mamba"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=12,
        mamba_n_groups=2,
        mamba_chunk_size=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=16,
    )
    state = kvc.Layer(
        kind="recurrent", state_shape=(8, 8, 12), conv_channels=64 + 2 * 2 * 12, conv_dim=3
    )
    return transformers.GraniteMoeHybridForCausalLM(config), [state, FULL, state, state]


MODELS = [gemma3, mamba2, qwen3_next, lfm2, jamba, granite_hybrid]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def loaded(request):
    """A model with random weights, its layers for kvc, two prompts, and what it generates."""
    torch.manual_seed(5)
    model, layers = request.param()
    model.eval()
    prompts = torch.randint(0, COMMON["vocab_size"], (2, PROMPT))
    tokens = model.generate(prompts, max_new_tokens=NEW, do_sample=False)[:, PROMPT:]
    assert len(set(tokens.flatten().tolist())) > 5, "a model that repeats itself proves nothing"
    model.set_attn_implementation("kvc_without_mask")
    return model, layers, prompts, tokens


def new_cache(model, layers):
    heads = [module for module in model.modules() if hasattr(module, "scaling")]
    scale = float(heads[0].scaling) if heads else 1.0
    return CacheInKvc(layers, n_heads=4, scale=scale, sequences=4)


@torch.no_grad()
def continued(cache, model, tokens, sequences):
    """The tokens that follow the last one of each sequence."""
    chosen = []
    for _ in range(NEW):
        tokens = cache.forward(model, tokens, sequences)[:, -1].argmax(-1, keepdim=True)
        chosen.append(tokens)
    return torch.cat(chosen, dim=1)


def test_a_model_generates_its_own_tokens(loaded):
    model, layers, prompts, expected = loaded
    cache = new_cache(model, layers)
    assert torch.equal(continued(cache, model, prompts, [0, 1]), expected)
    cache.kvc.check()


@torch.no_grad()
def test_a_model_generates_its_own_tokens_again_after_going_back_and_in_a_fork(loaded):
    model, layers, prompts, expected = loaded
    cache = new_cache(model, layers)
    head, last = prompts[:, :-1], prompts[:, -1:]
    cache.forward(model, head, [0, 1])
    if any(layer.kind == "recurrent" for layer in layers):
        for sequence in (0, 1):
            cache.kvc.checkpoint_take(sequence)
    assert torch.equal(continued(cache, model, last, [0, 1]), expected)
    # What was generated is dropped, in the sequences themselves and in copies of them.
    for source, fork in ((0, 3), (1, 2)):
        assert cache.kvc.copy_prefix(source, fork, PROMPT - 1) == PROMPT - 1
        assert cache.kvc.resume(source, PROMPT - 1) == PROMPT - 1
    assert torch.equal(continued(cache, model, last, [3, 2]), expected)
    assert torch.equal(continued(cache, model, last, [0, 1]), expected)
    cache.kvc.check()
