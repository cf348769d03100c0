"""Pruning after training, from gradients of the trained network."""

from swapjax.oneshot.cbs import cbs
from swapjax.oneshot.chita import chita
from swapjax.oneshot.history import Stage
from swapjax.oneshot.obs import layerwise_obs, wanda
from swapjax.oneshot.problem import Method, Problem, Solution
from swapjax.oneshot.scored import magnitude, obd, saliency
from swapjax.oneshot.stages import Pruned, prune
from swapjax.oneshot.swap import linear_regression, swap
from swapjax.oneshot.woodfisher import woodfisher

__all__ = [
    "Method",
    "Problem",
    "Pruned",
    "Solution",
    "Stage",
    "cbs",
    "chita",
    "layerwise_obs",
    "linear_regression",
    "magnitude",
    "obd",
    "prune",
    "saliency",
    "swap",
    "wanda",
    "woodfisher",
]
