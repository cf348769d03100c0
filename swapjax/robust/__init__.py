"""Training and testing where inputs are attacked or labels are wrong."""

from swapjax.robust.adversarial import alp, mart, pgd_at, trades
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
from swapjax.robust.inner import Options
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
    "Hypersphere",
    "Options",
    "Scaled",
    "alp",
    "cosine_apply",
    "cosines",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "fast_at",
    "fgsm",
    "free_at",
    "he_loss",
    "margin",
    "mart",
    "on_sphere",
    "pgd",
    "pgd_at",
    "project_columns",
    "stop_at_collapse",
    "trades",
    "watch_robustness",
]
