"""examples/python/windows.py with a model of a few kilobytes, and its messages for bad input."""

import functools
import re
import types

import pytest

pytest.importorskip("gguf")

import commands  # noqa: E402
import tiny_gemma  # noqa: E402
import tiny_model  # noqa: E402

windows = functools.partial(commands.run, "windows.py")
refused = functools.partial(commands.refused, "windows.py")
QUICK = ["--ask", "Why?", "--ask", "the 12 é 漢", "--edit", "Who?", "--tokens", 40, "--threads", 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_gemma.write(path)
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The thing in the ring. " * 8)
    return path


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16"])
def test_it_answers_what_numpy_alone_answers(model, text, storage):
    result = windows("--model", model, "--text", text, *QUICK, "--storage", storage, "--verify")
    assert result.returncode == 0, result
    compared = re.findall(r"the same (\d+) tokens as NumPy alone", result.stdout)
    assert len(compared) == 3 and max(map(int, compared)) > tiny_gemma.WINDOW


@pytest.mark.parametrize("storage", ["f8_e5m2", "int8 --rotate"])
def test_keys_and_values_may_be_codes(model, text, storage):
    options = ["--model", model, "--text", text, *QUICK, "--storage", *storage.split()]
    result = windows(*options)
    assert result.returncode == 0, result
    assert "--verify goes with f32, f16 and bf16" in refused(*options, "--verify", code=2)


def test_it_reports_memory_and_what_an_edit_keeps(model, text):
    result = windows("--model", model, "--text", text, *QUICK)
    assert result.returncode == 0, result
    assert (
        f"7 of 8 layers see {tiny_gemma.WINDOW} positions, 1 of 8 layers see all" in result.stdout
    )
    saved = re.search(r"full cache takes .* \(([\d.]+) times as much\)", result.stdout)
    assert float(saved[1]) > 1
    kept, before = re.search(r"resume keeps (\d+) of (\d+) tokens", result.stdout).groups()
    assert 0 < int(kept) < int(before)
    assert f"{kept} tokens that were kept saved" in result.stdout
    assert re.search(
        r"If the text changed at token [1-9]\d*, 0 tokens could be kept", result.stdout
    )


def test_a_window_that_is_too_large_by_one_is_found(model, text, monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(commands.FOLDER))
    import layer_windows
    import windows as command

    new_cache = layer_windows.new_cache

    def wider(model, **options):
        windows = [window and window + 1 for window in model.windows]
        return new_cache(types.SimpleNamespace(config=model.config, windows=windows), **options)

    monkeypatch.setattr(layer_windows, "new_cache", wider)
    arguments = ["--model", model, "--text", text, *QUICK, "--verify"]
    assert command.main(list(map(str, arguments))) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_an_edit_further_back_than_what_is_kept_is_computed_again(model, text, monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(commands.FOLDER))
    import layer_windows
    import windows as command

    new_cache = layer_windows.new_cache
    monkeypatch.setattr(
        layer_windows,
        "new_cache",
        lambda model, **options: new_cache(model, **{**options, "step_back": 1}),
    )
    arguments = ["--model", model, "--text", text, *QUICK, "--verify"]
    assert command.main(list(map(str, arguments))) == 0
    printed = capsys.readouterr().out
    assert "resume keeps 0 of" in printed
    assert printed.count("tokens as NumPy alone") == 3


def test_tokens(model, monkeypatch):
    monkeypatch.syspath_prepend(str(commands.FOLDER))
    from gemma_tokenizer import GemmaTokenizer
    from gguf_file import GgufFile

    tokenizer = GemmaTokenizer(GgufFile(model))
    pieces = tiny_gemma.vocabulary()[0]

    def split(text):
        return [pieces[token] for token in tokenizer.tokens(text)]

    # "th" comes before "he", and both before "the", which needs what is left.
    assert split("the") == ["the"]
    assert split(" the then") == ["▁the", "▁the", "n"]
    assert split("whe") == ["w", "he"]
    assert split("thing") == ["th", "ing"]
    assert split("a  b\n\n\nc") == ["a", "  ", "b", "\n\n", "\n", "c"]
    assert split("é") == ["<0xC3>", "<0xA9>"]
    assert split("") == []
    for text in ("the 12 é 漢 \U0001f9ff\n\n in  the thing", " ", "\n"):
        shown = tokenizer.stream()
        assert "".join(map(shown, tokenizer.tokens(text))) == text
    assert tokenizer.line_ends == {pieces.index("\n"), pieces.index("\n\n")}


def test_models_of_other_kinds(text, tmp_path):
    tiny_model.write(tmp_path / "llama.gguf", tokenizer="smollm")
    assert "tokenizer of kind gpt2" in refused("--model", tmp_path / "llama.gguf")
    tiny_gemma.write(tmp_path / "gemma2.gguf", architecture="gemma2")
    assert "architecture gemma2" in refused("--model", tmp_path / "gemma2.gguf")
    tiny_gemma.write(tmp_path / "larger.gguf", scaling=8.0)
    assert "stretches its positions" in refused("--model", tmp_path / "larger.gguf")


def test_texts_that_cannot_be_asked_about(model, tmp_path):
    path = tmp_path / "text.txt"
    assert "No such file" in refused("--model", model, "--text", path)
    path.write_bytes(b"  \n")
    assert "is empty" in refused("--model", model, "--text", path)
    path.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused("--model", model, "--text", path)
    path.write_text("a" * tiny_gemma.CONTEXT)
    assert "use a shorter text" in refused("--model", model, "--text", path)


@pytest.mark.parametrize(
    "arguments",
    [["--tokens", "0"], ["--storage", "f8"], ["--threads", "0"], ["--window", "3"], ["stray"]],
    ids=" ".join,
)
def test_unknown_option_values(arguments):
    refused(*arguments, code=2)
