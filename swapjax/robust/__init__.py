"""Training and testing where inputs are attacked or labels are wrong."""

from swapjax.robust import label_losses
from swapjax.robust.adversarial import alp, mart, pgd_at, trades
from swapjax.robust.apgd import apgd
from swapjax.robust.evaluate import evaluate
from swapjax.robust.evaluation import Attempt, Evaluation
from swapjax.robust.fast import fast_at, stop_at_collapse, watch_robustness
from swapjax.robust.free import free_at
from swapjax.robust.hypersphere import (
    Hypersphere,
    cosine_apply,
    cosines,
    he_loss,
    on_sphere,
    project_columns,
)
from swapjax.robust.inner import FrameworkOptions
from swapjax.robust.label_objective import LABEL_OBJECTIVES, label_objective
from swapjax.robust.label_table import (
    LABEL_LOSSES,
    LABEL_SETTINGS,
    SPARSE_SETTINGS,
    SparseRegularization,
)
from swapjax.robust.memorized import (
    NoisyLabels,
    best_to_last,
    class_shares,
    largest_class,
    memorization,
)
from swapjax.robust.negative_learning import negative_learning
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
from swapjax.robust.suite import Attack
from swapjax.robust.supervised import supervised

__all__ = [
    "LABEL_LOSSES",
    "LABEL_OBJECTIVES",
    "LABEL_SETTINGS",
    "OBJECTIVES",
    "SPARSE_SETTINGS",
    "Attack",
    "Attempt",
    "Evaluation",
    "FrameworkOptions",
    "Hypersphere",
    "NoisyLabels",
    "Scaled",
    "SparseRegularization",
    "alp",
    "apgd",
    "best_to_last",
    "class_shares",
    "cosine_apply",
    "cosines",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "evaluate",
    "fast_at",
    "fgsm",
    "free_at",
    "he_loss",
    "label_losses",
    "label_objective",
    "largest_class",
    "lp_penalty",
    "margin",
    "margin_targeted",
    "mart",
    "memorization",
    "negative_learning",
    "on_sphere",
    "pgd",
    "pgd_at",
    "project_columns",
    "sharpen",
    "sparse_regularized",
    "square",
    "stop_at_collapse",
    "supervised",
    "trades",
    "watch_robustness",
]
