"""Pruning of neural networks in JAX, robust to noisy gradients."""

# Prune a trained network, or one that is yet to be trained.
from swapjax.calibrate import recalibrate_batchnorm
from swapjax.finetune import FineTune
from swapjax.gradients import per_example_gradients

# What to do with masks, and what is told of a run.
from swapjax.masks import apply_masks, churn, density, intersect
from swapjax.noise import GradientNoise
from swapjax.oneshot import (
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

# What to prune, and how far, and when.
from swapjax.patterns import NM
from swapjax.plan import Plan, plan
from swapjax.schedules import cubic, exponential, geometric, linear, one_shot
from swapjax.types import Status

__all__ = [
    "NM",
    "FineTune",
    "GradientNoise",
    "Method",
    "Plan",
    "Problem",
    "Pruned",
    "Solution",
    "Stage",
    "Status",
    "apply_masks",
    "cbs",
    "chita",
    "churn",
    "cubic",
    "density",
    "exponential",
    "geometric",
    "grasp",
    "intersect",
    "layerwise_obs",
    "linear",
    "linear_regression",
    "magnitude",
    "obd",
    "one_shot",
    "per_example_gradients",
    "plan",
    "prune",
    "random",
    "recalibrate_batchnorm",
    "saliency",
    "snip",
    "swap",
    "synflow",
    "wanda",
    "woodfisher",
]
