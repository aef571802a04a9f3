"""examples/python/generate.py with a model of a few kilobytes, and its messages for bad input."""

import functools
import os
import re

import pytest

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import commands  # noqa: E402
import tiny_model  # noqa: E402
from kvc._arrays import STORED  # noqa: E402

generate = functools.partial(commands.run, "generate.py")
refused = functools.partial(commands.refused, "generate.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.write(path)
    return path


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("window", [None, 9])
def test_it_generates_what_numpy_alone_generates(model, storage, window):
    options = [
        "--model",
        model,
        "--storage",
        storage,
        "--tokens",
        40,
        "--threads",
        2,
        "--keep-going",
    ]
    result = generate(*options, *(["--window", window] if window else []), "--verify")
    assert result.returncode == 0, result
    assert result.stdout.count("the same 40 tokens as NumPy alone") == 2
    assert re.search(r"39 tokens in .* tokens/s .* % of the time inside kvc", result.stdout)
    assert re.search(r"cache +[\d.]+ MB, \d+ of \d+ cells used, \d+ shared", result.stdout)
    assert re.search(r"copy_prefix of \d\d+ tokens saved", result.stdout)


def test_other_options(model):
    options = [
        "--model",
        model,
        "--tokens",
        20,
        "--prompt",
        "the 12 é 漢",
        "--follow-up",
        "",
        "--threads",
        1,
    ]
    once, again, other = (
        generate(*options, "--temperature", 5, "--seed", seed).stdout.split("\n\n")[0]
        for seed in (1, 1, 2)
    )
    assert once == again != other
    assert "user: the 12 é 漢" in once


def test_a_long_prompt_goes_in_batches(model):
    result = generate(
        "--model", model, "--prompt", "a " * 120, "--tokens", 8, "--verify", "--keep-going"
    )
    assert result.returncode == 0, result


def test_a_conversation_that_fills_the_context_ends(model):
    room = tiny_model.CONTEXT - len("user\nassistant\nab\n") - 3
    result = generate("--model", model, "--prompt", "ab", "--tokens", room, "--keep-going")
    assert result.returncode == 0 and "left out" in result.stdout, result


def test_missing_and_damaged_models(model, tmp_path):
    assert "there is no model file" in refused("--model", tmp_path / "nothing.gguf")
    assert "there is no model file" in refused("--model", tmp_path)
    content = model.read_bytes()
    for name, part in (
        ("empty", b""),
        ("text", b"hello, world\n" * 100),
        ("head", content[:100]),
        ("metadata", content[:3000]),
        ("half", content[: len(content) // 2]),
        ("nearly", content[:-4000]),
    ):
        damaged = tmp_path / name
        damaged.write_bytes(part)
        message = refused("--model", damaged)
        assert "not a whole GGUF file" in message and "leave --model out" in message


def test_models_of_other_kinds(tmp_path):
    tiny_model.write(tmp_path / "gpt2.gguf", architecture="gpt2")
    assert "architecture gpt2" in refused("--model", tmp_path / "gpt2.gguf")
    tiny_model.write(tmp_path / "bert.gguf", tokenizer="bert")
    assert "gpt2/bert" in refused("--model", tmp_path / "bert.gguf")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tokens", "0"],
        ["--tokens", "many"],
        ["--storage", "f8"],
        ["--window", "1"],
        ["--threads", "-1"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--colour"],
        ["--verify", "--temperature", "1"],
        ["stray"],
    ],
    ids=" ".join,
)
def test_unknown_option_values(arguments):
    refused(*arguments, code=2)


def test_every_storage_type_is_offered():
    result = generate("--help")
    assert "{" + ",".join(STORED) + "}" in result.stdout


@pytest.mark.parametrize("storage", ["f8_e4m3", "f8_e5m2", "int8 --rotate", "nf4 --rotate", "nf4"])
def test_keys_and_values_may_be_codes(model, storage):
    options = ["--model", model, "--storage", *storage.split(), "--tokens", 20, "--keep-going"]
    result = generate(*options, "--threads", 2)
    assert result.returncode == 0, result
    assert len(re.findall(r"19 tokens in .* tokens/s", result.stdout)) == 2
    message = refused(*options, "--verify", code=2)
    assert f"--verify goes with f32, f16 and bf16. With {storage.split()[0]}, a last bit" in message


def test_a_storage_type_that_the_model_cannot_have(model):
    message = refused("--model", model, "--storage", "q8_0")
    assert "dtype_k is q8_0, which takes multiples of 32, and head_dim is 16: int8" in message
    assert "which gains nothing" in refused("--model", model, "--storage", "f16", "--rotate")


def test_more_than_the_context_holds(model):
    assert re.search(r"use --tokens \d+ or fewer", refused("--model", model, "--tokens", 1000))
    assert "shorter --prompt" in refused("--model", model, "--prompt", "a" * 1000)


def test_no_network(tmp_path):
    message = refused(
        KVC_CACHE_DIR=str(tmp_path),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_NO_INDEX="",
        PIP_EXTRA_INDEX_URL="",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert "check the network" in message and "--model PATH" in message
    assert not list((tmp_path / "models").iterdir())  # nothing incomplete is left


def test_a_cache_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert "KVC_CACHE_DIR" in refused(KVC_CACHE_DIR=str(tmp_path / "file"))


@pytest.mark.parametrize(
    "message",
    [
        "Could not install packages due to an OSError: [Errno 28] No space left on device",
        "Could not install packages due to an OSError: [Errno 122] Disk quota exceeded",
    ],
)
def test_pip_finds_a_full_disk(tmp_path, message):
    fake = tmp_path / "packages" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(f"import sys\nsys.exit('ERROR: {message}')\n")
    message = refused(
        KVC_CACHE_DIR=str(tmp_path), PYTHONPATH=os.pathsep.join([str(fake.parent), commands.PACKAGES])
    )
    assert "is full" in message and "KVC_CACHE_DIR" in message
    assert not list((tmp_path / "models").iterdir())
