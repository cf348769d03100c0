"""Wanda against its formula."""

import jax.numpy as jnp
import network
import numpy as np
import pytest
from layer_problems import draw, setting
from problems import solve

from swapjax import wanda
from swapjax.activations.layer import Layer
from swapjax.pruning.methods.wanda import score

pytestmark = pytest.mark.usefixtures("x64")


def test_the_score_is_the_formula():
    problem, target = setting(sparsity=0.5, allocation="uniform")
    solution = solve(wanda(per_output=False), problem, target.budget)
    params, (x, _) = draw()
    hidden = network.hidden(params, x)
    for mask, w, read, before in zip(
        solution.masks, solution.weights, (x, hidden), problem.weights, strict=True
    ):
        norms = np.sqrt(np.mean(np.square(read), axis=0))
        scores = np.abs(before) * norms[:, None]
        kept = np.asarray(mask)
        assert scores[kept].min() > scores[~kept].max()
        assert (np.asarray(w)[kept] == np.asarray(before)[kept]).all()


def test_by_output_each_keeps_its_share():
    problem, target = setting(sparsity=0.5, allocation="uniform")
    solution = solve(wanda(), problem, target.budget)
    for mask in solution.masks:
        assert (mask.sum(axis=0) == mask.shape[0] // 2).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_output_the_score_is_the_rank_of_a_stable_sort(dtype):
    draw = np.random.default_rng(0).standard_normal
    leaf = draw((300, 5)).astype(dtype)
    leaf[::3] = leaf[:1]  # alike
    leaf[1::7] *= 1e-30
    leaf[5::11] = 0
    index = np.arange(leaf.size + 5, dtype=np.int32).reshape(1, 301, 5)
    index[0, 300] = -1  # fills up
    layer = Layer(jnp.eye(301, dtype=dtype)[None], jnp.asarray(index), filled=True)
    (found,) = score((jnp.asarray(leaf),), (layer,))
    order = np.argsort(np.abs(leaf), axis=0, kind="stable")
    np.testing.assert_allclose(found, np.argsort(order, axis=0) / 300, rtol=1e-6)
