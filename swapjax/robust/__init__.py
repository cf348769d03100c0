"""Training and testing where inputs are attacked or labels are wrong."""

from swapjax.robust import label_losses
from swapjax.robust.apgd import apgd
from swapjax.robust.label_table import (
    LABEL_LOSSES,
    LABEL_SETTINGS,
    SPARSE_SETTINGS,
    Sparse,
)
from swapjax.robust.memorization import (
    NoisyLabels,
    best_to_last,
    class_shares,
    largest_class,
    memorization,
)
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
from swapjax.robust.sparse_regularization import (
    lp_penalty,
    sharpen,
    sparse_regularized,
)
from swapjax.robust.square import square
from swapjax.robust.supervised import negative_learning, supervised

__all__ = [
    "LABEL_LOSSES",
    "LABEL_SETTINGS",
    "OBJECTIVES",
    "SPARSE_SETTINGS",
    "NoisyLabels",
    "Scaled",
    "Sparse",
    "apgd",
    "best_to_last",
    "class_shares",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "fgsm",
    "label_losses",
    "largest_class",
    "lp_penalty",
    "margin",
    "margin_targeted",
    "memorization",
    "negative_learning",
    "pgd",
    "sharpen",
    "sparse_regularized",
    "square",
    "supervised",
]
