"""The first moves of weights that grow, and what optimizers are told apart by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sparse_runs import QUICK

from swapjax import constant
from swapjax.training import masks_of, rigl, set_, sparse
from swapjax.training.second_moments import find_sizes

RATE, LATE = 1e-3, 400
SHAPE = (12, 10)


def moves(optimizer, rule, slopes):
    """How far weights move after they grow, over the learning rate: mean and most."""
    once = constant(LATE, LATE, every=1)
    tx = sparse(optimizer, rule, sparsity=0.5, schedule=once, key=jax.random.key(0))

    def step(carry, t):
        params, state = carry
        updates, state = tx.update({"kernel": slopes(t)}, state, params)
        kept = masks_of(state)["kernel"]
        return (optax.apply_updates(params, updates), state), (kept, updates["kernel"])

    @jax.jit(compiler_options=QUICK)
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(LATE + 20))[1]

    kept, updates = run({"kernel": jax.random.normal(jax.random.key(1), SHAPE)})
    grown = np.asarray(kept[LATE - 1] & ~kept[LATE - 2])
    assert grown.any()
    found = np.abs(np.asarray(updates))[LATE - 1 :, grown] / RATE
    return found.mean(axis=1).max(), found.max()


CASES = {
    "steady": lambda t: jax.random.normal(jax.random.key(2), SHAPE),
    "noisy": lambda t: jax.random.normal(
        jax.random.fold_in(jax.random.key(2), t), SHAPE
    ),
    "one sign": lambda t: jnp.abs(jax.random.normal(jax.random.key(2), SHAPE)) + 0.1,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "rule", [rigl(last=0.3), set_(anneal=False)], ids=lambda r: r.name
)
def test_moves_of_new_weights_stay_below_the_learning_rate(rule, name):
    mean, most = moves(optax.adam(RATE), rule, CASES[name])
    assert mean < 1.01
    assert most < 1.5


def test_an_optimizer_that_divides_by_the_last_second_moment():
    _, most = moves(optax.contrib.acprop(RATE), set_(anneal=False), CASES["noisy"])
    assert most < 4


def test_what_measures_the_size_of_gradients():
    params = {"kernel": jnp.ones((4, 3)), "steps": jnp.arange(2)}

    def found(optimizer):
        kernels = {"kernel": params["kernel"]}
        paths = jax.tree_util.tree_flatten_with_path(optimizer.init(kernels))[0]
        flags = find_sizes(optax.with_extra_args_support(optimizer), kernels)
        return {
            path[-2].name for (path, _), flag in zip(paths, flags, strict=True) if flag
        }

    assert found(optax.adam(RATE)) == {"nu"}
    assert found(optax.amsgrad(RATE)) == {"nu", "nu_max"}
    assert found(optax.adadelta(RATE)) == {"e_g", "e_x"}
    assert found(optax.adagrad(RATE)) == {"sum_of_squares"}
    for momentum in (
        optax.sgd(RATE, momentum=0.9),
        optax.lion(RATE),
        optax.rprop(RATE),
    ):
        assert found(momentum) == set()
    assert find_sizes(optax.with_extra_args_support(optax.lbfgs()), params) == []
