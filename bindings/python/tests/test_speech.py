"""examples/python/transcribe.py with a speech model of some kilobytes, and its messages."""

import functools
import os
import re
import wave

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import commands  # noqa: E402
import tiny_whisper  # noqa: E402

transcribe = functools.partial(commands.run, "transcribe.py")
refused = functools.partial(commands.refused, "transcribe.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_whisper.write(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Files of 1, 33 (two pieces) and 2 seconds, of different melodies."""
    folder, paths = tmp_path_factory.mktemp("sounds"), []
    for index, seconds in enumerate((1, 33, 2)):
        at = np.arange(seconds * 16_000) / 16_000
        tone = np.sin(2 * np.pi * (300 + 500 * index + 90 * np.floor(at * 3)) * at)
        paths.append(write_wav(folder / f"{index}.wav", np.int16(9000 * tone), 16_000))
    return paths


def write_wav(path, samples, rate):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("beams, at_once", [(1, 8), (3, 2), (5, 1)])
def test_it_writes_what_numpy_alone_writes(model, sounds, storage, beams, at_once):
    options = ["--model", model, "--storage", storage, "--beams", beams, "--at-once", at_once]
    result = transcribe(*options, "--tokens", 24, "--threads", 2, "--verify", *sounds)
    assert result.returncode == 0, result
    for index, seconds in enumerate(("1.0", "33.0", "2.0")):
        assert f"\n{index}.wav ({seconds} s): " in result.stdout
    assert re.search(r"verify +the same \d\d+ tokens as NumPy alone", result.stdout)
    assert re.search(r"decoder +\d+ tokens in .* % of the time inside kvc", result.stdout)
    places = min(at_once, 4)
    assert f"for {places} sound" in result.stdout and f"for {places * beams} text" in result.stdout
    assert ("each shared by" in result.stdout) == (beams > 1)


@pytest.mark.parametrize("storage", ["f8_e4m3", "int8 --rotate"])
def test_keys_and_values_may_be_codes(model, sounds, storage):
    options = ["--model", model, "--storage", *storage.split(), "--tokens", 24, "--threads", 2]
    result = transcribe(*options, *sounds)
    assert result.returncode == 0, result
    assert re.search(r"decoder +\d+ tokens in .* % of the time inside kvc", result.stdout)
    assert "--verify goes with f32, f16 and bf16" in refused(*options, "--verify", code=2)



@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(commands.FOLDER))
    import transcribe
    import whisper_cached

    return transcribe, whisper_cached


@pytest.mark.parametrize("broken", ["reorder", "text", "sound"])
def test_verify_finds_a_decoder_that_is_wrong(demo, model, sounds, monkeypatch, capsys, broken):
    command, cached = demo
    right = getattr(cached.CachedDecoder, broken)
    wrong = {
        "reorder": lambda self, targets, sources: right(self, targets, sources[::-1]),
        "text": lambda self, layer, q, k, v: right(self, layer, q, k, np.roll(v, 1, axis=1)),
        "sound": lambda self, layer, q: right(self, layer, np.ascontiguousarray(q[::-1])),
    }
    monkeypatch.setattr(cached.CachedDecoder, broken, wrong[broken])
    options = ["--model", model, "--beams", 3, "--at-once", 2, "--tokens", 20, "--verify"]
    assert command.main([*map(str, options), *map(str, sounds)]) == 1
    printed = capsys.readouterr()
    assert re.search(r"DIFFERS at token \d+ of piece \d+", printed.out), printed


def test_beams_share_the_sound_that_they_hear(demo, model, sounds, monkeypatch):
    command, cached = demo
    seen = set()
    right = cached.CachedDecoder.reorder

    def reorder(self, targets, sources):
        right(self, targets, sources)
        stats = self.cache.children[1].stats()
        seen.add((stats.cells_used, stats.cells_shared))

    monkeypatch.setattr(cached.CachedDecoder, "reorder", reorder)
    options = ["--model", model, "--beams", 4, "--at-once", 1, "--tokens", 6]
    assert command.main([*map(str, options), str(sounds[0])]) == 0
    assert seen == {(tiny_whisper.SOUNDS, tiny_whisper.SOUNDS)}


def test_missing_and_damaged_models(model, sounds, tmp_path):
    assert "there is no model file" in refused("--model", tmp_path / "nothing", *sounds)
    tiny_whisper.write(tmp_path / "other", model="TransformerSpec")
    assert "TransformerSpec, not a WhisperSpec" in refused("--model", tmp_path / "other", *sounds)
    tiny_whisper.write(tmp_path / "newer", version=7)
    assert "version 7" in refused("--model", tmp_path / "newer", *sounds)
    tiny_whisper.write(tmp_path / "languages", vocabulary=51_865)
    assert "English only" in refused("--model", tmp_path / "languages", *sounds)
    content = (model / "model.bin").read_bytes()
    damaged = tmp_path / "damaged"
    tiny_whisper.write(damaged)
    for part in (b"", b"hello, world\n" * 100, content[:40], content[: len(content) // 2]):
        (damaged / "model.bin").write_bytes(part)
        message = refused("--model", damaged, *sounds)
        assert "not a whole CTranslate2 model" in message and "leave --model out" in message
    for name in ("config.json", "tokenizer.json"):
        tiny_whisper.write(damaged)
        (damaged / name).write_text("{")
        assert f"{name} is damaged" in refused("--model", damaged, *sounds)


@pytest.mark.parametrize(
    "arguments",
    [["--beams", "0"], ["--tokens", "many"], ["--storage", "f8"], ["--at-once", "0"], ["--loud"]],
    ids=" ".join,
)
def test_unknown_option_values(arguments):
    refused(*arguments, code=2)


def test_more_than_a_text_holds(model, sounds):
    assert "has 62 at most" in refused("--model", model, "--tokens", 63, *sounds)


def test_no_recordings_and_no_network(tmp_path, sounds):
    assert "No such file" in refused(tmp_path / "nothing.wav")
    message = refused(
        *sounds,
        KVC_CACHE_DIR=str(tmp_path),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_NO_INDEX="",
        PIP_EXTRA_INDEX_URL="",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert "check the network" in message and "--model FOLDER" in message
