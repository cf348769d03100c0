"""Pruning after training, or before it, from gradients of the network as it is."""

from swapjax.pruning import methods
from swapjax.pruning.by_score import by_score
from swapjax.pruning.history import Pruned, Stage
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.pruning.methods import *
from swapjax.pruning.outliers import owl
from swapjax.pruning.prune import prune
from swapjax.pruning.scan import sensitivity
from swapjax.pruning.sensitivities import Sensitivity

__all__ = [
    "Method",
    "Problem",
    "Pruned",
    "Sensitivity",
    "Solution",
    "Stage",
    "by_score",
    "owl",
    "prune",
    "sensitivity",
    *methods.__all__,
]
