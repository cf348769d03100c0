"""The public names, in groups; `swapjax` hands them on when one is asked for."""

# The names below stand in groups, which sorting would mix.
# isort: off

# Prune a trained network, or one that is yet to be trained: a driver, and its methods.
from swapjax.pruning.by_score import by_score
from swapjax.pruning.prune import prune
from swapjax.pruning.sequential.progress import Progress
from swapjax.pruning.history import Pruned, Stage
from swapjax.pruning.refit_ahead import Reconstructed, Refitted, reconstruct
from swapjax.core.types import Status
from swapjax.pruning.scan import sensitivity
from swapjax.pruning.sensitivities import Sensitivity
from swapjax.pruning.outliers import owl
from swapjax.sparsity.magnitude import magnitude_masks
from swapjax.pruning import methods as _methods
from swapjax.pruning.methods import *

# Train sparse: a wrapper for any Optax optimizer, its rules, and what stands beside it.
from swapjax.training.sparse import sparse
from swapjax.training.state import check_state, masks_of, until_mask_step
from swapjax.training.gsm import gsm
from swapjax.training.admm import admm
from swapjax.training.elsa import elsa
from swapjax.training.sharpness import sharpness_aware
from swapjax.training.lottery import lottery
from swapjax.training.plasticity import pruning_plasticity
from swapjax.training import rules as _rules
from swapjax.training.rules import *

# What to prune, how far, and when.
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planning import plan
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.unit_patterns import Block, Channel, Expert, Head
from swapjax.sparsity.schedules import (
    constant,
    cubic,
    exponential,
    geometric,
    linear,
    one_shot,
)

# What to do with masks.
from swapjax.sparsity.masks import apply_masks, churn, density, intersect

# What makes a pruned network smaller, and what it is worth where it runs.
from swapjax.deploy.shrink import shrink
from swapjax.deploy.shrunk import Shrunk
from swapjax.deploy.tied import tie_masks
from swapjax.deploy.whole_units import unit_masks
from swapjax.roles.ties import Ties, find_ties
from swapjax.deploy.reporting import Report, report

# A method or a rule of one's own.
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.training.rule import MaskStep, Rule
from swapjax.sparsity.budget import Budget, select

# A loss that returns more than a number, or that draws.
from swapjax.core.loss import Loss

# The gradients that methods learn from, and what happens between stages.
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise
from swapjax.gradients.harm import harm_in_batches
from swapjax.gradients.own_labels import own_labels
from swapjax.loops.finetune import FineTune
from swapjax.loops.batchnorm import recalibrate_batchnorm
from swapjax.loops.convolutions.canonical import canonical_convolutions

# Rooms of their own: `swapjax.corruptions`, what spoils data, labels and weights,
# `swapjax.robust`, training and testing where they are spoilt, `swapjax.backward`,
# back-propagation that leaves out what is small, and `swapjax.search`, architectures.
from swapjax import backward as backward
from swapjax import corruptions as corruptions
from swapjax import robust as robust
from swapjax import search as search

__all__ = [
    "NM",
    "Block",
    "Budget",
    "Channel",
    "Expert",
    "FineTune",
    "GradientNoise",
    "Head",
    "Layout",
    "Loss",
    "MaskStep",
    "Method",
    "Plan",
    "Problem",
    "Progress",
    "Pruned",
    "Reconstructed",
    "Refitted",
    "Report",
    "Rule",
    "Sensitivity",
    "Shrunk",
    "Solution",
    "Stage",
    "Status",
    "Ties",
    "admm",
    "apply_masks",
    "by_score",
    "canonical_convolutions",
    "check_state",
    "churn",
    "constant",
    "cubic",
    "density",
    "elsa",
    "exponential",
    "find_ties",
    "geometric",
    "gsm",
    "harm_in_batches",
    "intersect",
    "linear",
    "lottery",
    "magnitude_masks",
    "masks_of",
    "one_shot",
    "owl",
    "own_labels",
    "per_example_gradients",
    "plan",
    "prune",
    "pruning_plasticity",
    "recalibrate_batchnorm",
    "reconstruct",
    "report",
    "select",
    "sensitivity",
    "sharpness_aware",
    "shrink",
    "sparse",
    "tie_masks",
    "unit_masks",
    "until_mask_step",
]
__all__ += _methods.__all__
__all__ += _rules.__all__
