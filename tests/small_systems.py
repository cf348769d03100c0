"""Rows, weights and metrics small enough for dense algebra in float64."""

import jax.numpy as jnp
import numpy as np

from swapjax.pruning.solvers import sinkhorn

N, P = 8, 12


def problem(seed=0):
    rng = np.random.default_rng(seed)
    g, wbar = rng.normal(size=(N, P)), rng.normal(size=P)
    return jnp.asarray(g), jnp.asarray(wbar)


def metrics(seed=0):
    """The three kinds of M: the identity, a diagonal, a plan."""
    a = np.random.default_rng(seed).uniform(0.5, 1.5, N)
    y = jnp.asarray(np.random.default_rng(seed + 1).normal(size=N))
    plan = sinkhorn.self_plan(y, 0.3, threshold=1e-12).plan
    return {"identity": None, "diagonal": jnp.asarray(a), "plan": N * plan}


def dense(metric):
    if metric is None:
        return np.eye(N)
    return np.diag(metric) if metric.ndim == 1 else np.asarray(metric)
