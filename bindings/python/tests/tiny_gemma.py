"""Writes a language model of a few kilobytes with random weights, shaped like Gemma 3."""

import gguf
import numpy as np

LAYERS, HEADS, KV_HEADS, HEAD_DIM, EMBEDDING, FEED_FORWARD = 8, 4, 2, 16, 48, 64
WINDOW, CONTEXT = 24, 16384
CONTROL, NORMAL, USER_DEFINED, BYTE = 3, 1, 4, 6
SPACE = "\u2581"


def vocabulary():
    """Pieces, their types and scores: longer pieces come first where they can."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    whole = ["\n", "\n\n", "  "]
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    joined = ["th", "he", "the", SPACE + "the", "in", "ing"]
    single = [SPACE, *map(chr, range(33, 127))]
    pieces = special + whole + in_bytes + joined + single
    kinds = (
        [CONTROL] * len(special)
        + [USER_DEFINED] * len(whole)
        + [BYTE] * len(in_bytes)
        + [NORMAL] * len(joined + single)
    )
    n_unscored = len(special + whole + in_bytes)
    scores = [0.0] * n_unscored + [-float(i) for i in range(len(joined + single))]
    return pieces, kinds, scores


def write(path, architecture="gemma3", tokenizer="llama", scaling=None):
    """Writes a GGUF file: layer 5 of 8 sees everything, the others 24 positions."""
    random = np.random.default_rng(12)
    pieces, kinds, scores = vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(WINDOW)
    if scaling is not None:
        writer.add_rope_scaling_factor(scaling)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)

    def matrix(name, outputs, inputs, kind=gguf.GGMLQuantizationType.F32, scale=3.0):
        values = random.standard_normal((outputs, inputs), dtype=np.float32)
        values *= np.float32(scale / np.sqrt(inputs))
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def gain(name, size):
        writer.add_tensor(f"{name}.weight", 0.5 + random.random(size, dtype=np.float32))

    attended, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    # Small, or each token would be followed by itself: its embedding is its row of the output too.
    matrix("token_embd", len(pieces), EMBEDDING, scale=0.2)
    gain("output_norm", EMBEDDING)
    for layer in range(LAYERS):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            gain(f"blk.{layer}.{name}", EMBEDDING)
        for name in ("attn_q_norm", "attn_k_norm"):
            gain(f"blk.{layer}.{name}", HEAD_DIM)
        matrix(f"blk.{layer}.attn_q", attended, EMBEDDING)
        matrix(f"blk.{layer}.attn_k", kv, EMBEDDING)
        matrix(f"blk.{layer}.attn_v", kv, EMBEDDING)
        matrix(f"blk.{layer}.attn_output", EMBEDDING, attended, gguf.GGMLQuantizationType.Q8_0)
        matrix(f"blk.{layer}.ffn_gate", FEED_FORWARD, EMBEDDING)
        matrix(f"blk.{layer}.ffn_up", FEED_FORWARD, EMBEDDING)
        matrix(f"blk.{layer}.ffn_down", EMBEDDING, FEED_FORWARD, gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
