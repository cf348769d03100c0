"""Datasets that were prepared with tensorflow-datasets."""

import re
from pathlib import Path

import numpy as np

from swapjax.core import extras
from swapjax.core.text import printable, reason

# What tensorflow-datasets takes: namespace, name, configuration, version, options.
_NAME = re.compile(
    r"(\w[\w-]*:)?[A-Za-z]\w*(/(?!\w+=)[\w.+-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?(/\w+=.+)?",
    re.ASCII,
)


def load(name: str, data_dir: str | Path | None) -> dict[str, np.ndarray]:
    """Read the images and labels of the splits ``train`` and ``test``.

    Args:
        name: as tensorflow-datasets takes it.
        data_dir: where it keeps its files; None for the default.

    Returns:
        x_train, y_train, x_test and y_test.

    Raises:
        ValueError: for names that are none, and sets that are not prepared, cannot be
            read or lack these splits.
        ImportError: without tensorflow-datasets.
    """
    what = f"data: tfds:{printable(name)}"
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} is no name of a dataset, as mnist, mnist:3.0.1 or "
            "imagenet_resized/32x32 are"
        )
    extras.require("data", what)
    import tensorflow_datasets as tfds

    where = "in the default folder" if data_dir is None else f"in {data_dir}"
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        prepared = builder.data_path.exists()
        image, label = builder.info.supervised_keys or ("image", "label")
        arrays = {}
        for split in ("train", "test") if prepared else ():
            examples = builder.as_data_source(split=split)
            pairs = [(example[image], example[label]) for example in examples]
            arrays[f"x_{split}"] = np.stack([x for x, _ in pairs])
            arrays[f"y_{split}"] = np.asarray([y for _, y in pairs])
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"{what} is no dataset that is known or prepared {where}"
        ) from None
    except Exception as e:  # anything from ValueError to AttributeError, in many lines
        raise ValueError(f"{what} could not be opened: {reason(e)}") from e
    if not prepared:
        raise ValueError(f"{what} is known, but not prepared {where}")
    return arrays
