"""Training and testing where inputs are attacked or labels are wrong."""

from swapjax.robust.apgd import apgd
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

__all__ = [
    "OBJECTIVES",
    "Scaled",
    "apgd",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "fgsm",
    "margin",
    "margin_targeted",
    "pgd",
    "square",
]
