"""Objectives for noisy labels by name, with what their authors set."""

from typing import Any

from swapjax.core.objective import Objective
from swapjax.robust.inputs import Apply
from swapjax.robust.label_table import LABEL_LOSSES, LABEL_SETTINGS, SPARSE_SETTINGS
from swapjax.robust.negative_learning import negative_learning
from swapjax.robust.sparse_regularization import sparse_regularized
from swapjax.robust.supervised import supervised

_SPARSE = "sr-"
LABEL_OBJECTIVES: tuple[str, ...] = (
    *LABEL_LOSSES,
    "nlnl",
    *(_SPARSE + name for name in SPARSE_SETTINGS["mnist"]),
)
"""The names that `label_objective` takes."""


def label_objective(
    name: str,
    apply: Apply,
    *,
    data: str = "mnist",
    steps: int | None = None,
    counts: Any = None,
    asymmetric: bool = False,
) -> Objective:
    """Make an objective for noisy labels with the settings of its authors.

    Args:
        name: of `LABEL_LOSSES`; ``"nlnl"`` for `negative_learning`; or ``"sr-ce"``,
            ``"sr-fl"`` and ``"sr-gce"`` for `sparse_regularized`.
        apply: ``(params, images) -> logits [n, K]``, as in training.
        data: whose settings to take, of `LABEL_SETTINGS`.
        steps: of the run, for sparse regularisation, whose weight grows as often as in
            the authors' run.
        counts: how many examples have each label, [K]; for ``"nlnl"`` alone.
        asymmetric: whether labels are wrong by classes, against which the authors set
            another weight of sparse regularisation on ``"cifar100"``.

    Raises:
        ValueError: for a name or data that are not known, and missing steps or counts.
    """
    for what, given, known in (
        ("name", name, LABEL_OBJECTIVES),
        ("data", data, LABEL_SETTINGS),
    ):
        if given not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {given!r}")
    if name == "nlnl":
        if counts is None:
            raise ValueError(
                "counts: nlnl weighs classes by them, give those of labels"
            )
        return negative_learning(apply, counts)
    if not name.startswith(_SPARSE):
        settings = LABEL_SETTINGS[data].get(name, {})
        return supervised(apply, LABEL_LOSSES[name](**settings))
    if steps is None:
        raise ValueError(
            f"steps: the weight of {name} grows along the run, give the steps it has"
        )
    row = SPARSE_SETTINGS[data][name.removeprefix(_SPARSE)]
    return sparse_regularized(
        apply,
        LABEL_LOSSES[row.loss](**row.settings),
        **row.arguments(steps, asymmetric=asymmetric),
    )
