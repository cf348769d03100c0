"""Pruning of neural networks in JAX, robust to noisy gradients."""

# Prune a trained network, or one that is yet to be trained.
from swapjax.core.types import Status
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise
from swapjax.loops.batchnorm import recalibrate_batchnorm
from swapjax.loops.finetune import FineTune
from swapjax.pruning import (
    Method,
    Problem,
    Pruned,
    Solution,
    Stage,
    cbs,
    chita,
    grasp,
    layerwise_obs,
    linear_regression,
    magnitude,
    obd,
    prune,
    random,
    saliency,
    snip,
    swap,
    synflow,
    wanda,
    woodfisher,
)

# What to do with masks, and what is told of a run.
from swapjax.sparsity.magnitude import magnitude_masks
from swapjax.sparsity.masks import apply_masks, churn, density, intersect

# What to prune, and how far, and when.
from swapjax.sparsity.patterns import NM, Block
from swapjax.sparsity.plan import Plan, plan
from swapjax.sparsity.schedules import (
    constant,
    cubic,
    exponential,
    geometric,
    linear,
    one_shot,
)

# Train sparse.
from swapjax.training import (
    acdc,
    check_state,
    gmp,
    granet,
    granet_st,
    gsm,
    lottery,
    masks_of,
    pruning_plasticity,
    rigl,
    set_,
    sparse,
    static,
    ste,
)

__all__ = [
    "NM",
    "Block",
    "FineTune",
    "GradientNoise",
    "Method",
    "Plan",
    "Problem",
    "Pruned",
    "Solution",
    "Stage",
    "Status",
    "acdc",
    "apply_masks",
    "cbs",
    "check_state",
    "chita",
    "churn",
    "constant",
    "cubic",
    "density",
    "exponential",
    "geometric",
    "gmp",
    "granet",
    "granet_st",
    "grasp",
    "gsm",
    "intersect",
    "layerwise_obs",
    "linear",
    "linear_regression",
    "lottery",
    "magnitude",
    "magnitude_masks",
    "masks_of",
    "obd",
    "one_shot",
    "per_example_gradients",
    "plan",
    "prune",
    "pruning_plasticity",
    "random",
    "recalibrate_batchnorm",
    "rigl",
    "saliency",
    "set_",
    "snip",
    "sparse",
    "static",
    "ste",
    "swap",
    "synflow",
    "wanda",
    "woodfisher",
]
