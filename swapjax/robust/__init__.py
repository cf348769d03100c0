"""Training and testing where inputs are attacked or labels are wrong."""

from swapjax.robust.objectives import (
    OBJECTIVES,
    Scaled,
    cross_entropy,
    dlr,
    dlr_targeted,
    margin,
)
from swapjax.robust.pgd import fgsm, pgd

__all__ = [
    "OBJECTIVES",
    "Scaled",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "fgsm",
    "margin",
    "pgd",
]
