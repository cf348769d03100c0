"""What a prune compiles: little of the network, and nothing twice."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

import swapjax


def _network(layers):
    keys = jax.random.split(jax.random.key(0), layers + 1)
    params = {
        f"a{i:02}": {"kernel": jax.random.normal(k, (4, 4)) / 2}
        for i, k in enumerate(keys[1:])
    }
    return params, jax.random.normal(keys[0], (24, 4))


def _loss(params, batch):
    x = batch
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"])
    return jnp.mean(jnp.square(x - batch))


def _count(jaxpr):
    """Count the equations of a program, those of its loops included."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = part.jaxpr if isinstance(part, core.ClosedJaxpr) else part
                if isinstance(inner, core.Jaxpr):
                    total += _count(inner)
        total += 1
    return total


def _equations(method, layers):
    """Count the equations of what a method does with so many kernels."""
    found = []

    def look(problem, budget):
        program = jax.make_jaxpr(lambda: method.solve(problem, budget).weights)()
        found.append(_count(program.jaxpr))
        return swapjax.magnitude().solve(problem, budget)

    params, x = _network(layers)
    swapjax.prune(
        _loss, params, x, sparsity=0.5, samples=8, key=jax.random.key(1),
        method=dataclasses.replace(method, solve=look),
    )  # fmt: skip
    return found[0]


# A loss has three equations a kernel: a slice of the vector, a product, a tanh; the
# reshape is a fourth.
@pytest.mark.parametrize(
    ("method", "losses"), [("swap", 1), ("chita", 2), ("woodfisher", 1), ("cbs", 3)]
)
def test_a_method_holds_the_network_once_for_each_place_of_a_loss(method, losses):
    chosen = getattr(swapjax, method)()
    grown = _equations(chosen, 12) - _equations(chosen, 4)
    assert 3 * 8 * losses <= grown < 5 * 8 * losses


@pytest.mark.parametrize("method", ["swap", "chita"])
def test_what_was_compiled_serves_other_sparsities_and_stages(method):
    traced = []

    def loss(params, batch):
        traced.append(1)
        return _loss(params, batch)

    params, x = _network(3)
    chosen = getattr(swapjax, method)()

    def run(**options):
        return swapjax.prune(
            loss, params, x, samples=8, key=jax.random.key(1), method=chosen,
            **{"sparsity": 0.5, **options},
        )  # fmt: skip

    run(stages=2)
    assert len(traced) <= 7
    traced.clear()
    run()
    run(sparsity=0.7)
    run(stages=3)
    # Each looks at what the loss holds, and how much memory it takes; no program that
    # holds the loss is made anew.
    assert len(traced) <= 4
