"""Selection among the layers of stacks, against the same layers as leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sparse_runs import QUICK

import swapjax
from swapjax.roles.role import matrix
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking

PATHS = ("blocks/a", "blocks/b", "blocks/c", "head", "more")
SHAPES = ((3, 2), (2, 2, 2), (2, 1, 4, 2), (5,), (1, 2))
ROLES = (
    matrix("input", "stack"),
    matrix("stack", "input", "output"),
    matrix("stack", "stack", "input", "expert"),
    matrix("input"),
    matrix("stack", "input"),
)
STACKING = Stacking.of(PATHS, SHAPES, ROLES)
LAYERS = (
    "blocks/a[0]", "blocks/b[0]", "blocks/c[0,0,0]", "blocks/c[0,0,1]",
    "blocks/a[1]", "blocks/b[1]", "blocks/c[1,0,0]", "blocks/c[1,0,1]",
    "head", "more[0]",
)  # fmt: skip
SIZES = (3, 4, 4, 4, 3, 4, 4, 4, 5, 2)
FLOORS = (1, 0, 2, 1, 1, 1, 0, 3, 0, 1)
GROUPS = {
    "one": (0,) * 10,
    "each its own": tuple(range(10)),
    "across": (2, 0, 1, 1, 0, 3, 1, 0, 2, 4),
}

jitted = jax.jit(select, compiler_options=QUICK)


def layers(leaves):
    """The layers of all leaves, in order."""
    found = [None] * STACKING.count
    for i, leaf in enumerate(leaves):
        each = STACKING.slices(i, leaf)
        for number, layer in zip(STACKING.numbers[i], each, strict=True):
            found[number] = layer
    return tuple(found)


def test_layers_have_names_in_the_order_of_separate_ones():
    assert STACKING.names(PATHS, SHAPES) == LAYERS


def test_an_empty_stack_is_an_empty_leaf():
    params = {"a": jnp.ones((0, 2, 3)), "b": jnp.ones((2, 0, 3)), "c": jnp.ones((4, 2))}
    axes = {"a|b": ("stack", "input", "output"), "c": ("input", "output")}
    plan = swapjax.plan(params, 0.5, axes=axes, allocation="uniform")
    assert "0x2x3" in str(plan)
    kept = plan.kept_in(swapjax.magnitude_masks(params, plan=plan))
    assert kept == {"a": 0, "b[0]": 0, "b[1]": 0, "c": 4}


@pytest.mark.parametrize("groups", GROUPS)
def test_a_stack_keeps_what_its_layers_would(groups):
    of, rng = GROUPS[groups], np.random.default_rng(0)
    for _ in range(20):
        draws = [rng.choice((np.nan, 0, 1, 1, -2, 3), size=shape) for shape in SHAPES]
        scores = tuple(jnp.asarray(x, jnp.bfloat16) for x in draws)
        within = tuple(jnp.asarray(rng.random(shape) < 0.7) for shape in SHAPES)
        keep = []
        for group in range(max(of) + 1):
            own = [n for n in range(STACKING.count) if of[n] == group]
            least, most = (sum(x[n] for n in own) for x in (FLOORS, SIZES))
            keep.append(rng.integers(least, most + 1))
        stacked = Budget(jnp.asarray(keep), of, FLOORS, stacking=STACKING)
        apart = Budget(jnp.asarray(keep), of, FLOORS)
        got = layers(jitted(scores, stacked, within))
        wanted = jitted(layers(scores), apart, layers(within))
        for layer, one, other in zip(LAYERS, got, wanted, strict=True):
            np.testing.assert_array_equal(one, other, layer)


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ("one", [[0, 1, 2, 3, 4]]),
        ("each its own", [[0], [1], [2], [3], [4]]),
        ("across", [[0, 1, 2, 3], [4]]),
    ],
)
def test_leaves_are_searched_apart_that_share_no_group(groups, parts):
    of = GROUPS[groups]
    assert Segments(STACKING, of, max(of) + 1).apart() == parts


def test_equal_layers_are_compiled_once():
    def lines(leaves):
        shape = jax.ShapeDtypeStruct((8, 4), jnp.float32)
        keep = jax.ShapeDtypeStruct((leaves,), jnp.int32)
        budget = Budget(keep, tuple(range(leaves)), (1,) * leaves)
        return jitted.lower((shape,) * leaves, budget).as_text().count("while")

    assert lines(12) == lines(2)


@pytest.mark.usefixtures("x64")
def test_counts_stay_narrow_beside_float64():
    budget = Budget(jnp.asarray([4], jnp.int32), (0,) * 10, FLOORS, stacking=STACKING)
    scores = tuple(jnp.ones(shape) for shape in SHAPES)
    with jax.numpy_dtype_promotion("strict"):
        assert sum(int(m.sum()) for m in jitted(scores, budget)) == 4
