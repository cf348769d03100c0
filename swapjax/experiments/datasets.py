"""Small image datasets as arrays: digits, .npz files, tensorflow-datasets."""

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swapjax.core.text import printable
from swapjax.experiments import images, prepared
from swapjax.io.npz import read_npz

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_PARTS, _KINDS = ("train", "test"), ("x", "y", "jpeg", "offset")
_ROUNDING = 1e-6  # relative, of float32; deviations below are none
_BOX_ROUNDING = 1e-5  # of standardised pixels, in the range that they may have
_CLASSES = 1000  # at most, or as many as there are images

Scale = Any
"""A float for all pixels, or a tuple of one per channel: who asks for one gets one."""


class Dataset(NamedTuple):
    """Images and labels, split and standardised.

    Attributes:
        name: what was asked for.
        x_train: float32 [n, ...], by default of mean 0 and deviation 1 over all pixels.
        y_train: int32 [n], in [0, classes).
        x_test: float32 [m, ...], standardised as the training images.
        y_test: int32 [m].
        classes: how many there are.
        mean: what was subtracted, one number or one per channel.
        std: what it was then divided by, likewise.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: Scale
    std: Scale

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """The training images and labels."""
        return self.x_train, self.y_train

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The test images and labels."""
        return self.x_test, self.y_test

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.x_train.shape[1:]

    @property
    def box(self) -> tuple[float, float]:
        """The range of pixels, standardised: of 0 to 1, if they keep to that.

        Raises:
            ValueError: for channels of different ranges, which attacks cannot take.
        """
        if isinstance(self.mean, tuple) or isinstance(self.std, tuple):
            raise ValueError(
                "mean and std: images can be attacked or spoilt where they are one "
                f"number for all channels, got {told(self.mean)} and {told(self.std)}"
            )
        low, high = (float((x - self.mean) / self.std) for x in (0, 1))
        least, most = float(self.x_train.min()), float(self.x_train.max())
        slack = _BOX_ROUNDING * (high - low)
        fits = low - slack <= least and most <= high + slack
        return (low, high) if fits else (least, most)


def load(
    source: str | Path,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data_dir: str | Path | None = None,
) -> Dataset:
    """Load a dataset and standardise its pixels.

    Args:
        source: ``"digits"`` for the 1,797 scanned digits of 8 x 8 pixels that ship with
            scikit-learn, 1,437 to train and 360 to test; ``"tfds:NAME"`` for a set
            prepared with tensorflow-datasets; otherwise the path of a ``.npz`` file
            with x_train, y_train, x_test and y_test. Instead of x_train it may hold
            jpeg_train, the bytes of JPEG or PNG files one after the other, and
            offset_train, where each starts and the last ends; likewise to test.
        mean: what to subtract from pixels, which are divided by 255 first where they
            are bytes: one number, or one per channel of images of (height, width,
            channels). By default the mean over the training images, rounded to four
            decimals, or more where pixels deviate by less than 0.01: 0.1307 for MNIST.
        std: what to divide them by then, likewise: 0.3081 for MNIST.
        data_dir: where tensorflow-datasets keeps its files.

    Raises:
        ValueError: for a source that does not exist or cannot be read, or would unpack
            to more than 256 MiB and 100 times its size; missing arrays, images and
            labels that do not match, pixels that are not finite in float32 or all
            alike, labels that are not integers from 0, and more classes than 1,000
            and than images to train; for as many means or deviations as there are
            no channels.
        ImportError: for ``tfds:`` without tensorflow-datasets.
    """
    source = str(source)
    if source == "digits":
        arrays = _digits()
    elif source.startswith("tfds:"):
        arrays = prepared.load(source.removeprefix("tfds:"), data_dir)
    else:
        arrays = _npz(source)
    return _standardise(source, arrays, mean, std)


def told(scale: float | Sequence[float]) -> str:
    """Write a mean or a deviation as `--mean` and `--std` take it."""
    return ",".join(map(str, (scale,) if isinstance(scale, float | int) else scale))


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    # The scans come writer by writer; a shuffle puts every hand in both parts.
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8)[order], y[order]
    cut = int(0.8 * len(y))
    return dict(zip(_KEYS, (x[:cut], y[:cut], x[cut:], y[cut:]), strict=True))


def _npz(source: str) -> dict[str, np.ndarray]:
    if not os.path.isfile(source):
        raise ValueError(
            f"data: '{printable(source)}' is not 'digits', 'tfds:NAME' or the path of "
            "a .npz file"
        )
    found: list[str] = []

    def choose(names: Collection[str]) -> list[str]:
        found.extend(names)
        return [f"{kind}_{part}" for part in _PARTS for kind in _KINDS]

    arrays = read_npz(source, choose)
    what = f"data: {printable(source)}"
    for part in _PARTS:
        if f"jpeg_{part}" in arrays and f"offset_{part}" in arrays:
            if f"x_{part}" in arrays:
                raise ValueError(f"{what} has both x_{part} and jpeg_{part}")
            name, offsets = f"jpeg_{part}", arrays[f"offset_{part}"]
            arrays[f"x_{part}"] = images.decode(what, name, arrays.pop(name), offsets)
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"{what} has no {', '.join(missing)}; it has {printable(', '.join(found))}"
        )
    return {key: arrays[key] for key in _KEYS}


