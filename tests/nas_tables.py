"""A file of tables of architectures, each of a row or two."""

import numpy as np

OPS = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
DARTS = [
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
    *("dil_conv_3x3", "dil_conv_5x5"),
]
PARTS = ("test", "val")
CELL = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|"


_LATER = np.array([[65, 51, 90], [57, 52, 91]])


def arrays():
    """Two cells after 12 epochs, two after 200, an architecture of DARTS."""
    return {
        "ops": np.array(OPS),
        "edges": np.array([[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]], np.int8),
        "nb201_all_ops": np.array([[0, 0, 0, 0, 0, 1], [3, 0, 4, 1, 0, 0]], np.int8),
        "nb201_all_accuracy_12_epochs": np.array(
            [[10, 11, 20, 21, 30, 31], [40, 41, 50, 51, 60, 61]], np.float32
        ),
        "nb201_all_columns": np.array(
            [f"{d}-{p}" for d in ("cifar10", "cifar100", "imagenet") for p in PARTS]
        ),
        "columns": np.array(["flops", "params", "val_accuracy"]),
        "nb201_ops": np.array([[3, 0, 4, 1, 0, 0], [2, 2, 2, 2, 2, 2]], np.int8),
        "nb201_values": np.array([_LATER, _LATER - 20, _LATER - 50], np.float32),
        "nb201_datasets": np.array(["cifar10", "cifar100", "ImageNet16-120"]),
        "darts_ops": np.array(DARTS),
        "darts_cells": np.array(
            [[[[1, 3], [0, 0], [0, 2], [2, 3], [1, 1], [3, 6], [0, 0], [4, 5]]] * 2],
            np.int8,
        ),
        "darts_values": np.array([[100, 2, 94.5]], np.float32),
    }  # fmt: skip
