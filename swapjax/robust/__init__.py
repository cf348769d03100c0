"""Training and testing where inputs are attacked or labels are wrong."""

from swapjax.robust.apgd import apgd
from swapjax.robust.evaluate import evaluate
from swapjax.robust.evaluation import Attempt, Evaluation
from swapjax.robust.objectives import (
    OBJECTIVES,
    Scaled,
    cross_entropy,
    dlr,
    dlr_targeted,
    margin,
    margin_targeted,
)
from swapjax.robust.pgd import fgsm, pgd
from swapjax.robust.square import square
from swapjax.robust.suite import Attack

__all__ = [
    "OBJECTIVES",
    "Attack",
    "Attempt",
    "Evaluation",
    "Scaled",
    "apgd",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "evaluate",
    "fgsm",
    "margin",
    "margin_targeted",
    "pgd",
    "square",
]
