"""Pruning after training, or before it, from gradients of the network as it is."""

from swapjax.oneshot.cbs import cbs
from swapjax.oneshot.chita import chita
from swapjax.oneshot.history import Stage
from swapjax.oneshot.obs import layerwise_obs, wanda
from swapjax.oneshot.problem import Method, Problem, Solution
from swapjax.oneshot.scored import grasp, magnitude, obd, random, saliency, snip
from swapjax.oneshot.stages import Pruned, prune
from swapjax.oneshot.swap import linear_regression, swap
from swapjax.oneshot.synflow import synflow
from swapjax.oneshot.woodfisher import woodfisher

__all__ = [
    "Method",
    "Problem",
    "Pruned",
    "Solution",
    "Stage",
    "cbs",
    "chita",
    "grasp",
    "layerwise_obs",
    "linear_regression",
    "magnitude",
    "obd",
    "prune",
    "random",
    "saliency",
    "snip",
    "swap",
    "synflow",
    "wanda",
    "woodfisher",
]
