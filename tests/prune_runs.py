"""Runs of `prune` with the small network."""

import jax
import network
import numpy as np

import swapjax

KEY = jax.random.key(0)
LR = swapjax.linear_regression()


def setting():
    """Params, and 200 examples that they nearly fit."""
    params = network.make(1, hidden=10, outputs=3)
    x, _ = network.data(200, 1)
    return params, (np.asarray(x), np.asarray(network.apply(params, x)) + 0.1)


def prune(problem, **options):
    """Prune params and data by linear regression to a sparsity of 0.8."""
    params, data = problem
    goal = {} if "plan" in options else {"sparsity": 0.8}
    defaults = {**goal, "method": LR, "samples": 60, "key": KEY}
    return swapjax.prune(network.loss_fn, params, data, **{**defaults, **options})
