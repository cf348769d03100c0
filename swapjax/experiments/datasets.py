"""Small image datasets as arrays: digits, .npz files, tensorflow-datasets."""

import io
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swapjax.core import extras
from swapjax.io import checkpoint

_KEYS = ("x_train", "y_train", "x_test", "y_test")


class Dataset(NamedTuple):
    """Images and labels, split and standardised.

    Attributes:
        name: what was asked for.
        x_train: float32 [n, ...], mean 0 and deviation 1 over all training pixels.
        y_train: int32 [n], in [0, classes).
        x_test: float32 [m, ...], standardised as the training images.
        y_test: int32 [m].
        classes: how many there are.
        mean: what was subtracted.
        std: what it was then divided by.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: float
    std: float

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


def load(
    source: str | Path,
    *,
    mean: float | None = None,
    std: float | None = None,
    data_dir: str | Path | None = None,
) -> Dataset:
    """Load a dataset and standardise its pixels.

    Args:
        source: ``"digits"`` for the 1,797 scanned digits of 8 x 8 pixels that ship with
            scikit-learn, 1,437 to train and 360 to test; ``"tfds:NAME"`` for a set
            prepared with tensorflow-datasets; otherwise the path of a ``.npz`` file
            with x_train, y_train, x_test and y_test. Instead of x_train it may hold
            jpeg_train, the bytes of image files one after the other, and offset_train,
            where each starts and the last ends; likewise to test.
        mean: what to subtract from pixels, which are divided by 255 first where they
            are bytes. By default the mean over the training images, rounded to four
            decimals: 0.1307 for MNIST.
        std: what to divide them by then, likewise: 0.3081 for MNIST.
        data_dir: where tensorflow-datasets keeps its files.

    Raises:
        ValueError: for a source that does not exist or cannot be read, missing arrays,
            images and labels that do not match, pixels that are not finite or all
            alike, and labels that are not integers from 0.
        ImportError: for ``tfds:`` without tensorflow-datasets.
    """
    source = str(source)
    if source == "digits":
        arrays = _digits()
    elif source.startswith("tfds:"):
        arrays = _tfds(source.removeprefix("tfds:"), data_dir)
    else:
        arrays = _npz(source)
    return _standardise(source, arrays, mean, std)


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    # The scans come writer by writer; a shuffle puts every hand in both parts.
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8)[order], y[order]
    cut = int(0.8 * len(y))
    return dict(zip(_KEYS, (x[:cut], y[:cut], x[cut:], y[cut:]), strict=True))


def _npz(source: str) -> dict[str, np.ndarray]:
    if not Path(source).is_file():
        raise ValueError(
            f"data: {source!r} is not 'digits', 'tfds:NAME' or the path of a .npz file"
        )
    arrays = checkpoint.read_npz(source)
    for part in ("train", "test"):
        if f"jpeg_{part}" in arrays and f"offset_{part}" in arrays:
            arrays[f"x_{part}"] = _decode(source, part, arrays)
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"data: {source} has no {', '.join(missing)}; it has {', '.join(arrays)}"
        )
    return {key: arrays[key] for key in _KEYS}


def _decode(source: str, part: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Decode images from concatenated JPEG or PNG files."""
    from PIL import Image, UnidentifiedImageError

    data = arrays[f"jpeg_{part}"].tobytes()
    edges = arrays[f"offset_{part}"].tolist()
    images: list[np.ndarray] = []
    for first, end in itertools.pairwise(edges):
        try:
            image = np.asarray(Image.open(io.BytesIO(data[first:end])))
        except (UnidentifiedImageError, OSError, TypeError, ValueError) as e:
            raise ValueError(
                f"data: {source} has image {len(images)} of jpeg_{part} damaged: {e}"
            ) from None
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"data: {source} has images of {images[0].shape} and {image.shape} in "
                f"jpeg_{part}, one shape wanted"
            )
        images.append(image)
    return np.stack(images) if images else np.zeros((0, 0, 0), np.uint8)


def _tfds(name: str, data_dir: str | Path | None) -> dict[str, np.ndarray]:
    extras.require("data", f"data: tfds:{name}")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        image, label = builder.info.supervised_keys or ("image", "label")
        splits = {s: builder.as_data_source(split=s) for s in ("train", "test")}
    except tfds.core.DatasetNotFoundError:
        where = "in the default folder" if data_dir is None else f"in {data_dir}"
        raise ValueError(
            f"data: tfds:{name} is no dataset that is known or prepared {where}"
        ) from None
    except Exception as e:
        # tfds raises anything from ValueError to AttributeError here.
        raise ValueError(f"data: tfds:{name} could not be opened: {e}") from e
    arrays = {}
    for split, examples in splits.items():
        pairs = [(example[image], example[label]) for example in examples]
        arrays[f"x_{split}"] = np.stack([x for x, _ in pairs])
        arrays[f"y_{split}"] = np.asarray([y for _, y in pairs])
    return arrays


def _standardise(
    source: str, arrays: dict[str, np.ndarray], mean: float | None, std: float | None
) -> Dataset:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim < 2 or y.shape != x.shape[:1] or not x.size:
            raise ValueError(
                f"data: {source} has x_{part} of shape {x.shape} and y_{part} of shape "
                f"{y.shape}, one label an image wanted"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise ValueError(
                f"data: {source} has y_{part} of {y.dtype} from {y.min()}, integers "
                "from 0 wanted"
            )
        if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
            raise ValueError(
                f"data: {source} has x_{part} of {x.dtype}, bytes or floats wanted"
            )
        if not np.all(np.isfinite(x)):
            raise ValueError(f"data: {source} has NaN or infinite pixels in x_{part}")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise ValueError(
            f"data: {source} has images of {arrays['x_train'].shape[1:]} to train and "
            f"of {arrays['x_test'].shape[1:]} to test"
        )
    classes = int(arrays["y_train"].max()) + 1
    if arrays["y_test"].max() >= classes:
        raise ValueError(
            f"data: {source} has label {arrays['y_test'].max()} to test, and only 0 to "
            f"{classes - 1} to train"
        )
    x_train, x_test = _unit(arrays["x_train"]), _unit(arrays["x_test"])
    if mean is None:
        mean = round(float(np.mean(x_train, dtype=np.float64)), 4)
    if std is None:
        std = round(float(np.std(x_train, dtype=np.float64)), 4)
    if not math.isfinite(mean) or not 0 < std < math.inf:
        raise ValueError(
            f"data: {source} has pixels of mean {mean} and deviation {std}"
        )
    return Dataset(
        name=source,
        x_train=_centred(x_train, mean, std),
        y_train=arrays["y_train"].astype(np.int32),
        x_test=_centred(x_test, mean, std),
        y_test=arrays["y_test"].astype(np.int32),
        classes=classes,
        mean=mean,
        std=std,
    )


def _unit(x: np.ndarray) -> np.ndarray:
    """Copy; bring bytes to [0, 1], and take floats as they are."""
    unit = x.astype(np.float32)
    if x.dtype == np.uint8:
        unit /= np.float32(255)
    return unit


def _centred(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Standardise in place: MNIST twice over would be the peak of a whole run."""
    x -= np.float32(mean)
    x /= np.float32(std)
    return x
