"""The parts of the speech demo: sound, beams, and the arithmetic of the model."""

import itertools
import math
import pathlib
import wave

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import tiny_whisper  # noqa: E402

DEMO = pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))


@pytest.fixture
def recordings(path):
    import recordings

    return recordings


def tone(hertz, seconds, rate):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write(path, values, *, size, rate, channels=1):
    """Writes values of -1 … 1 as whole numbers of 1 to 4 bytes."""
    numbers = np.round(values * (2 ** (8 * size - 1) - 1)).astype(np.int64)
    if size == 1:
        numbers += 128
    content = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(size)
        file.setframerate(rate)
        file.writeframes(content)
    return path


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_wav_files_of_every_size_and_rate_sound_the_same(recordings, tmp_path, size, rate):
    file = write(tmp_path / "tone.wav", tone(440, 0.5, rate), size=size, rate=rate)
    name, samples = recordings.read(file)
    assert name == "tone.wav" and samples.dtype == np.float32 and len(samples) == 8_000
    inner = slice(800, -800)  # where a tone begins and ends, other frequencies are lost
    expected = tone(440, 0.5, recordings.RATE)
    np.testing.assert_allclose(samples[inner], expected[inner], atol=0.02 if size == 1 else 0.01)


def test_channels_are_averaged(recordings, tmp_path):
    both = np.stack([tone(300, 0.2, 16_000), np.zeros(3200)], axis=1).ravel()
    file = write(tmp_path / "stereo.wav", both, size=2, rate=16_000, channels=2)
    np.testing.assert_allclose(recordings.read(file)[1], tone(300, 0.2, 16_000) / 2, atol=1e-4)


def test_resampling_drops_what_the_new_rate_cannot_hold(recordings):
    high = tone(10_000, 0.5, 48_000).astype(np.float32)
    assert np.abs(recordings.resampled(high, 48_000)[800:-800]).max() < 0.01


def test_other_files_are_refused(recordings, tmp_path):
    for content in (b"", b"RIFF", b"ID3 not a wave file", bytes(100)):
        (tmp_path / "other.wav").write_bytes(content)
        with pytest.raises(recordings.DemoError, match="is not a WAV file.*ffmpeg"):
            recordings.read(tmp_path / "other.wav")
    whole = write(tmp_path / "float.wav", tone(300, 0.1, 16_000), size=4, rate=16_000).read_bytes()
    (tmp_path / "float.wav").write_bytes(whole[:20] + b"\x03\x00" + whole[22:])  # IEEE floats
    with pytest.raises(recordings.DemoError, match="ffmpeg"):
        recordings.read(tmp_path / "float.wav")
    write(tmp_path / "silent.wav", np.zeros(0), size=2, rate=16_000)
    with pytest.raises(recordings.DemoError, match="holds no sound"):
        recordings.read(tmp_path / "silent.wav")


def test_long_recordings_are_cut_where_they_are_quiet(recordings):
    samples = tone(200, 70, recordings.RATE).astype(np.float32)
    pauses = [24.3, 50.1]
    for at in pauses:
        samples[int(at * recordings.RATE) :][: recordings.RATE // 2] = 0
    parts = recordings.pieces(samples)
    np.testing.assert_array_equal(np.concatenate(parts), samples)
    assert len(parts) == 3
    for cut, pause in zip(np.cumsum([len(part) for part in parts]), pauses):
        assert pause < cut / recordings.RATE < pause + 0.5
    assert len(recordings.pieces(samples[: 30 * recordings.RATE])) == 1


def test_without_recordings_the_demo_says_where_to_get_some(recordings, monkeypatch, tmp_path):
    monkeypatch.setattr(recordings, "ALSA", tmp_path)
    monkeypatch.setattr(recordings.shutil, "which", lambda name: None)
    with pytest.raises(recordings.DemoError, match="pass WAV files, or install .* alsa-utils"):
        recordings.of_debian()


def test_a_synthesizer_that_fails_is_reported(recordings, monkeypatch, tmp_path):
    monkeypatch.setattr(recordings, "ALSA", tmp_path)
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\necho no voice >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(recordings.DemoError, match="no voice.*pass WAV files"):
        recordings.of_debian()


def test_a_tone_is_loudest_in_the_band_that_holds_it():
    import log_mel

    bands = log_mel.mel_bands(80)
    np.testing.assert_allclose(bands.sum(axis=1)[20:] * 40, 1, atol=0.1)  # 40 Hz per bin
    for hertz in (320, 1000, 4000):
        spectrum = log_mel.log_mel(tone(hertz, 2, log_mel.RATE).astype(np.float32), 80)
        assert spectrum.shape == (80, log_mel.FRAMES)
        loudest = spectrum[:, 20:150].mean(axis=1).argmax()
        assert bands[loudest, round(hertz / 40)] == bands[:, round(hertz / 40)].max() > 0
        assert np.ptp(spectrum[:, 400:]) == 0  # silence
        assert spectrum.max() - spectrum.min() == pytest.approx(2)  # 80 dB


def test_a_frame_is_the_spectrum_around_its_moment():
    import log_mel

    samples = np.random.default_rng(1).standard_normal(log_mel.RATE).astype(np.float32)
    at = 17 * log_mel.HOP
    around = samples[at - 200 : at + 200] * (0.5 - 0.5 * np.cos(np.pi * np.arange(400) / 200))
    waves = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    bands = np.log10(log_mel.mel_bands(80) @ np.abs(waves @ around) ** 2)
    found = log_mel.log_mel(samples, 80)[:, 17]
    np.testing.assert_allclose(np.diff(found), np.diff(bands) / 4, atol=1e-4)


def test_gelu_agrees_with_the_error_function():
    import whisper

    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    exact = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()]
    np.testing.assert_allclose(whisper._gelu(x), exact, atol=2e-6)


