"""The wrong labels that swapjax train is asked for, and what was learnt of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import robust
from swapjax.cli.robust_options import Against
from swapjax.core.types import Params
from swapjax.corruptions import LABEL_MAPS, flip_labels
from swapjax.experiments.datasets import Dataset
from swapjax.experiments.runner import Setting
from swapjax.robust.memorized import outputs_in_parts

_LABELS = 2**31 + 1  # folded into the key of the seed; its halves serve for the rest
_LEARNT = ("fitted", "memorized", "recovered")
_LOPSIDED = 2.0  # times its true share, of the class predicted most


class WrongLabels(NamedTuple):
    """The labels of a training set, some of them wrong.

    Attributes:
        noisy: what is trained on.
        flipped: where they are wrong.
        right: the true ones.
    """

    noisy: np.ndarray
    flipped: np.ndarray
    right: np.ndarray


def wrong_labels(options: Against, data: Dataset, seed: int) -> WrongLabels | None:
    """Flip labels as asked for; the same ones for the same seed.

    Args:
        options: of the command.
        data: of which the training labels are flipped.
        seed: of the run.

    Raises:
        ValueError: for classes that the data do not have.
    """
    noise = options.noise
    if noise is None:
        return None
    key = jax.random.fold_in(jax.random.key(seed), _LABELS)
    kind: Any = LABEL_MAPS.get(noise.kind, noise.kind)
    if isinstance(kind, Mapping) and max(*kind, *kind.values()) >= data.classes:
        raise ValueError(
            f"--label-noise {noise.kind} takes classes up to "
            f"{max(*kind, *kind.values())} for others, got data of {data.classes} "
            "classes"
        )
    noisy, flipped = flip_labels(
        key, data.y_train, noise.rate, classes=data.classes, kind=kind, exact=True
    )
    return WrongLabels(np.asarray(noisy), np.asarray(flipped), data.y_train)


def learnt(
    options: Against,
    setting: Setting,
    labels: WrongLabels | None,
    params: Params,
    accuracies: Sequence[float],
) -> dict[str, Any]:
    """Return what the report tells of wrong labels; nothing where all are right.

    Args:
        options: of the command.
        setting: network and data.
        labels: of training.
        params: trained.
        accuracies: on the test set, epoch by epoch; none of levels of lottery, whose
            sparsity differs.
    """
    if labels is None:
        return {}
    outputs = outputs_in_parts(setting.model.apply, params, setting.data.x_train)
    found = robust.memorization(outputs, *labels)
    fall = {}
    if accuracies:
        fall = {
            "best": max(accuracies),
            "best_to_last": robust.best_to_last(accuracies),
        }
    return {
        "labels": {
            "noise": options.label_noise,
            "flipped": int(labels.flipped.sum()),
            "examples": labels.flipped.size,
            **{name: found.get(name) for name in _LEARNT},
            **fall,
        }
    }


def lopsided(setting: Setting, params: Params) -> str:
    """Say where a network predicts one class far too often; else nothing.

    Args:
        setting: network and data.
        params: trained.
    """
    labels = setting.data.y_test
    outputs = outputs_in_parts(setting.model.apply, params, setting.data.x_test)
    most = float(robust.largest_class(jnp.asarray(outputs)))
    share = float(np.bincount(labels).max() / len(labels))
    if most <= min(_LOPSIDED * share, (1 + share) / 2):
        return ""
    return (
        f"{100 * most:.0f}% of the test set is put in one class, and no class has more "
        f"than {100 * share:.0f}%: training may have merged classes; a lower "
        "--learning-rate, another --loss or a wider --model may not"
    )
