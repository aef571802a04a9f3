"""Writes a language model of a few kilobytes with random weights, shaped like the demo's."""

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, CONTEXT = 2, 4, 2, 16, 96, 512


def write(path, architecture="llama", tokenizer="smollm"):
    """Writes a GGUF file: two layers, four query and two KV heads of 16, context 512."""
    random = np.random.default_rng(11)
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["t h", "th e"]
    tokens = CONTROL + alphabet + [merge.replace(" ", "") for merge in merges]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HEADS * HEAD_DIM)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def matrix(name, outputs, inputs, kind=gguf.GGMLQuantizationType.F32):
        values = random.standard_normal((outputs, inputs), dtype=np.float32) * 3 / np.sqrt(inputs)
        writer.add_tensor(
            f"{name}.weight", gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind
        )

    def gain(name):
        writer.add_tensor(f"{name}.weight", 1 + random.random(HEADS * HEAD_DIM, dtype=np.float32))

    width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    quantised = gguf.GGMLQuantizationType.Q8_0
    matrix("token_embd", len(tokens), width, quantised)
    gain("output_norm")
    for layer in range(LAYERS):
        gain(f"blk.{layer}.attn_norm")
        matrix(f"blk.{layer}.attn_q", width, width, quantised)
        matrix(f"blk.{layer}.attn_k", kv_width, width)
        matrix(f"blk.{layer}.attn_v", kv_width, width)
        matrix(f"blk.{layer}.attn_output", width, width)
        gain(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_gate", FEED_FORWARD, width, quantised)
        matrix(f"blk.{layer}.ffn_up", FEED_FORWARD, width)
        matrix(f"blk.{layer}.ffn_down", width, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
