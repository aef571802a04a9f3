"""examples/python/perplexity.py with a model of a few kilobytes, and its messages for bad input."""

import functools
import math
import re

import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import commands  # noqa: E402
import tiny_model  # noqa: E402

perplexity = functools.partial(commands.run, "perplexity.py")
refused = functools.partial(commands.refused, "perplexity.py")
TEXT = "The thing in the ring is 12 é 漢, and the other thing is not. " * 8
WINDOW, TOKENS = 96, 300  # windows of several batches' worth of positions, the last one shorter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.write(path)
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def rows(output):
    """Perplexity and bytes per token by storage type."""
    found = re.findall(r"^(\S+) +(\d+) +([\d.]+) +[-+][\d.]+ % +\d+ +[\d.]+$", output, re.MULTILINE)
    return {name: (float(value), int(size)) for name, size, value in found}


def by_numpy(model, monkeypatch):
    """The perplexity with attention in NumPy, over whole windows at once."""
    monkeypatch.syspath_prepend(str(commands.FOLDER))
    from gguf_file import GgufFile
    from model import Llama
    from recomputed import RecomputedAttention
    from tokenizer import Tokenizer

    file = GgufFile(model)
    llama, tokens = Llama(file), Tokenizer(file).tokens(TEXT)[:TOKENS]
    losses = []
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start : start + WINDOW]
        logits = llama.forward(
            window, np.arange(len(window)), RecomputedAttention("f32"), last=len(window)
        ).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses += [-log_p[i - 1, window[i]] for i in range(len(window) // 2, len(window))]
    return math.exp(np.mean(losses))


def test_it_measures_what_numpy_alone_measures(model, text, monkeypatch):
    options = ["--model", model, "--text", text, "--tokens", TOKENS, "--window", WINDOW]
    types = ["f32", "f16", "f8_e4m3", "int8", "nf4", "int8+rotate", "nf4+rotate"]
    result = perplexity(*options, "--threads", 2, "--types", ",".join(types))
    assert result.returncode == 0, result
    assert re.search(r"300 tokens in 4 windows of up to 96, \d+ of them scored", result.stdout)
    found = rows(result.stdout)
    assert list(found) == types
    wanted = by_numpy(model, monkeypatch)
    assert found["f32"][0] == pytest.approx(wanted, rel=1e-4)
    for name, (value, _) in found.items():
        assert value == pytest.approx(wanted, rel=0.5 if name.startswith("nf4") else 0.05), name
    per_token = 2 * tiny_model.LAYERS * tiny_model.KV_HEADS
    assert found["f16"][1] == per_token * 32
    assert found["int8"][1] == per_token * (16 + 4)
    assert found["nf4"][1] == found["nf4+rotate"][1] == per_token * (8 + 4)


def test_python_brings_the_text(model):
    result = perplexity(
        "--model", model, "--types", "f16", "--tokens", 200, "--window", 100, "--threads", 1
    )
    assert result.returncode == 0, result
    assert "200 tokens in 2 windows" in result.stdout


def test_bad_input_is_one_line(model, text, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("")
    short = ["--model", model, "--window", WINDOW]
    options = [*short, "--text", text]
    assert "f13" in refused(*options, "--types", "f16,f13")
    assert "names no storage type" in refused(*options, "--types", ",")
    assert "multiples of 32" in refused(*options, "--types", "q8_0")
    assert "rotat" in refused(*options, "--types", "f16+rotate")
    assert "context is 512" in refused(*options, "--window", 600)
    assert "nothing to predict" in refused(*short, "--text", few)
    assert "No such file" in refused(*short, "--text", tmp_path / "none.txt")
