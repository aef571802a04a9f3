"""What Whisper hears: the loudness of 80 bands of frequencies, a hundred times a second."""

import numpy as np

RATE = 16_000  # samples per second
SECONDS = 30  # of every input: shorter ones end in silence
HOP = RATE // 100  # samples from one frame to the next
WINDOW = 400  # samples that a frame looks at
FRAMES = SECONDS * RATE // HOP


def log_mel(samples, n_bands):
    """The log-mel spectrogram float32 [n_bands, FRAMES] of at most 30 seconds of sound.

    samples  float32, -1 … 1, RATE per second
    """
    padded = np.zeros(SECONDS * RATE, dtype=np.float32)
    padded[: len(samples)] = samples
    padded = np.pad(padded, WINDOW // 2, mode="reflect")  # the first frame is around sample 0
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:FRAMES]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann.astype(np.float32))) ** 2  # [FRAMES, WINDOW / 2 + 1]
    bands = np.log10(np.maximum(mel_bands(n_bands) @ power.T.astype(np.float32), 1e-10))
    # What is 80 dB below the loudest moment counts as silence; the model was trained on this scale.
    return (np.maximum(bands, bands.max() - 8) + 4) / 4


def mel_bands(n_bands):
    """The share of each frequency in each band: float32 [n_bands, WINDOW / 2 + 1].

    The bands are triangles of equal area, evenly spaced on the mel scale, half overlapping.
    """
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    edges = _hertz(np.linspace(0, _mel(RATE / 2), n_bands + 2))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (high - low))).astype(np.float32)


# Slaney's mel scale: linear up to 1000 Hz, logarithmic above.
_LINEAR = 200 / 3  # Hz per mel
_KNEE = 1000.0
_STEP = np.log(6.4) / 27  # of the logarithm per mel


def _mel(hertz):
    return _KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP


def _hertz(mel):
    above = mel - _KNEE / _LINEAR
    return np.where(above < 0, mel * _LINEAR, _KNEE * np.exp(_STEP * np.maximum(above, 0)))
