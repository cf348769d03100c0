"""Multiplications of leaves, against counting them one by one."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.roles.costs import Count, count_products


def some(shape, zeros=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * (rng.random(shape) > zeros), "float32")


def test_products_count_one_by_one():
    w = some((5, 3))
    costs = count_products(lambda p, x: jnp.mean(x @ p), w, jnp.ones((4, 5)))
    pairs = itertools.product(range(4), range(5), range(3))
    left = sum(bool(w[i, o]) for _, i, o in pairs)
    assert costs.leaves == (Count(4 * 5 * 3, left),)
    assert costs.total == costs.leaves[0]
    assert costs.others == Count()


def test_convolutions_count_one_by_one():
    kernel = some((3, 2, 2, 6))  # two groups

    def apply(p, x):
        return jax.lax.conv_general_dilated(
            x, p, (2, 1), "SAME", feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    x = jnp.ones((2, 5, 4, 4))
    macs = left = 0
    shape = jax.eval_shape(apply, kernel, x).shape
    for _, _, _, o in np.ndindex(shape):
        for h, w, i in np.ndindex(3, 2, 2):
            macs += 1
            left += bool(kernel[h, w, i, o])
    assert count_products(apply, kernel, x).leaves == (Count(macs, left),)


@pytest.mark.parametrize("loop", ["scan", "fori"])
def test_layers_of_a_loop_count_with_their_own_zeros(loop):
    # Used twice by the last layer, by the others once.
    params = {"kernel": some((3, 4, 4)), "last": some((4, 4), seed=1)}

    def apply(p, x):
        if loop == "scan":
            x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["kernel"])[0]
        else:
            step = lambda i, x: jnp.tanh(x @ p["kernel"][i])  # noqa: E731
            x = jax.lax.fori_loop(0, 3, step, x)
        return jax.lax.fori_loop(0, 2, lambda i, x: x @ p["last"], x)

    costs = count_products(apply, params, jnp.ones((2, 4)))
    nonzeros = [int((x != 0).sum()) for x in jax.tree.leaves(params)]
    assert costs.leaves == (Count(96, 2 * nonzeros[0]), Count(64, 4 * nonzeros[1]))


def test_what_is_made_of_leaves_counts_as_theirs():
    params = {
        "gain": some(6, 0),
        "k": some((4, 2), seed=1),
        "q": some((4, 4), seed=2),
        "v": some((6, 2), seed=3),
    }
    mask = jnp.arange(12).reshape(6, 2) % 3 == 0

    def apply(p, x):
        both = jnp.concatenate([p["q"], p["k"]], 1).astype(jnp.bfloat16)
        scaled = (p["gain"] * both).T
        read = jax.nn.relu(jnp.einsum("oi,ni->no", scaled, x.astype(jnp.bfloat16)))
        return read.astype(jnp.float32) @ jnp.where(mask, p["v"], 0)

    costs = count_products(apply, params, jnp.ones((10, 4)))
    gain, k, q, v = costs.leaves
    assert gain == Count()
    assert (k.macs, q.macs, v.macs) == (80, 160, 120)
    assert k.left + q.left == 10 * int(
        (params["k"] != 0).sum() + (params["q"] != 0).sum()
    )
    assert v.left == 10 * int((mask & (params["v"] != 0)).sum())


def test_two_leaves_count_pairs_that_are_not_zero():
    down, up = some((6, 2)), some((2, 5), seed=1)

    def apply(p, x):
        return x @ (p[0] @ p[1])

    costs = count_products(apply, (down, up), jnp.ones((3, 6)))
    pairs = sum(
        bool(down[i, j] * up[j, o])
        for i, j, o in itertools.product(range(6), range(2), range(5))
    )
    whole = int((down @ up != 0).sum())
    assert costs.total == Count(6 * 2 * 5 + 3 * 6 * 5, pairs + 3 * whole)


def test_data_with_data_is_no_leafs_and_data_choose_the_largest_branch():
    def apply(p, x):
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ p, lambda x: x @ p @ p, x)
        x = jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ p, x)
        return x @ x.T

    costs = count_products(apply, jnp.eye(4), jnp.ones((2, 4)))
    assert costs.leaves == (Count(3 * 32, 3 * 8),)
    assert costs.others == Count(2 * 4 * 2, 2 * 4 * 2)
    assert len(costs.notes) == 2


def test_experts_count_a_row_with_one():
    experts, sizes = some((3, 4, 5)), jnp.array([2, 3, 2], jnp.int32)
    apply = lambda p, x: jax.lax.ragged_dot(x, p, sizes)  # noqa: E731
    (count,) = count_products(apply, experts, jnp.ones((7, 4))).leaves
    assert count.macs == 7 * 4 * 5
    assert count.left == math.floor(140 * int((experts != 0).sum()) / 60)


def test_shapes_count_as_arrays_without_zeros():
    params = {"act": jax.nn.relu, "w": jnp.zeros((3, 4, 4))}

    def apply(p, x):
        return jax.lax.scan(lambda x, w: (p["act"](x @ w), None), x, p["w"])[0]

    shapes = {**params, "w": jax.ShapeDtypeStruct((3, 4, 4), jnp.float32)}
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert count_products(apply, shapes, x).leaves == (Count(), Count(96, 96))
    assert count_products(apply, params, x).leaves == (Count(), Count(96, 0))
