"""The scan of single layers, and the allocation by it, against plain loops."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network import loss_fn
from prune_runs import KEY, setting
from scipy.optimize import linprog

import swapjax
from swapjax import Sensitivity

PARAMS, DATA = setting()
LEVELS = (0.25, 0.75)
OPTIONS = {"levels": LEVELS, "samples": 200, "key": KEY}
METHODS = {
    "magnitude": swapjax.magnitude(),
    "wanda": swapjax.wanda(),
    "saliency": swapjax.saliency(),
}


@pytest.fixture(scope="module", params=METHODS)
def scanned(request):
    method, heard = METHODS[request.param], []
    table = swapjax.sensitivity(
        loss_fn, PARAMS, DATA, method=method, **OPTIONS,
        callback=lambda *now: heard.append(now),
    )  # fmt: skip
    assert heard == [(i, 4) for i in (1, 2, 3, 4)]
    return method, table


def test_each_layer_is_pruned_alone_as_prune_does(scanned):
    method, table = scanned
    assert table.layers == ("fc1/kernel", "fc2/kernel")
    assert (table.sizes, table.levels) == ((60, 30), LEVELS)
    np.testing.assert_allclose(table.loss, loss_fn(PARAMS, DATA), rtol=1e-5)
    for (layer, size), level in itertools.product(
        zip(table.layers, table.sizes, strict=True), LEVELS
    ):
        alone = swapjax.plan(PARAMS, level, include=layer)
        pruned = swapjax.prune(
            loss_fn, PARAMS, DATA, plan=alone, method=method, samples=200, key=KEY
        )
        row = table.losses[table.layers.index(layer)][LEVELS.index(level)]
        np.testing.assert_allclose(row, loss_fn(pruned.params, DATA), rtol=1e-3)
        assert alone.kept == round(size * (1 - level) + 1e-9)


def test_a_table_has_rows_and_prints(scanned):
    _, table = scanned
    assert len(table.rows) == 4
    assert table.rows[3]["layer"] == "fc2/kernel"
    assert table.rows[3]["increase"] == table.losses[1][1] - table.loss
    assert Sensitivity(**table.to_dict()).to_dict() == table.to_dict()
    text = str(table)
    assert text.startswith(f"{table.method}: by how much the loss rises")
    assert text.splitlines()[1].split() == ["layer", "entries", "0.25", "0.75"]


def test_units_are_pruned_whole():
    channels = swapjax.plan(
        PARAMS, 0.5, pattern=swapjax.Channel(), include="fc1/kernel"
    )
    table = swapjax.sensitivity(
        loss_fn, PARAMS, DATA, plan=channels, levels=(0.52,), samples=200
    )
    masks = swapjax.magnitude_masks(PARAMS, plan=channels)
    assert table.layers == ("fc1/kernel",)
    pruned = swapjax.apply_masks(PARAMS, masks)
    np.testing.assert_allclose(table.losses[0][0], loss_fn(pruned, DATA), rtol=1e-4)


@st.composite
def tables(draw):
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    levels = tuple(
        sorted(draw(st.sets(st.sampled_from([0.2, 0.4, 0.6, 0.8]), min_size=1)))
    )
    loss = st.floats(-1, 10).map(lambda x: round(x, 3))
    each = st.lists(loss, min_size=len(levels), max_size=len(levels)).map(tuple)
    losses = tuple(draw(each) for _ in sizes)
    names = tuple(f"layer{i}" for i in range(len(sizes)))
    return Sensitivity(names, tuple(sizes), levels, 0.5, losses, "m")


def costs(table, sparsities):
    """What an allocation costs on the lower convex hulls, by a linear program each."""
    total = 0.0
    for i, sparsity in enumerate(sparsities):
        x = np.array([0.0, *table.levels])
        y = np.array([0.0, *(loss - table.loss for loss in table.losses[i])])
        found = linprog(y, A_eq=[x, np.ones(len(x))], b_eq=[sparsity, 1.0])
        assert found.success
        total += found.fun
    return total


@settings(max_examples=25)
@given(tables(), st.floats(0, 0.75))
def test_no_allocation_costs_less(table, share):
    sparsity = share * max(table.levels)
    found = list(table.allocate(sparsity).values())
    sizes = np.array(table.sizes)
    np.testing.assert_allclose(sizes @ found, sparsity * sizes.sum(), atol=1e-6)
    # The best one, as one linear program of weights on the points of all layers.
    n, m = len(sizes), len(table.levels) + 1
    x = np.array([0.0, *table.levels])
    y = np.array([[0.0, *(loss - table.loss for loss in row)] for row in table.losses])
    equal = np.zeros((n + 1, n * m))
    for i in range(n):
        equal[i, i * m : (i + 1) * m] = 1
        equal[n, i * m : (i + 1) * m] = sizes[i] * x
    wanted = [1.0] * n + [sparsity * sizes.sum()]
    best = linprog(y.ravel(), A_eq=equal, b_eq=wanted)
    assert best.success
    assert costs(table, found) <= best.fun + 1e-6


def test_an_allocation_is_met_exactly(scanned):
    _, table = scanned
    target = swapjax.plan(PARAMS, 0.6, allocation=table.allocate(0.6))
    assert target.kept == 36


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"levels": ()}, r"levels must be different sparsities in \(0, 1\), got none"),
        ({"levels": (0.5, 1.0)}, "levels must be different .* got 0.5, 1"),
        ({"levels": (0.5, 0.5)}, "levels must be different"),
        ({"levels": 0.5}, "levels must be several sparsities"),
        ({"levels": ("half",)}, "levels must be several sparsities .* got .'half'"),
        ({"data": None}, "data: losses are told of examples, got None"),
        (
            {"plan": swapjax.plan(PARAMS, pattern=swapjax.NM(1, 2))},
            "plan: its pattern fixes",
        ),
        ({"params": jax.tree.map(lambda x: x * np.nan, PARAMS)}, "params: NaN"),
    ],
)
def test_what_cannot_be_scanned_is_an_error(change, saying):
    arguments = {"params": PARAMS, "data": DATA, **OPTIONS, **change}
    with pytest.raises(ValueError, match=saying):
        swapjax.sensitivity(loss_fn, **arguments)


def test_a_sparsity_beyond_the_levels_is_an_error(scanned):
    _, table = scanned
    with pytest.raises(ValueError, match=r"up to 0\.75, reach 0\.75 of all, got"):
        table.allocate(0.8)
