"""Sound for the demo: WAV files, what Debian brings, and texts that a synthesizer speaks."""

import pathlib
import shutil
import subprocess
import tempfile
import wave

import numpy as np

from demo import DemoError
from log_mel import RATE, SECONDS

ALSA = pathlib.Path("/usr/share/sounds/alsa")  # of the package alsa-utils
SPOKEN = ("Front_Center", "Front_Left", "Rear_Right", "Side_Left")
TEXT = (
    "A cache remembers what was computed before. "
    "When people speak, a transformer listens to the whole recording once. "
    "Then it writes the text, word after word, and every word looks back at the sound. "
    "The keys and the values of the sound never change, so it is enough to store them one time. "
    "Several possible sentences can share the same recording. "
    "The library keeps count of who still needs it, and it frees the memory when nobody does. "
    "This paragraph is longer than half a minute, so the program must cut it into pieces. "
    "It looks for a quiet moment, between two sentences, and cuts there. "
    "All pieces are then written at the same time, in a single batch."
)


def of_debian():
    """A list of (name, samples): people saying where a loudspeaker stands, and a spoken text."""
    found = [read(ALSA / f"{name}.wav") for name in SPOKEN if (ALSA / f"{name}.wav").is_file()]
    if shutil.which("espeak-ng"):
        found.append(("a text spoken by espeak-ng", spoken(TEXT)))
    if not found:
        raise DemoError(
            "no recordings: pass WAV files, or install what Debian has "
            "(apt-get install alsa-utils espeak-ng)"
        )
    return found


def spoken(text):
    """The samples of a text that the program espeak-ng speaks."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "spoken.wav"
        command = ["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(path), text]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode != 0:
            raise DemoError(
                f"espeak-ng speaks no text ({result.stderr.strip() or result.returncode}); install "
                "it again, or pass WAV files"
            )
        return read(path)[1]


def read(path):
    """(name, samples float32 [n], RATE per second) of a WAV file; channels are averaged."""
    path = pathlib.Path(path)
    try:
        with wave.open(str(path), "rb") as file:
            rate, size, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DemoError(
            f"{path} is not a WAV file of whole numbers ({error or 'it ends too early'}); convert "
            "it, for example with: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le FILE.wav"
        ) from error
    content = content[: len(content) // (size * channels) * (size * channels)]
    if not content:
        raise DemoError(f"{path} holds no sound")
    samples = _numbers(content, size).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return path.name, resampled(samples, rate)


def _numbers(content, size):
    """Samples of 1 to 4 bytes as float32, -1 … 1."""
    if size == 1:  # the only size without a sign
        return np.frombuffer(content, dtype=np.uint8).astype(np.float32) / 128 - 1
    # Shifted to the upper bytes of 32 bits, whatever the size.
    wide = np.zeros((len(content) // size, 4), dtype=np.uint8)
    wide[:, 4 - size :] = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    return wide.view("<i4")[:, 0].astype(np.float32) / 2**31


def resampled(samples, rate):
    """The same sound with RATE samples per second: its frequencies above RATE / 2 are dropped."""
    if rate == RATE:
        return samples
    count = max(1, round(len(samples) * RATE / rate))
    spectrum = np.fft.rfft(samples)
    kept = np.zeros(count // 2 + 1, dtype=spectrum.dtype)
    both = min(len(kept), len(spectrum))
    kept[:both] = spectrum[:both]
    return (np.fft.irfft(kept, count) * (count / len(samples))).astype(np.float32)


def pieces(samples):
    """Cuts a recording into parts of at most 30 seconds, at the quietest moment of their last 10."""
    longest, earliest, moment = SECONDS * RATE, (SECONDS - 10) * RATE, RATE // 5
    parts = []
    while len(samples) > longest:
        loudness = np.cumsum(np.square(samples[earliest:longest], dtype=np.float64))
        quietest = int(np.argmin(loudness[moment:] - loudness[:-moment]))
        cut = earliest + quietest + moment // 2
        parts.append(samples[:cut])
        samples = samples[cut:]
    return [*parts, samples]
