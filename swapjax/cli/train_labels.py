"""The wrong labels that swapjax train is asked for, and what was learnt of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import robust
from swapjax.cli.robust_options import Against
from swapjax.cli.train_found import NOTHING, Found
from swapjax.core.types import Params
from swapjax.corruptions import LABEL_MAPS, flip_labels
from swapjax.experiments.datasets import Dataset
from swapjax.experiments.runner import Setting
from swapjax.robust.memorized import outputs_in_parts
from swapjax.training import Epoch, Level

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
    history: Sequence[Epoch] | Sequence[Level],
) -> Found:
    """Tell what was learnt of wrong labels; nothing where all are right.

    Args:
        options: of the command.
        setting: network and data.
        labels: of training.
        params: trained.
        history: of the run; levels of lottery, whose sparsity differs, have no best.
    """
    if labels is None:
        return NOTHING
    outputs = outputs_in_parts(setting.model.apply, params, setting.data.x_train)
    found = robust.memorization(outputs, *labels)
    accuracies = [
        part.accuracy
        for part in history
        if isinstance(part, Epoch) and part.accuracy is not None
    ]
    fall = {}
    if accuracies:
        fall = {
            "best": max(accuracies),
            "best_to_last": robust.best_to_last(accuracies),
        }
    flipped = int(labels.flipped.sum())
    told = {
        "noise": options.label_noise,
        "flipped": flipped,
        "examples": labels.flipped.size,
        **{name: found.get(name) for name in _LEARNT},
        **fall,
    }
    if not flipped:
        return Found({"labels": told})
    text = f"Of {flipped:,} flipped labels {found['memorized']:.2f}% are learnt as "
    text += f"they are, {found['recovered']:.2f}% as they were before"
    if fall:
        text += f"; test accuracy fell by {fall['best_to_last']:.2f} points from its "
        text += "best epoch"
    return Found({"labels": told}, shown=(f"{text}.",))


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
