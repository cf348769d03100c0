"""Pruning after training, or before it, from gradients of the network as it is."""

from swapjax.pruning.history import Pruned, Stage
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.pruning.methods.by_score import (
    grasp,
    magnitude,
    obd,
    random,
    saliency,
    snip,
)
from swapjax.pruning.methods.cbs import cbs
from swapjax.pruning.methods.chita import chita
from swapjax.pruning.methods.layerwise_obs import layerwise_obs, wanda
from swapjax.pruning.methods.swap import linear_regression, swap
from swapjax.pruning.methods.synflow import synflow
from swapjax.pruning.methods.woodfisher import woodfisher
from swapjax.pruning.prune import prune

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
