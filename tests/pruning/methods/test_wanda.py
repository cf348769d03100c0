"""Wanda against its formula."""

import network
import numpy as np
import pytest
from layer_problems import draw, setting
from problems import solve

from swapjax import wanda

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
