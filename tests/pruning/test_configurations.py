"""Methods under settings of JAX that people turn on to look for their own faults."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest

import swapjax
from swapjax.activations.trace import find_products, join_layers
from swapjax.gradients.build import recipe
from swapjax.gradients.stored import StoredRows
from swapjax.pruning import Problem
from swapjax.pruning.methods import METHODS

KEY = jax.random.key(0)
_FREE = "obd", "linear-regression", "woodfisher"  # with matrix-free rows


def make(name):
    if name == "random":
        return swapjax.random(KEY)
    if name == "synflow":
        return swapjax.synflow(apply, (6,))
    return METHODS[name].factory()


def apply(params, x):
    kernels = [params[name]["kernel"].astype(x.dtype) for name in ("fc1", "fc2")]
    bias = params["fc1"]["bias"].astype(x.dtype)
    return jnp.tanh(x @ kernels[0] + bias[None, :]) @ kernels[1]


def loss_fn(params, batch):
    return jnp.mean(jnp.square(apply(params, batch[0]) - batch[1]))


def mixed(*dtypes):
    """Params of several dtypes: of the kernels, and of the bias."""
    params = network.make()
    first, bias, second = (jnp.dtype(d) for d in dtypes)
    kernel = params["fc1"]["kernel"].astype(first)
    return {
        "fc1": {"kernel": kernel, "bias": params["fc1"]["bias"].astype(bias)},
        "fc2": {"kernel": params["fc2"]["kernel"].astype(second)},
    }


@pytest.mark.parametrize("name", METHODS)
def test_methods_can_be_traced_where_all_is_strict(name, x64):
    """Strict promotion, float64 data and losses beside params of three dtypes."""
    method = make(name)
    params = mixed("float32", "float64", "bfloat16")
    data = tuple(np.asarray(d, np.float64) for d in network.data(8))
    target = swapjax.plan(params, 0.5)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        free = recipe(loss_fn, params, data, target)
        weights = target.layout.split(params)

        def solve(rows, weights):
            whole = {"params": params, "layout": target.layout}
            layers = None
            if method.needs_layers:
                one = jax.tree.map(lambda x: x[0], rows.data)
                paths = target.layout.paths
                found = find_products(
                    loss_fn, params, one, paths, one_by_one=False, batch=rows.batch
                )
                moments = [product.flat_moment() for product in found]
                layers = join_layers(params, paths, found, moments)
            rows = rows if name in _FREE else StoredRows(rows.store(), rows)
            problem = Problem(weights, weights, rows, layers=layers, **whole)
            return method(problem, target.budget)

        solution = jax.eval_shape(solve, free, weights)
    assert [w.dtype for w in solution.weights] == [w.dtype for w in weights]


@pytest.mark.parametrize(
    "config",
    [
        lambda: jax.disable_jit(),
        lambda: jax.debug_nans(True),
        lambda: jax.debug_infs(True),
        lambda: jax.check_tracer_leaks(True),
        lambda: jax.enable_custom_prng(True),
        lambda: jax.threefry_partitionable(False),
    ],
    ids=["disable_jit", "nans", "infs", "leaks", "custom_prng", "threefry"],
)
def test_methods_run_under_settings_for_debugging(config):
    params, data = network.make(), network.data(12)
    with config():
        for method in (swapjax.magnitude(), swapjax.obd(), swapjax.snip()):
            pruned = swapjax.prune(
                network.loss_fn, params, data, sparsity=0.5, method=method, samples=6,
                batch=2, key=jax.random.key(0),
            )  # fmt: skip
            assert pruned.history[0].kept == 36


def test_gram_matrices_of_rows_that_are_not_stored_do_without_jit():
    params, data = network.make(), network.data(6)
    rows = recipe(network.loss_fn, params, data, swapjax.plan(params, 0.5))
    with jax.disable_jit():
        found = rows.gram()
    np.testing.assert_allclose(found, rows.gram(), rtol=1e-5)
