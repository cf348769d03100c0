"""What ADMM and ELSA refuse, and what they tell afterwards."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from sparse_runs import gradients, initial

import swapjax
from swapjax.training import AdmmState, admm, check_state, elsa


def test_broken_gradients_are_told():
    tx = admm(optax.sgd(0.1), sparsity=0.5, steps=2, every=1)
    params = initial()
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    _, state = tx.update(broken, tx.init(params), params)
    with pytest.raises(ValueError, match="fc1/kernel, fc2/kernel: Something became"):
        check_state(state)


@pytest.mark.parametrize("make", [admm, elsa])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": 0.1}, "optimizer must be an Optax transformation, such as"),
        ({"sparsity": None}, "sparsity or plan: give one of the two, got neither"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"every": 0}, "every must be 1 or more, got 0"),
        ({"penalty": -1.0}, "penalty must be a number, 0 or more, or a schedule of Op"),
        ({"penalty": math.nan}, "penalty must be a number, .* got nan"),
        ({"penalty": "1e-3"}, "penalty must be a number, .* got '1e-3'"),
        ({"penalty": True}, "penalty must be a number, .* got True"),
    ],
    ids=str,
)
def test_bad_arguments(make, options, message):
    given = {"optimizer": optax.adam(0.1), "sparsity": 0.5, "steps": 10} | options
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_what_its_functions_ask_for():
    params, (gradient,) = initial(), gradients(1)
    tx = admm(optax.sgd(0.1), sparsity=0.5, steps=2)
    state = tx.init(params)
    assert isinstance(state, AdmmState)
    with pytest.raises(ValueError, match="params: admm needs them"):
        tx.update(gradient, state)
    with pytest.raises(ValueError, match="state: must be what tx"):
        tx.update(gradient, optax.EmptyState(), params)
    wrong = gradient | {"fc2": {"kernel": jnp.ones((3, 3))}}
    with pytest.raises(ValueError, match="gradients: fc2/kernel must have the shape"):
        tx.update(wrong, state, params)
    with pytest.raises(ValueError, match="mask_step must be True, False or None"):
        tx.update(gradient, state, params, mask_step=1)
    with pytest.raises(ValueError, match="value_fn: a line search would measure"):
        tx.update(gradient, state, params, value_fn=sum)
    with pytest.raises(ValueError, match="params: the tree is not the one"):
        admm(optax.sgd(0.1), plan=swapjax.plan(params, 0.5), steps=2).init(
            {"kernel": jnp.ones((3, 3))}
        )
    with pytest.raises(ValueError, match="include"):
        tx.init({"bias": jnp.ones(3)})


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.sgd(0.1), "optimizer: elsa weighs by .* its state holds none of the n"),
        (
            optax.partition(
                {"a": optax.adam(0.1), "b": optax.adam(0.1)}, {"fc1": "a", "fc2": "b"}
            ),
            "its state holds several of the name nu",
        ),
        (
            optax.masked(optax.adam(0.1), {"fc1": True, "fc2": False}),
            "the nu of its state does not have the tree and the shapes of params",
        ),
    ],
    ids=["none", "several", "part"],
)
def test_elsa_asks_for_a_second_moment(optimizer, message):
    tx = elsa(optimizer, sparsity=0.5, steps=2)
    with pytest.raises(ValueError, match=message):
        tx.init(initial())
