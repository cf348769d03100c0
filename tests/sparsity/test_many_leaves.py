"""Selection among many leaves, which are laid end to end, against each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.sparsity import stacking, topk
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking

SHAPES = ((3, 4), (0, 5), (2, 3, 7), (9,), (), (3, 4), (41,), (2, 2, 2), (3, 4))
STACKING = Stacking(
    ((), (), (0,), (), (), (), (), (0, 1), ()),
    ((0,), (1,), (2, 4), (3,), (5,), (6,), (7,), (8, 9, 10, 11), (12,)),
)
GROUPS = {
    "one": (0,) * 13,
    "each": tuple(range(13)),
    "some": (0, 1, 2, 0, 1, 2, 3, 3, 0, 2, 1, 4, 4),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Tests have several: there leaves stay as they are."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def draws(seed=0):
    random = np.random.default_rng(seed)
    return tuple(
        np.asarray(random.choice([0.5, 1.0, 2.0, np.nan], shape) if i % 2 else
                   random.normal(size=shape), np.float32)
        for i, shape in enumerate(SHAPES)
    )  # fmt: skip


def selected(scores, budget):
    """Select by a program of its own, and not by one of another setting."""
    return jax.jit(lambda leaves, keep: select(leaves, keep))(scores, budget)


def sizes(groups):
    found = np.zeros(max(groups) + 1, int)
    for leaf, shape in enumerate(SHAPES):
        for n in STACKING.numbers[leaf]:
            found[groups[n]] += STACKING.layer_size(leaf, shape)
    return found


@pytest.mark.parametrize("name", GROUPS)
def test_one_vector_keeps_what_the_leaves_do(name, monkeypatch):
    groups = GROUPS[name]
    keep = jnp.asarray(sizes(groups) * 2 // 5, jnp.int32)
    keys = jax.jit(topk.common_keys)(draws())
    segments = Segments(STACKING, groups, max(groups) + 1)
    assert STACKING.laid(keys) is not None

    def top(keys):
        return topk.top_keys_of_groups(keys, keep, segments)

    found = jax.jit(lambda keys: top(keys))(keys)
    budget = Budget(keep, groups, (1, 0) * 6 + (1,), stacking=STACKING)
    floored = selected(draws(), budget)
    monkeypatch.setattr(stacking, "_MANY", 99)
    for got, wanted in (
        (found, jax.jit(lambda keys: top(keys))(keys)),
        (floored, selected(draws(), budget)),
    ):
        for a, b, shape in zip(got, wanted, SHAPES, strict=True):
            assert a.shape == shape
            np.testing.assert_array_equal(a, b)


def test_members_of_a_vmap_keep_what_each_does():
    stacked = [np.stack(pair) for pair in zip(draws(1), draws(2), strict=True)]
    keep = jnp.asarray(sizes(GROUPS["each"]) // 2, jnp.int32)
    budget = Budget(keep, GROUPS["each"], (0,) * 13, stacking=STACKING)
    found = jax.jit(jax.vmap(lambda *leaves: select(leaves, budget)))(*stacked)
    alone = jax.jit(select)
    for member in (0, 1):
        wanted = alone(draws(member + 1), budget)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a[member], b)


@pytest.mark.parametrize("draw", [jax.random.normal, jax.random.bits])
def test_leaves_draw_together_what_each_draws(draw):
    key = jax.random.key(0)

    def own(n, shape):
        return draw(jax.random.fold_in(key, n), shape)

    found = jax.jit(lambda: STACKING.draw_all(SHAPES, own))()
    alone = jax.jit(
        lambda: [STACKING.draw(i, shape, own) for i, shape in enumerate(SHAPES)]
    )()
    for shape, got, wanted in zip(SHAPES, found, alone, strict=True):
        assert got.shape == shape
        np.testing.assert_array_equal(got, wanted)


def test_more_leaves_make_hardly_more_of_a_program():
    def size(count):
        budget = Budget(
            jnp.full(count, 3, jnp.int32), tuple(range(count)), (0,) * count
        )
        leaves = tuple(jnp.ones((2, 4)) for _ in range(count))
        program = jax.jit(select).lower(leaves, budget).compile().as_text()
        return program.count(" = ")

    assert size(48) - size(12) < 1500
