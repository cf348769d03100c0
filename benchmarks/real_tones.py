"""Tones whose pitch is known, since they were made: what CREPE is measured on.

A frame is 1,024 samples at 16 kHz. Its pitch is that of its middle, where CREPE's
labels are. A tone has harmonics up to 7.6 kHz whose strengths fall by a power of their
number, those of even number by one more factor, each with a phase of its own, a light
vibrato, and white noise under it.
"""

import numpy as np

RATE, SAMPLES = 16_000, 1_024  # samples a second, samples of a frame
LOWEST, HIGHEST = 50.0, 1_500.0  # Hz, drawn evenly in octaves
_TOP = 7_600.0  # Hz, of harmonics
_VIBRATO = 30.0  # cents at most, to each side, at 4 to 7 Hz
_NOISE = 0.0, 30.0  # dB by which the tone is louder


def tones(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make frames and their pitches.

    Args:
        count: of frames.
        seed: of all that is drawn.

    Returns:
        float32 [count, 1024], each frame less its mean and over its deviation, as CREPE
        takes them; and float32 [count], the pitches in cents above 10 Hz.
    """
    rng = np.random.default_rng(seed)
    frames = np.empty((count, SAMPLES), np.float32)
    pitches = np.empty(count)
    for i in range(count):
        pitches[i] = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST)))
        frames[i] = _normalised(_frame(pitches[i], rng))
    return frames, cents(pitches).astype(np.float32)


def cents(frequencies: np.ndarray) -> np.ndarray:
    """Convert Hz to cents above 10 Hz."""
    return 1200 * np.log2(np.asarray(frequencies) / 10)


def _frame(pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Make one frame of a pitch in Hz."""
    time = (np.arange(SAMPLES) - SAMPLES // 2) / RATE
    depth, rate = rng.uniform(0, _VIBRATO), rng.uniform(4, 7)
    swing = rng.uniform(0, 2 * np.pi)
    # Less what it is in the middle, so that the pitch there is the one asked for.
    bend = np.sin(2 * np.pi * rate * time + swing) - np.sin(swing)
    turns = np.cumsum(pitch * 2 ** (depth * bend / 1200)) / RATE
    numbers = np.arange(1, max(2, int(_TOP / (1.05 * pitch)) + 1))
    strengths = numbers ** -rng.uniform(0.5, 2.5)
    strengths = np.where(numbers % 2, strengths, strengths * rng.uniform(0.2, 1))
    phases = rng.uniform(0, 1, len(numbers))
    waves = np.sin(2 * np.pi * (numbers[:, None] * turns + phases[:, None]))
    tone = strengths @ waves
    noise = rng.normal(size=SAMPLES) * tone.std()
    return tone + noise * 10 ** (-rng.uniform(*_NOISE) / 20)


def _normalised(frame: np.ndarray) -> np.ndarray:
    """Take the mean off, and divide by the deviation (of n - 1, as torch's is)."""
    frame = frame - frame.mean()
    return frame / max(1e-10, frame.std(ddof=1))
