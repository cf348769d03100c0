"""Pruning after training, or before it, from gradients of the network as it is."""

from swapjax.pruning import methods
from swapjax.pruning.by_score import by_score
from swapjax.pruning.history import Pruned, Stage
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.pruning.methods import *
from swapjax.pruning.prune import prune

__all__ = [
    "Method",
    "Problem",
    "Pruned",
    "Solution",
    "Stage",
    "by_score",
    "prune",
    *methods.__all__,
]
