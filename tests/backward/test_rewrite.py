"""The program of a loss, evaluated anew with something else at its sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax import backward
from swapjax.backward.address import Site, equation_at, equations, trace
from swapjax.backward.mark import find_marks
from swapjax.backward.rewrite import evaluate


def loss(params, x):
    """A network with all that a program can hold others in."""

    @jax.checkpoint
    def block(h, kernel):
        return backward.site(jnp.tanh(h @ kernel), "stack"), None

    h = backward.site(jax.jit(jnp.matmul)(x, params["in"]), "in")
    h, _ = jax.lax.scan(block, h, params["stack"])
    h = jax.lax.cond(
        h[0, 0] > 5.0,
        lambda h: h * 2,
        lambda h: backward.site(h @ params["branch"], "branch"),
        h,
    )
    inner = jax.jit(lambda h: jax.nn.relu(backward.site(h @ params["out"], "out")))
    return jnp.mean(inner(h) ** 2)


@pytest.fixture(scope="module")
def network():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"branch": (4, 4), "in": (3, 4), "out": (4, 2), "stack": (3, 4, 4)}
    pairs = zip(shapes.items(), keys, strict=False)
    params = {name: jax.random.normal(key, shape) for (name, shape), key in pairs}
    return params, jax.random.normal(keys[4], (5, 3))


def scaled(equation, operands, site, extra, do):
    del equation
    results = do(operands)
    return [results[0] * extra, *results[1:]]


def test_marks_are_found_in_all_that_is_entered(network):
    sites = find_marks(trace(loss, *network).jaxpr)
    assert [(s.name, s.levels, s.shape) for s in sites] == [
        ("in", (), (5, 4)),
        ("stack", (3,), (5, 4)),
        ("branch", (), (5, 4)),
        ("out", (), (5, 2)),
    ]


def test_addresses_lead_to_their_equations(network):
    program = trace(loss, *network).jaxpr
    located = list(equations(program))
    assert len({x.address for x in located}) == len(located)
    for address, equation, _ in located:
        assert equation_at(program, address) is equation


def test_extras_reach_every_site_and_step(network):
    params, x = network
    program = trace(loss, params, x)
    sites = find_marks(program.jaxpr)
    factors = {"in": 0.5, "stack": jnp.asarray([1.0, 2.0, -1.5]), "branch": 3.0}
    factors["out"] = jnp.asarray(0.25)

    def by_hand(factors):
        h = x @ params["in"] * factors["in"]
        for kernel, factor in zip(params["stack"], factors["stack"], strict=True):
            h = jnp.tanh(h @ kernel) * factor
        h = h @ params["branch"] * factors["branch"]
        return jnp.mean(jax.nn.relu(h @ params["out"] * factors["out"]) ** 2)

    def anew(factors):
        leaves = jax.tree.leaves((params, x))
        return evaluate(program, leaves, sites, factors, scaled)[0]

    for function in (anew, jax.jit(anew)):
        np.testing.assert_allclose(function(factors), by_hand(factors), rtol=1e-5)
    got, wanted = (jax.grad(f)(factors) for f in (anew, by_hand))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, wanted)


def test_two_sites_at_one_equation_are_both_taken():
    program = trace(lambda w, x: jnp.sum(x @ w), jnp.ones((2, 2)), jnp.ones((1, 2)))
    address = next(
        x.address
        for x in equations(program.jaxpr)
        if x.equation.primitive.name == "dot_general"
    )
    sites = [Site(name, "output", address, (1, 2), jnp.float32) for name in ("a", "b")]
    values = (jnp.ones((2, 2)), jnp.ones((1, 2)))
    found = evaluate(program, values, sites, {"a": 2.0, "b": 5.0}, scaled)
    assert found[0] == 40


def test_a_mark_changes_nothing(network):
    params, x = network

    def hand(p):
        return jnp.sum(backward.site(jnp.tanh(x @ p["in"]), "a"))

    plain = lambda p: jnp.sum(jnp.tanh(x @ p["in"]))  # noqa: E731
    tangent = jax.tree.map(jnp.ones_like, params)
    for transform in (
        lambda f: f(params),
        lambda f: jax.grad(f)(params),
        lambda f: jax.jvp(f, (params,), (tangent,)),
    ):
        got, wanted = map(transform, (hand, plain))
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


@jax.custom_jvp
def own_rule(x):
    return backward.site(x, "deep")


own_rule.defjvp(lambda primals, tangents: (own_rule(*primals), *tangents))


@pytest.mark.parametrize(
    ("inside", "where"),
    [
        (own_rule, "custom_jvp_call"),
        (
            lambda x: jax.lax.while_loop(
                lambda x: jnp.sum(x) < 1, lambda x: backward.site(x, "deep") + 1, x
            ),
            "while",
        ),
    ],
)
def test_marks_that_cannot_be_reached_are_told(inside, where):
    program = trace(lambda w, x: jnp.sum(inside(w * x)), jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=f"'deep' lies within {where}"):
        find_marks(program.jaxpr)


def test_bad_marks():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="name must be a text"):
        backward.site(x, "")
    with pytest.raises(ValueError, match="an array of floats wanted at site 'a'"):
        backward.site(jnp.arange(3), "a")
    with pytest.raises(ValueError, match="got tuple"):
        backward.site((x,), "a")
    twice = trace(
        lambda w, x: jnp.sum(backward.site(backward.site(w * x, "a"), "a")), x, x
    )
    with pytest.raises(ValueError, match="a is used twice"):
        find_marks(twice.jaxpr)
