"""The Combinatorial Brain Surgeon against dense inverses and brute force."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import dense, on_support, setting, small, solve, supports
from trees import flat

from swapjax import (
    cbs,
)
from swapjax.pruning.solvers.pair_exchange import search
from swapjax.sparsity.budget import select
from swapjax.sparsity.masks import apply_masks

pytestmark = pytest.mark.usefixtures("x64")


class TestCBS:
    """The exchange of pairs, by brute force."""

    @pytest.mark.parametrize("start", ["magnitude", "obd", "woodfisher"])
    def test_no_exchange_of_two_weights_is_left(self, start):
        problem, target, g = small(0.5)
        h = g.T @ g / len(g) + 0.01 * np.eye(8)
        w = flat(problem.weights)

        def f(keep):
            gone = np.where(keep, 0, w)
            return gone @ h @ gone

        solution = solve(
            cbs(start=start, damping=0.01, block=8), problem, target.budget
        )
        np.testing.assert_allclose(
            solution.details["selection"],
            f(flat(solution.masks).astype(bool)), rtol=1e-8,
        )  # fmt: skip
        support = jax.random.permutation(
            jax.random.key(len(start)), jnp.arange(8) < 4
        ).reshape(4, 2)
        found = jax.jit(
            lambda rows: search(
                rows, problem.weights, (support,), rows.mean_squares(), target.budget,
                rows.loss, None, damping=0.01, candidates=100, passes=50,
            )
        )(problem.rows)  # fmt: skip
        keep = flat(found.last).astype(bool)
        assert keep.sum() == 4
        for i, j in itertools.product(np.flatnonzero(keep), np.flatnonzero(~keep)):
            other = keep.copy()
            other[[i, j]] = other[[j, i]]
            assert f(other) >= f(keep) * (1 - 1e-6)
        assert f(keep) <= f(flat((support,)).astype(bool))
        assert min(map(f, supports(8, 4))) <= f(keep) * (1 + 1e-9)

    def test_the_update_is_the_best_on_its_support(self):
        problem, target = setting(jnp.float64)
        solution = solve(cbs(damping=0.05), problem, target.budget)
        h, _ = dense(problem, 0.05)
        keep = flat(solution.masks).astype(bool)
        expected = on_support(h, flat(problem.weights), keep)
        np.testing.assert_allclose(flat(solution.weights), expected, rtol=1e-8)

    def test_exchanges_respect_budgets_and_floors(self):
        problem, target = setting(jnp.float64, allocation="uniform", sparsity=0.9)
        # The worst start: the smallest weights of each leaf are kept.
        start = select(tuple(-jnp.abs(w) for w in problem.weights), target.budget)
        for budget, limit in ((target.budget, target.keep), (None, (1, 1))):
            if budget is None:
                together = setting(jnp.float64, sparsity=0.9)[1].budget
                budget = dataclasses.replace(together, floors=(1, 1))
            found = jax.jit(
                lambda rows, budget: search(
                    rows, problem.weights, start, rows.mean_squares(), budget,
                    rows.loss, None, damping=0.01, candidates=20, passes=9,
                )
            )(problem.rows, budget)  # fmt: skip
            counts = [int(m.sum()) for m in found.last]
            assert sum(counts) == target.kept
            assert all(c >= least for c, least in zip(counts, limit, strict=True))
            changed = sum(
                int(jnp.sum(a & ~b)) for a, b in zip(found.last, start, strict=True)
            )
            assert changed > 0

    def test_fewer_passes_end_higher(self):
        problem, target = setting(jnp.float64)
        none = solve(cbs(start="magnitude", passes=0), problem, target.budget)
        some = solve(cbs(start="magnitude"), problem, target.budget)
        assert float(none.details["exchanges"]) == 0
        loss = problem.rows.loss
        first = apply_masks(problem.weights, none.masks)
        last = apply_masks(problem.weights, some.masks)
        assert float(loss(last)) <= float(loss(first))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (cbs, {"start": "random"}, "start must be of 'magnitude', 'obd' and"),
        (cbs, {"start": ()}, "start must be of 'magnitude', 'obd' and"),
        (cbs, {"damping": ()}, "damping must be 0 or more"),
        (cbs, {"candidates": 0}, "candidates must be 1 or more, got 0"),
        (cbs, {"block": 0}, "block must be 1 or more, got 0"),
        (cbs, {"passes": -1}, "passes must be 0 or more, got -1"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
