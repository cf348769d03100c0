"""Cuts of networks of which one can see where they are."""

import jax
import jax.numpy as jnp

from swapjax.backward.cuts import find_cuts
from swapjax.backward.graph import Graph
from swapjax.backward.products import products_of
from swapjax.core import trees


def names(loss_fn, params, batch):
    program = jax.make_jaxpr(loss_fn)(params, batch)
    graph = Graph(program)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    known, products = products_of(graph, trees.paths(params), shapes)
    return [cut.name for cut in find_cuts(graph, known, products)]


def matrices(*paths):
    return {path: jnp.zeros((4, 4)) for path in paths}


X = jnp.zeros((6, 4))


def test_a_chain_has_one_at_each_layer():
    def loss_fn(params, x):
        hidden = jax.nn.relu(x @ params["a"])
        return jnp.mean(jax.nn.relu(hidden @ params["b"]) @ params["c"])

    assert names(loss_fn, matrices("a", "b", "c"), X) == [
        "after a",
        "after b",
        "after c",
    ]


def test_a_block_has_one_where_its_branches_meet():
    def loss_fn(params, x):
        hidden = x @ params["a"]
        branch = jnp.tanh(hidden @ params["b"]) @ params["c"]
        hidden = hidden + branch
        return jnp.mean((hidden @ params["d"]) ** 2)

    found = names(loss_fn, matrices("a", "b", "c", "d"), X)
    assert found == ["after a", "after c", "after d"]


def test_there_is_none_beside_what_goes_around_it():
    def loss_fn(params, x):
        early = x @ params["a"]
        late = jnp.tanh(early @ params["b"])
        return jnp.mean(late @ params["c"]) + jnp.mean(early**2)

    assert names(loss_fn, matrices("a", "b", "c"), X) == ["after a", "after c"]


def test_loops_have_those_of_their_body():
    def loss_fn(params, x):
        def block(x, weights):
            return x + jnp.tanh(x @ weights["b"]) @ weights["c"], None

        x, _ = jax.lax.scan(block, x @ params["a"], params["blocks"])
        return jnp.mean(x @ params["d"])

    blocks = {name: jnp.zeros((3, 4, 4)) for name in "bc"}
    params = {**matrices("a", "d"), "blocks": blocks}
    assert names(loss_fn, params, X) == ["after a", "after blocks/c", "after d"]


def test_behind_what_all_steps_read_is_a_cut_that_other_steps_go_around():
    """Known and harmless: what is dropped there is not zero in the gradient of it."""

    def loss_fn(params, x):
        memory = x @ params["a"]

        def step(x, weight):
            x = jnp.tanh(x + memory) @ weight
            return jnp.tanh(x), None

        x, _ = jax.lax.scan(step, x @ params["b"], params["c"])
        return jnp.mean(x @ params["d"])

    params = {**matrices("a", "b", "d"), "c": jnp.zeros((3, 4, 4))}
    # That after "b" is the sum in the loop.
    found = names(loss_fn, params, X)
    assert found == ["after a", "after b", "after c", "after d"]
