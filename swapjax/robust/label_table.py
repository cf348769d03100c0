"""The losses for noisy labels by name, and what their authors set on which data."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from swapjax.core.checks import require_count
from swapjax.robust import label_losses as losses
from swapjax.robust.label_losses import LabelLoss


def _sce(alpha: float = 1.0, beta: float = 1.0) -> LabelLoss:
    return losses.weighted_sum(losses.ce(), losses.rce(), alpha, beta)


def _nce_rce(alpha: float = 1.0, beta: float = 1.0) -> LabelLoss:
    return losses.weighted_sum(losses.nce(), losses.rce(), alpha, beta)


def _nce_mae(alpha: float = 1.0, beta: float = 1.0) -> LabelLoss:
    return losses.weighted_sum(losses.nce(), losses.mae(), alpha, beta)


def _nfl_rce(alpha: float = 1.0, beta: float = 1.0, gamma: float = 0.5) -> LabelLoss:
    return losses.weighted_sum(losses.nfl(gamma), losses.rce(), alpha, beta)


def _ece_mae(
    alpha: float = 0.01, beta: float = 5.0, m: float = 1e5, floor: float = 1e-8
) -> LabelLoss:
    first = losses.epsilon_softmax(m, floor=floor)
    return losses.weighted_sum(first, losses.mae(), alpha, beta)


def _efl_mae(
    alpha: float = 0.01,
    beta: float = 5.0,
    m: float = 1e5,
    gamma: float = 0.1,
    floor: float = 1e-8,
) -> LabelLoss:
    first = losses.epsilon_softmax(m, gamma, floor)
    return losses.weighted_sum(first, losses.mae(), alpha, beta)


LABEL_LOSSES: Mapping[str, Callable[..., LabelLoss]] = MappingProxyType(
    {
        "ce": losses.ce,
        "fl": losses.focal,
        "gce": losses.gce,
        "sce": _sce,
        "rce": losses.rce,
        "mae": losses.mae,
        "nce": losses.nce,
        "nfl": losses.nfl,
        "ngce": losses.ngce,
        "nce+rce": _nce_rce,
        "nce+mae": _nce_mae,
        "nfl+rce": _nfl_rce,
        "aul": losses.aul,
        "agce": losses.agce,
        "ece": losses.epsilon_softmax,
        "ece+mae": _ece_mae,
        "efl+mae": _efl_mae,
    }
)
"""Factories of losses ``(logits [n, K], labels [n]) -> float [n]``, by name.

