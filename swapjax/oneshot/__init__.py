"""Pruning after training, from gradients of the trained network."""

from swapjax.oneshot.history import Stage
from swapjax.oneshot.obs import layerwise_obs, wanda
from swapjax.oneshot.problem import Method, Problem, Solution
from swapjax.oneshot.stages import Pruned, prune
from swapjax.oneshot.swap import linear_regression, magnitude, swap

__all__ = [
    "Method",
    "Problem",
    "Pruned",
    "Solution",
    "Stage",
    "layerwise_obs",
    "linear_regression",
    "magnitude",
    "prune",
    "swap",
    "wanda",
]
