"""Layers as problems of their own, and what surgeons do to them by explicit loops."""

import jax
import jax.numpy as jnp
import network
import numpy as np

from swapjax import alps, layerwise_obs, plan, wanda
from swapjax.activations.layer import Layer
from swapjax.activations.trace import second_moments
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem

ONE = {"exclude": "fc2/kernel"}

METHODS = {
    "greedy": layerwise_obs(order="greedy"),
    "columns": layerwise_obs(order="columns", block=3, refit=False),
    "columns and re-fit": layerwise_obs(order="columns", block=3, refit=True),
    "alps": alps(),
    "fisher": layerwise_obs(weigh="fisher"),
    "wanda": wanda(per_output=False),
    "wanda by output": wanda(),
}


def draw(dtype="float64"):
    """The small network, and 40 examples whose inputs depend on each other."""
    keys = jax.random.split(jax.random.key(0), 5)
    mix = jax.random.normal(keys[3], (6, 6), dtype)
    x = jax.random.normal(keys[4], (40, 6), dtype) @ mix
    params = network.make(0, dtype, hidden=8, outputs=4)
    return params, (x, jnp.ones((40, 4), dtype))


def setting(dtype="float64", sparsity=0.5, within=None, **rules):
    """A problem of pruning that network layer by layer, and its plan."""
    params, data = draw(dtype)
    target = plan(params, sparsity, **rules)
    rows = per_example_gradients(network.loss_fn, params, data, target)
    weights = target.layout.split(params)
    layers = second_moments(network.loss_fn, params, data, target.layout.paths)
    return Problem(weights, weights, rows, within, layers), target


def single(inputs=8, outputs=3, seed=0, damping=0.01):
    """One layer as NumPy arrays: its damped Hessian, and its weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    moment = x.T @ x / len(x)
    weights = rng.normal(size=(inputs, outputs))
    hessian = moment + damping * np.trace(moment) / inputs * np.eye(inputs)
    return moment, hessian, weights


def problem_of(moment, weights):
    """A problem of one dense layer."""
    weights = jnp.asarray(weights)
    index = jnp.arange(weights.size, dtype=jnp.int32).reshape(1, *weights.shape)
    layer = Layer(jnp.asarray(moment)[None], index)
    return Problem((weights,), (weights,), layers=(layer,))


def fitted(hessian, wbar, kept):
    """The least-squares weights of one output on a support."""
    w = np.zeros_like(wbar)
    inside = hessian[np.ix_(kept, kept)]
    w[kept] = np.linalg.solve(inside, hessian[kept] @ wbar)
    return w


def rise(hessian, w, wbar):
    """How much the outputs of a layer move, squared."""
    return (w - wbar) @ hessian @ (w - wbar)


def obc(hessian, wbar, count=None):
    """Optimal Brain Compression of one output, with a fresh inverse at every step."""
    left, order, rises = list(range(len(wbar))), [], []
    for _ in range(len(wbar) if count is None else count):
        w = fitted(hessian, wbar, np.array(left))
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        costs = w[left] ** 2 / np.diag(inverse)
        best = int(np.argmin(costs))
        rises.append(costs[best])
        order.append(left.pop(best))
    return order, rises


def sparse_gpt(hessian, weights, mask):
    """SparseGPT with a given mask, with a fresh inverse at every column."""
    w = weights.copy()
    for j in range(len(w)):
        inverse = np.linalg.inv(hessian[j:, j:])
        lost = np.where(mask[j], 0, w[j])
        w[j:] -= np.outer(inverse[0], lost / inverse[0, 0])
        w[j] = np.where(mask[j], w[j], 0)
    return w
