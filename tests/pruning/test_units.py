"""Every method on whole channels, heads, experts and blocks."""

import functools

import jax
import numpy as np
import pytest
import unit_network as network
from problems import solve

import swapjax
from swapjax import Channel
from swapjax.activations.trace import second_moments
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.unit import in_unit
from swapjax.pruning import Problem
from swapjax.pruning.methods import METHODS, layerwise_obs, woodfisher

GIVEN = {"random": (jax.random.key(3),), "synflow": (network.apply, (4, 6))}
EVERY = {name: row.factory(*GIVEN.get(name, ())) for name, row in METHODS.items()}
EVERY["columns"] = layerwise_obs(order="columns", block=4, refit=False)
EVERY["woodfisher in rounds"] = woodfisher(rounds=3, damping=1e-3)
PATTERNS = list(network.PATTERNS.items())


@functools.cache
def problem(pattern, include, needs_rows, needs_layers):
    """What a method looks at, and no more: to make it takes a while as well."""
    params, data = network.params(), network.data()
    target = swapjax.plan(
        params, 0.5, pattern=pattern, include=include, axes=network.AXES
    )
    rows = layers = None
    if needs_rows:
        rows = per_example_gradients(
            network.loss_fn, params, data, target, storage="stored"
        )
        rows = in_unit(rows)
    if needs_layers:
        layers = second_moments(network.loss_fn, params, data, target.layout.paths)
    weights = target.layout.split(params)
    whole = {"params": params, "layout": target.layout, "layers": layers}
    return Problem(weights, weights, rows, **whole), target


@pytest.mark.parametrize("name", EVERY)
def test_every_method_keeps_whole_units_and_exact_counts(name):
    # Each method with one of the patterns: programs take long to compile.
    turn = list(EVERY).index(name) % len(PATTERNS)
    needs = EVERY[name].needs_rows, bool(EVERY[name].needs_layers)
    given, target = problem(*PATTERNS[turn], *needs)
    if name in METHODS and "patterns" in METHODS[name].unsupported:
        with pytest.raises(ValueError, match=f"not exchange {PATTERNS[turn][0]}"):
            EVERY[name](given, target.budget)
        return
    found = solve(EVERY[name], given, target.budget)
    network.require_whole(target.units, found.masks)
    assert sum(int(m.sum()) for m in found.masks) == target.kept
    for w, m in zip(found.weights, found.masks, strict=True):
        assert not np.any(np.asarray(w)[~np.asarray(m)])


@pytest.mark.parametrize(("pattern", "include"), PATTERNS)
def test_prune_does_stage_by_stage(pattern, include):
    params, data = network.params(), network.data()
    target = swapjax.plan(
        params, 0.5, pattern=pattern, include=include, axes=network.AXES
    )
    kept = []
    pruned = swapjax.prune(
        network.loss_fn, params, data, plan=target, method=swapjax.magnitude(),
        samples=12, stages=3, schedule=swapjax.linear(initial=0.0),
        callback=lambda stage: kept.append(stage.kept), key=jax.random.key(0),
    )  # fmt: skip
    network.require_whole(target.units, target.layout.leaf_masks(pruned.masks))
    assert kept[-1] == target.kept
    assert kept == sorted(kept, reverse=True)


def test_every_output_counts_where_a_method_ranks_single_weights():
    params = {"kernel": np.asarray([[3.0, 2.0, 0.0], [0.0, 2.0, 1.0]], "f4")}
    target = swapjax.plan(params, 0.6, pattern=Channel())
    masks = swapjax.magnitude_masks(params, plan=target)["kernel"]
    assert masks.tolist() == [[False, True, False]] * 2