@pytest.fixture
def model(tmp_path):
    import whisper
    import whisper_file

    tiny_whisper.write(tmp_path / "tiny")
    return whisper.Whisper(whisper_file.CTranslate2File(tmp_path / "tiny" / "model.bin"))


def test_decoding_token_by_token_is_decoding_at_once(model):
    import whisper_plain

    random = np.random.default_rng(5)
    sound = model.encode(random.standard_normal(9000).astype(np.float32) / 5)
    tokens = random.integers(0, 250, 20).tolist()
    decoder = whisper_plain.PlainDecoder(model, storage="f16")
    at_once = decoder.forward([(0, tokens)], {0: sound})
    for index, token in enumerate(tokens):
        last = decoder.forward([(1, [token])], {1: sound} if index == 0 else {})
    np.testing.assert_allclose(last, at_once, rtol=1e-3, atol=1e-3)


class Chain:
    """A decoder whose next token depends on the last one and on the sound alone."""

    def __init__(self, tables):
        self._tables = tables  # logits [n_tokens, n_tokens] per sound
        self._heard = {}

    def forward(self, texts, sounds):
        self._heard.update(sounds)
        return np.array([self._tables[self._heard[s]][tokens[-1]] for s, tokens in texts])

    def reorder(self, targets, sources):
        heard = [self._heard[source] for source in sources]
        self._heard.update(zip(targets, heard))

    def forget(self, sequences):
        for sequence in sequences:
            self._heard.pop(sequence, None)


END, START, TOKENS, LIMIT = 0, 1, 6, 4


def rules():
    import beams

    return beams.Rules([START], END, np.array([START]), np.array([END]), LIMIT)


def likeliest(table):
    """Of all texts, the one that is likeliest for its length."""

    def step(last, token, first):
        hidden = [START, END] if first else [START]
        logits = table[last].astype(np.float64)
        logits[hidden] = -np.inf
        return logits[token] - np.log(np.exp(logits).sum())

    best = (-np.inf, None)
    for length in range(1, LIMIT + 1):
        for text in itertools.product(range(2, TOKENS), repeat=length):
            whole = [START, *text, *([END] if length < LIMIT else [])]
            score = sum(step(a, b, i == 0) for i, (a, b) in enumerate(zip(whole, whole[1:])))
            best = max(best, (score / (length + 1), list(text)))
    return best[1]


@pytest.mark.parametrize("n_places", [1, 2, 5])
def test_enough_beams_find_the_likeliest_text(n_places):
    import beams

    random = np.random.default_rng(3)
    tables = random.standard_normal((5, TOKENS, TOKENS)).astype(np.float32) * 2
    search = beams.Search(
        Chain(tables), lambda piece: piece, rules(), n_places=n_places, n_beams=TOKENS**LIMIT
    )
    assert search.run(range(5)) == [likeliest(table) for table in tables]


def test_one_beam_takes_the_likeliest_token():
    import beams

    table = np.zeros((TOKENS, TOKENS), dtype=np.float32)
    table[START, [2, END]] = 4, 9  # a text must not be empty
    table[2, [3, END]] = 5, 4.9  # the end is second: the text goes on
    table[3, [END, 4]] = 5, 4.9
    search = beams.Search(Chain([table]), lambda piece: 0, rules(), n_places=1, n_beams=1)
    assert search.run([None]) == [[2, 3]]
