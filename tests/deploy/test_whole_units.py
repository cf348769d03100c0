"""Whole units go together, and what is left keeps to its budget."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swapjax
from swapjax.deploy.unit_costs import Costs, choose
from swapjax.roles.costs import count_products


def make(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


PARAMS = {
    "bias": jnp.zeros(8),
    "down": make((12, 8), 1),
    "in": make((5, 8), 2),
    "out": make((8, 3), 3),
    "up": make((8, 12), 4),
}
X = jnp.ones((2, 5))


def residual(p, x):
    x = x @ p["in"] + p["bias"]
    x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
    return x @ p["out"]


def cost(outer, inner):
    """Multiplications for two examples with so many channels and hidden units."""
    return 2 * (5 * outer + 2 * outer * inner + 3 * outer)


def counted(masks):
    """Channels and hidden units that are left, by each matrix that has them."""
    masks = {name: np.broadcast_to(m, PARAMS[name].shape) for name, m in masks.items()}
    outer = [masks["in"].any(0), masks["up"].any(1), masks["down"].any(0)]
    outer.append(masks["out"].any(1))
    inner = [masks["up"].any(0), masks["down"].any(1)]
    return outer, inner


@pytest.mark.parametrize("part", [1.0, 0.75, 0.5, 0.2])
def test_what_is_tied_goes_together_and_the_budget_is_met(part):
    masks = swapjax.unit_masks(residual, PARAMS, X, flops=part)
    outer, inner = counted(masks)
    assert all((mask == outer[0]).all() for mask in outer)
    assert all((mask == inner[0]).all() for mask in inner)
    assert (np.broadcast_to(masks["bias"], 8) == outer[0]).all()
    left = cost(outer[0].sum(), inner[0].sum())
    whole = cost(8, 12)
    assert count_products(residual, PARAMS, X).total.macs == whole
    assert left <= part * whole
    # No unit that went would fit.
    most = [
        cost(outer[0].sum() + a, inner[0].sum() + b)
        for a, b in ((1, 0), (0, 1))
        if outer[0].sum() + a <= 8 and inner[0].sum() + b <= 12
    ]
    assert all(n > part * whole for n in most)


def test_all_that_a_norm_reads_goes_too():
    """A table is no matrix, but feeds the mean of squares."""
    params = {"head": make((8, 5)), "table": make((7, 8), 1)}

    def apply(p, x):
        x = p["table"][x]
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) @ p["head"]

    x = jnp.arange(6).reshape(2, 3)
    masks = swapjax.unit_masks(apply, params, x, flops=0.5)
    assert masks["table"].any(0).sum() == masks["head"].any(1).sum() == 4
    assert (masks["table"].any(0) == masks["head"].any(1)).all()


def test_the_smallest_units_go():
    masks = swapjax.unit_masks(residual, PARAMS, X, flops=0.5)
    (outer, *_), (inner, *_) = counted(masks)
    squares = {name: np.square(np.asarray(leaf)) for name, leaf in PARAMS.items()}
    hidden = squares["up"].sum(0) + squares["down"].sum(1)
    assert hidden[inner].min() > hidden[~inner].max()
    channels = squares["in"].sum(0) + squares["up"].sum(1)
    channels += squares["down"].sum(0) + squares["out"].sum(1)
    assert channels[outer].min() > channels[~outer].max()


def test_given_scores_count_for_what_they_save():
    # All channels are worth more than all hidden units, and only the latter go.
    scores = {**jax.tree.map(jnp.zeros_like, PARAMS), "in": jnp.full((5, 8), 10.0)}
    scores["up"] = jnp.broadcast_to(jnp.arange(12.0), (8, 12))
    masks = swapjax.unit_masks(residual, PARAMS, X, flops=0.6, scores=scores)
    (outer, *_), (inner, *_) = counted(masks)
    assert outer.all()
    assert inner.tolist() == sorted(inner.tolist())  # the last are worth most
    assert not inner.all()


def test_bytes_are_a_budget_and_what_is_excluded_stays():
    masks = swapjax.unit_masks(residual, PARAMS, X, size=0.7, exclude="in")
    (outer, *_), (inner, *_) = counted(masks)
    assert outer.all()
    assert masks["in"].shape == ()
    sizes = [sum(x.size for x in jax.tree.leaves(PARAMS))]
    sizes.append(sizes[0] - 2 * 8 * int((~inner).sum()))
    assert 0.7 * sizes[0] - 16 < sizes[1] <= 0.7 * sizes[0]


def normed(p, x):
    y = x @ p["in"]
    y = y - y.mean(-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + 1e-5) * p["scale"]
    return jnp.tanh(y @ p["up"]) @ p["down"]


def test_units_that_could_not_be_removed_are_not_counted_on():
    shapes = {"down": (16, 2), "in": (6, 8), "scale": (8,), "up": (8, 16)}
    rng = np.random.default_rng(0)
    params = {k: jnp.float32(rng.normal(size=s) / s[-1]) for k, s in shapes.items()}
    x = jnp.ones((1, 6))
    masks = swapjax.unit_masks(normed, params, x, flops=0.6)
    assert masks["in"].shape == ()
    small = swapjax.shrink(normed, params, masks, x)
    products = [x.size for path, x in small.params.items() if path != "scale"]
    assert 0.55 < sum(products) / (48 + 128 + 32) <= 0.6
    with pytest.raises(ValueError, match="not be zero where they are read: in"):
        swapjax.unit_masks(normed, params, x, flops=0.6, exclude="down")
    gone = {"in": params["in"].at[:, 0].set(0), "scale": params["scale"].at[0].set(0)}
    small = swapjax.shrink(
        normed, {**params, **gone, "up": params["up"].at[0].set(0)}, None, x
    )
    assert "is not zero where it is read" in small.stayed["in[axis 1]"]


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({}, "flops, size: give one of both, got neither"),
        ({"flops": 0.5, "size": 0.5}, "give one of both, got flops=0.5 and size=0.5"),
        ({"flops": [0.5]}, r"flops must be a fraction in \(0, 1\], got \[0.5\]"),
        ({"flops": 0.5, "min_keep": 0}, "min_keep must be 1 or more"),
        ({"flops": 0.5, "scores": list(PARAMS.values())}, "scores: must be a tree of"),
        ({"flops": 0}, r"flops must be a fraction in \(0, 1\]"),
        ({"flops": 0.01}, r"flops: 0.01 is out of reach; 0.0391 is left"),
        ({"flops": 0.5, "min_keep": 9}, "out of reach; 0.812 is left"),
        ({"flops": 0.5, "scores": {"in": 1}}, "scores: must be a tree of the shapes"),
        ({"flops": 0.5, "exclude": ["in", "up"]}, "has no units that may go"),
    ],
)
def test_bad_input_is_told(given_, sentence):
    with pytest.raises(ValueError, match=sentence):
        swapjax.unit_masks(residual, PARAMS, X, **given_)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.floats(0.05, 1),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_a_choice_keeps_to_the_budget_and_no_unit_more_would_fit(
    lengths, part, for_savings, seed
):
    rng = np.random.default_rng(seed)
    # Chains: each term is a product of two sides, as matrices are.
    sides = [4, *lengths, 3]
    places = np.zeros((len(sides) - 1, 2, len(lengths)))
    for term, axis in itertools.product(range(len(sides) - 1), range(2)):
        if 0 <= term + axis - 1 < len(lengths):
            places[term, axis, term + axis - 1] = 1
    pairs = np.array(list(itertools.pairwise(sides)), float)
    costs = Costs(np.ones(len(pairs)), pairs, places)
    scores = [rng.random(n) for n in lengths]
    whole = costs.without(np.zeros(len(lengths)))
    assert whole == sum(map(math.prod, pairs))
    counts = choose(costs, scores, 1, part * whole, for_savings=for_savings)
    fewest = costs.without(np.array(lengths) - 1)
    if counts is None:
        assert fewest > part * whole
        return
    assert costs.without(counts) <= part * whole
    for number in np.flatnonzero(counts):
        one = np.eye(len(lengths), dtype=int)[number]
        assert costs.without(counts - one) > part * whole
