"""Methods that see one vector of all leaves prune as they do leaf by leaf."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.pruning import inputs
from swapjax.pruning.vector import layout_for
from swapjax.sparsity.budget import Budget, count_by_group, select
from swapjax.sparsity.stacking import Stacking

_SHAPES = ((3, 24), (40, 17), (2, 9, 5), (7, 1), (19, 31))
_STACKING = Stacking(((), (), (0,), (), ()), ((0,), (4,), (1, 2), (3,), (5,)))


def _loss(params, batch):
    x = batch
    for layer in params.values():
        kernel = layer["kernel"]
        kernels = kernel if kernel.ndim == 3 else kernel[None]
        x = jax.lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernels)[0]
    return jnp.mean(jnp.square(x))


def _network(layers=3):
    keys = jax.random.split(jax.random.key(0), layers + 2)
    params = {
        f"a{i}": {"kernel": jax.random.normal(k, (6, 6)) / 2}
        for i, k in enumerate(keys[:layers])
    }
    params["stack"] = {"kernel": jax.random.normal(keys[-2], (2, 6, 6)) / 2}
    return params, jax.random.normal(keys[-1], (40, 6))


def _laid(leaves):
    return (jnp.concatenate([x.ravel() for x in leaves]),)


@pytest.mark.parametrize("groups", [(0,) * 6, tuple(range(6)), (0, 1, 0, 1, 0, 2)])
@pytest.mark.parametrize("bounded", [False, True])
def test_select_of_a_vector_is_that_of_its_leaves(groups, bounded):
    rng = np.random.default_rng(sum(groups) + bounded)
    # Coarse, so that many tie; some are NaN.
    scores = tuple(
        jnp.asarray(np.where(rng.random(s) < 0.1, np.nan, rng.normal(size=s).round(1)))
        for s in _SHAPES
    )
    within = tuple(jnp.asarray(rng.random(s) < 0.8) for s in _SHAPES)
    within = within if bounded else None
    flat = _STACKING.end_to_end(_SHAPES)
    sizes = dict(zip(flat.numbers[0], flat.runs, strict=True))
    for floors in ((1,) * 6, (0, 1, 1, 0, 1, 1), (3, 0, 2, 1, 5, 0)):
        keep = [0] * (max(groups) + 1)
        for n, group in enumerate(groups):
            keep[group] += max(floors[n], sizes[n] // 3)
        budget = Budget(jnp.asarray(keep, jnp.int32), groups, floors, (), _STACKING)
        of_vector = dataclasses.replace(budget, stacking=flat)
        (wanted,) = _laid(select(scores, budget, within))
        bound = None if within is None else _laid(within)
        (found,) = select(_laid(scores), of_vector, bound)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(count_by_group((found,), of_vector), keep)


@pytest.mark.parametrize(
    "method",
    [
        swapjax.chita(search="magnitude", damping=1e-3),
        swapjax.woodfisher(block=10, damping=1e-3),
        swapjax.woodfisher(block=None, damping=1e-3),
        swapjax.cbs(start="woodfisher", block=10, damping=1e-3, candidates=8),
    ],
    ids=["chita", "blocks", "woodfisher", "cbs"],
)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("storage", ["stored", "matrix-free"])
def test_prune_of_a_vector_is_that_of_leaves(monkeypatch, allocation, storage, method):
    params, x = _network()
    plan = swapjax.plan(
        params,
        0.6,
        allocation=allocation,
        overrides={"a1": 0.2},
        loss_fn=_loss,
        batch=x,
    )
    assert layout_for(method, plan, params).is_flat

    def run():
        return swapjax.prune(
            _loss, params, x, plan=plan, method=method, samples=20, stages=2,
            key=jax.random.key(1), storage=storage,
        )  # fmt: skip

    found = run()
    monkeypatch.setattr(inputs, "layout_for", lambda method, plan, params: plan.layout)
    wanted = run()
    for a, b in zip(*map(jax.tree.leaves, (found.masks, wanted.masks)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (found.params, wanted.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert [s.layers for s in found.history] == [s.layers for s in wanted.history]
