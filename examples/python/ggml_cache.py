"""The same measurement on the caches of llama.cpp, through llama-cpp-python."""

import math
import os
import time

from demo import DemoError, Progress

# Numbers of ggml's types. It stores each vector in blocks of its own: f16 2 bytes a number, q8_0 34 bytes and q4_0 18
# bytes per 32.
GGML_TYPES = {"f32": (0, 4.0), "f16": (1, 2.0), "q4_0": (2, 18 / 32), "q8_0": (8, 34 / 32)}


def measured_by_ggml(path, windows, types, threads):
    """Yields a Row for each type that ggml has."""
    try:
        import llama_cpp
    except ImportError as error:
        raise DemoError(
            "--ggml needs llama-cpp-python: pip install -r tools/requirements-ggml.txt, "
            "which compiles it for minutes"
        ) from error
    for dtype, rotate in types:
        if dtype in GGML_TYPES:
            yield _measure(llama_cpp, path, windows, dtype, rotate, threads)


def _measure(llama_cpp, path, windows, dtype, rotate, threads):
    from perplexity import DECODED, ROTATED, Row, surprise

    name = dtype + (ROTATED if rotate else "")
    number, bytes_per_value = GGML_TYPES[dtype]
    os.environ["LLAMA_ATTN_ROT_DISABLE"] = "0" if rotate else "1"  # read when a cache is made
    longest = max(map(len, windows))
    model = llama_cpp.Llama(
        str(path),
        n_ctx=longest,
        n_batch=min(512, longest),
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        flash_attn=True,  # which a quantised V needs
        type_k=number,
        type_v=number,
        verbose=False,
    )
    progress = Progress(f"ggml {name}")
    loss = n_scored = 0
    seconds = 0.0
    for index, window in enumerate(windows):
        progress(f"window {index + 1} of {len(windows)}")
        model.reset()
        start = time.perf_counter()
        model.eval(window)
        half = max(1, len(window) // 2)
        loss += surprise(model.scores[half - 1 : len(window) - 1], window[half:])
        seconds += time.perf_counter() - start
        n_scored += len(window) - half
    n_again = min(DECODED, len(windows[-1]) - 1)
    model.n_tokens = len(windows[-1]) - n_again
    start = time.perf_counter()
    for token in windows[-1][-n_again:]:
        model.eval([token])
    decode_seconds = time.perf_counter() - start
    metadata = model.metadata
    architecture = metadata["general.architecture"]
    heads = int(metadata[f"{architecture}.attention.head_count_kv"])
    width = int(metadata[f"{architecture}.embedding_length"]) // int(
        metadata[f"{architecture}.attention.head_count"]
    )
    layers = int(metadata[f"{architecture}.block_count"])
    progress.done(f"ggml {name}: done in {seconds + decode_seconds:.0f} s")
    return Row(
        name,
        bytes_per_token=round(2 * layers * heads * width * bytes_per_value),
        perplexity=math.exp(loss / n_scored),
        read_per_second=sum(map(len, windows)) / seconds,
        decoded_per_second=n_again / decode_seconds,
    )