def _standardise(
    source: str,
    arrays: dict[str, np.ndarray],
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> Dataset:
    what = f"data: {printable(source)}"
    for part in _PARTS:
        _check(what, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    train, test = arrays["x_train"], arrays["x_test"]
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{what} has images of {train.shape[1:]} to train and of {test.shape[1:]} "
            "to test"
        )
    classes = _count_classes(what, arrays["y_train"], arrays["y_test"])
    x_train, x_test = _unit(what, "train", train), _unit(what, "test", test)
    deviation = float(np.std(x_train, dtype=np.float64))
    centre = float(np.mean(x_train, dtype=np.float64))
    if deviation <= _ROUNDING * abs(centre):
        deviation = 0.0
    decimals = 4
    if 0 < deviation < 0.01:
        decimals += math.ceil(-math.log10(deviation)) - 1
    shape = train.shape[1:]
    if mean is None:
        mean = round(centre, decimals)
    if std is None:
        std = round(deviation, decimals)
    mean, std = _scale(what, "mean", mean, shape), _scale(what, "std", std, shape)
    if not np.all(np.isfinite(mean)) or not all(0 < s < math.inf for s in _each(std)):
        raise ValueError(
            f"{what} has pixels of mean {told(mean)} and deviation {told(std)}"
        )
    if (train.dtype == np.uint8) != (test.dtype == np.uint8):
        raise ValueError(
            f"{what} has pixels of {train.dtype} to train and of {test.dtype} to test; "
            "bytes are divided by 255, floats are not"
        )
    x_train, x_test = _centred(x_train, mean, std), _centred(x_test, mean, std)
    for part, x in (("train", x_train), ("test", x_test)):
        if not np.all(np.isfinite(x)):
            raise ValueError(
                f"{what} has pixels in x_{part} that are infinite less {told(mean)} "
                f"and divided by {told(std)}"
            )
    return Dataset(
        name=source,
        x_train=x_train,
        y_train=arrays["y_train"].astype(np.int32),
        x_test=x_test,
        y_test=arrays["y_test"].astype(np.int32),
        classes=classes,
        mean=mean,
        std=std,
    )


def _each(scale: Scale) -> tuple[float, ...]:
    return scale if isinstance(scale, tuple) else (scale,)


def _scale(
    what: str, name: str, given: float | Sequence[float], shape: tuple[int, ...]
) -> Scale:
    """Take a mean or a deviation, one number where all channels have the same."""
    numbers = (given,) if isinstance(given, float | int) else tuple(given)
    channels = shape[-1] if len(shape) == 3 else 1
    if len(numbers) not in (1, channels):
        raise ValueError(
            f"{what} has images of {shape}; one {name} "
            + (f"or {channels} " if channels > 1 else "")
            + f"wanted, got {len(numbers)}"
        )
    found = tuple(float(number) for number in numbers)
    return found[0] if len(set(found)) == 1 else found


def _check(what: str, part: str, x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim < 2 or y.shape != x.shape[:1] or not x.size:
        raise ValueError(
            f"{what} has x_{part} of shape {x.shape} and y_{part} of shape {y.shape}, "
            "one label an image wanted"
        )
    # To NumPy durations are integers.
    if y.dtype.kind not in "iu" or y.min() < 0:
        least = f" from {y.min()}" if y.dtype.kind in "iufb" else ""
        raise ValueError(
            f"{what} has y_{part} of {y.dtype}{least}, integers from 0 wanted"
        )
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{what} has x_{part} of {x.dtype}, bytes or floats wanted")


def _count_classes(what: str, train: np.ndarray, test: np.ndarray) -> int:
    classes = int(train.max()) + 1
    if classes > max(_CLASSES, len(train)):
        raise ValueError(
            f"{what} has label {classes - 1:,} in y_train, but {len(train):,} images; "
            f"up to {_CLASSES:,} classes, or as many as images, are taken"
        )
    if test.max() >= classes:
        raise ValueError(
            f"{what} has label {test.max()} to test, and only 0 to {classes - 1} to "
            "train"
        )
    return classes


def _unit(what: str, part: str, x: np.ndarray) -> np.ndarray:
    """Copy; bring bytes to [0, 1], and take floats as they are."""
    with np.errstate(over="ignore"):  # which is told below
        unit = x.astype(np.float32)
    if x.dtype == np.uint8:
        unit /= np.float32(255)
    elif not np.all(np.isfinite(unit)):
        raise ValueError(
            f"{what} has NaN or infinite pixels in x_{part}, as float32 at least"
        )
    return unit


def _centred(x: np.ndarray, mean: Scale, std: Scale) -> np.ndarray:
    """Standardise in place: MNIST twice over would be the peak of a whole run."""
    with np.errstate(all="ignore"):  # what becomes infinite is told afterwards
        x -= np.asarray(mean, np.float32)
        x /= np.asarray(std, np.float32)
    return x
