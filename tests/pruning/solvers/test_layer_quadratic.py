"""The damped Hessian of a layer, its factor and what a removal costs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import fitted, rise, single

from swapjax.pruning.solvers import layer_quadratic

pytestmark = pytest.mark.usefixtures("x64")


def test_the_factor_of_the_inverse():
    moment, hessian, _ = single(7)
    system = layer_quadratic.damp(jnp.asarray(moment)[None], 0.01)
    np.testing.assert_allclose(system.hessian[0], hessian, rtol=1e-12)
    root = np.asarray(system.root[0])
    assert not np.tril(root, -1).any()
    for j in range(7):
        np.testing.assert_allclose(
            root[j:, j:].T @ root[j:, j:], np.linalg.inv(hessian[j:, j:]), rtol=1e-7
        )


def test_removing_one_costs_its_saliency():
    moment, hessian, weights = single(5, 2)
    root = layer_quadratic.damp(jnp.asarray(moment)[None], 0.01).root
    saliency = layer_quadratic.saliency(root, jnp.asarray(weights)[None])[0]
    for q, o in itertools.product(range(5), range(2)):
        wbar = weights[:, o]
        w = fitted(hessian, wbar, np.delete(np.arange(5), q))
        np.testing.assert_allclose(saliency[q, o], rise(hessian, w, wbar))