``"sce"`` is ``alpha ce + beta rce`` (Wang et al., ICCV 2019, arXiv:1908.06112); names
with a plus are such sums too; ``"ece"`` and ``"efl"`` are cross-entropy and focal loss
of an ε-softmax. The others are in `swapjax.robust.label_losses`.
"""


class SparseRegularization(NamedTuple):
    """Settings of `swapjax.robust.sparse_regularized`, growth by epochs.

    Attributes:
        loss: of `LABEL_LOSSES`.
        settings: of the loss.
        tau: the temperature.
        p: the exponent.
        weight: of the penalty in the first epoch, against symmetric noise.
        growth: what it is multiplied by.
        epochs: after how many each time.
        run: how many epochs the authors train for.
        normalize: whether logits are divided by their norms.
        asymmetric_weight: of the penalty in the first epoch, against asymmetric noise.
    """

    loss: str
    settings: Mapping[str, float]
    tau: float
    p: float
    weight: float
    growth: float
    epochs: int
    run: int
    normalize: bool
    asymmetric_weight: float

    def arguments(self, steps: int, *, asymmetric: bool = False) -> dict[str, Any]:
        """Return what `sparse_regularized` takes by name for a run of another length.

        Args:
            steps: of the run. The weight grows as often as in the authors' run, at
                ``floor(step * times / steps)`` evenly.
            asymmetric: whether labels are wrong by classes, instead of at random.

        Raises:
            ValueError: for fewer steps than 1.
        """
        require_count("steps", steps)
        return {
            "tau": self.tau,
            "p": self.p,
            "weight": self.asymmetric_weight if asymmetric else self.weight,
            "growth": self.growth,
            "every": int(steps),
            "times": self.run // self.epochs,
            "normalize": self.normalize,
        }


_PAIRS = ("nce+rce", "nce+mae", "nfl+rce")


def _settings(
    sce: tuple[float, float],
    pairs: tuple[float, float],
    asymmetric: dict[str, tuple[float, float]],
    epsilon: tuple[float, float, float] | None,
) -> Mapping[str, Mapping[str, float]]:
    """Make settings by loss; losses that are left out have their defaults."""
    two = ("alpha", "beta")
    found: dict[str, dict[str, Any]] = {"sce": dict(zip(two, sce, strict=True))}
    found |= {name: dict(zip(two, pairs, strict=True)) for name in _PAIRS}
    found |= {
        name: dict(zip(("a", "q"), values, strict=True))
        for name, values in asymmetric.items()
    }
    if epsilon is not None:
        values = dict(zip((*two, "m"), epsilon, strict=True))
        found |= {"ece+mae": values, "efl+mae": values, "ece": {"m": epsilon[-1]}}
    return MappingProxyType(found)


LABEL_SETTINGS: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "mnist": _settings(
            (1.0, 1.0), (1.0, 100.0), {"aul": (3.0, 0.1), "agce": (4.0, 0.2)}, None
        ),
        "cifar10": _settings(
            (0.1, 1.0), (1.0, 1.0), {"aul": (5.5, 3.0), "agce": (0.6, 0.6)},
            (0.01, 5.0, 1e5),
        ),
        "cifar100": _settings(
            (6.0, 0.1), (10.0, 1.0), {"aul": (5.5, 3.0), "agce": (0.6, 0.6)},
            (0.03, 1.0, 1e4),
        ),
    }
)  # fmt: skip
"""What the authors set, by data and loss, as arguments of the factories.

Of sparse regularisation's authors for ``"sce"`` and the pairs, of their own authors
for ``"aul"``, ``"agce"`` and ``"ece+mae"``, the last for symmetric noise, on CIFAR-100
at the rate 0.4; nothing is known of it on MNIST. Defaults are meant elsewhere.
"""

_RUNS = {"mnist": 50, "cifar10": 120, "cifar100": 200}
_BASES = ("ce", "fl", "gce")
_GCE = {"mnist": 0.01, "cifar10": 0.01, "cifar100": 0.001}
_SPARSE: dict[str, tuple[float, float, float, float, int]] = {
    "mnist": (0.1, 0.1, 4.0, 2.0, 5),
    "cifar10": (0.5, 0.1, 1.2, 1.03, 1),
    "cifar100": (0.5, 0.01, 4.0, 1.02, 1),
}
_ASYMMETRIC = {"cifar100": 10.0}  # weights of the penalty, elsewhere those above


def _sparse(data: str, loss: str) -> SparseRegularization:
    values = _SPARSE[data]
    if (data, loss) == ("mnist", "gce"):
        values = (0.5, 0.1, 3.0, 2.0, 5)
    settings = {"q": _GCE[data]} if loss == "gce" else {}
    return SparseRegularization(
        loss, settings, *values, run=_RUNS[data], normalize=data != "mnist",
        asymmetric_weight=_ASYMMETRIC.get(data, values[2]),
    )  # fmt: skip


SPARSE_SETTINGS: Mapping[str, Mapping[str, SparseRegularization]] = MappingProxyType(
    {
        data: MappingProxyType({loss: _sparse(data, loss) for loss in _BASES})
        for data in _SPARSE
    }
)
"""What its authors set for sparse regularisation, by data and base loss.

Runs of 120 epochs on CIFAR-10 are those of their script for imbalanced classes.
"""
