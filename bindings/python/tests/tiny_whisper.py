"""Writes a speech model of some kilobytes with random weights, shaped like the speech demo's."""

import json
import struct

import numpy as np
import tokenizers
from tokenizers import decoders, models
from tokenizers.pre_tokenizers import ByteLevel

LAYERS, HEADS, HEAD_DIM, BANDS, SOUNDS, POSITIONS = 2, 2, 8, 80, 1500, 64
WIDTH = HEADS * HEAD_DIM
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
TIMES = 4  # tokens behind the special ones
SUPPRESSED, SUPPRESSED_FIRST = [3, 4], [5]


def write(folder, *, seed=7, vocabulary=None, model="WhisperSpec", version=6):
    """Writes model.bin, config.json and tokenizer.json: two layers, two heads of 8."""
    alphabet = sorted(ByteLevel.alphabet())
    words = {token: number for number, token in enumerate([*alphabet, *SPECIAL])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"suppress_ids": SUPPRESSED, "suppress_ids_begin": SUPPRESSED_FIRST}
    (folder / "config.json").write_text(json.dumps(config))
    variables = _variables(np.random.default_rng(seed), vocabulary or len(words) + TIMES)
    content = [struct.pack("<I", version), _name(model), struct.pack("<II", 3, len(variables))]
    for name, values in variables.items():
        kind = {"float16": 4, "float32": 0, "int16": 2}[values.dtype.name]
        content += [_name(name), struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)]
        content += [struct.pack("<BI", kind, values.nbytes), values.tobytes()]
    (folder / "model.bin").write_bytes(b"".join(content) + struct.pack("<I", 0))


def _name(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _variables(random, vocabulary):
    def draw(*shape, scale=1.0):
        return (random.standard_normal(shape) * scale).astype(np.float16)

    found = {}

    def linear(name, outputs, *inputs):
        found[f"{name}/weight"] = draw(outputs, *inputs, scale=4 / np.sqrt(np.prod(inputs)))
        found[f"{name}/bias"] = draw(outputs, scale=0.1)

    def norm(name):
        found[f"{name}/gamma"] = 1 + draw(WIDTH, scale=0.2)
        found[f"{name}/beta"] = draw(WIDTH, scale=0.1)

    def layer(name, cross):
        norm(f"{name}/self_attention/layer_norm")
        linear(f"{name}/self_attention/linear_0", 3 * WIDTH, WIDTH)
        linear(f"{name}/self_attention/linear_1", WIDTH, WIDTH)
        if cross:
            norm(f"{name}/attention/layer_norm")
            for number, outputs in enumerate((WIDTH, 2 * WIDTH, WIDTH)):
                linear(f"{name}/attention/linear_{number}", outputs, WIDTH)
        norm(f"{name}/ffn/layer_norm")
        linear(f"{name}/ffn/linear_0", 4 * WIDTH, WIDTH)
        linear(f"{name}/ffn/linear_1", WIDTH, 4 * WIDTH)

    linear("encoder/conv1", WIDTH, BANDS, 3)
    linear("encoder/conv2", WIDTH, WIDTH, 3)
    found["encoder/position_encodings/encodings"] = draw(SOUNDS, WIDTH)
    found["decoder/position_encodings/encodings"] = draw(POSITIONS, WIDTH, scale=3)
    found["decoder/embeddings/weight"] = draw(vocabulary, WIDTH)
    for side, cross in (("encoder", False), ("decoder", True)):
        for number in range(LAYERS):
            layer(f"{side}/layer_{number}", cross)
        norm(f"{side}/layer_norm")
        found[f"{side}/num_heads"] = np.array(HEADS, dtype=np.int16)
    return found
