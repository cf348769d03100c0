"""Rows left out in closed form are those of re-fits without them, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import explicit, setting, solve
from prune_runs import prune
from trees import flat

from swapjax import Status, linear_regression, swap
from swapjax.pruning.solvers.dual_system import damp, diagonalise
from swapjax.pruning.solvers.judges import left_out

DAMPINGS = (1e-4, 1e-2, 1.0)
NAMES = ("magnitude", "obd")


def without_each(gram, targets, start, y, ridge):
    """The mean squared error of rows that a fit of all the others predicts."""
    errors = []
    for i in range(len(gram)):
        rest = np.delete(np.arange(len(gram)), i)
        inner = gram[np.ix_(rest, rest)] + ridge * np.eye(len(rest))
        c = np.linalg.solve(inner, (targets - start)[rest])
        errors.append(y[i] - start[i] - gram[i, rest] @ c)
    return np.mean(np.square(errors))


def by_trace(gram, targets, start, y, ridge):
    """Generalised cross-validation, with the matrix that a fit leaves written out."""
    n = len(gram)
    left = np.eye(n) - gram @ np.linalg.inv(gram + ridge * np.eye(n))
    missed = left @ (targets - start) / (np.trace(left) / n)
    return np.mean(np.square(y - targets + missed))


ORACLES = {"loo": without_each, "gcv": by_trace}


@pytest.mark.parametrize("judge", ORACLES)
@pytest.mark.parametrize("damping", DAMPINGS)
def test_rows_left_out_are_those_of_fits_without_them(judge, damping):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 4)
        g = jax.random.normal(keys[0], (14, 9), "float64")
        targets, start, y = jax.random.normal(keys[1], (3, 14), "float64")
        gram = g @ g.T
        for least in (damping, 0.0):  # of the Cholesky factor, and of eigenvalues
            system = damp(diagonalise(gram, least=least), damping)
            found = left_out(judge, system, targets, start, y)
            parts = map(np.asarray, (gram, targets, start, y))
            wanted = ORACLES[judge](*parts, 14 * damping)
            np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("judge", ORACLES)
@pytest.mark.parametrize("first_order", [False, True])
def test_the_setting_of_the_least_error_is_taken(judge, first_order):
    with jax.enable_x64(True):
        problem, target = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        errors = {}
        for i, rule in enumerate(NAMES):
            alone = linear_regression(support=rule, judge="none", first_order=False)
            mask = flat(solve(alone, problem, target.budget).masks).astype(bool)
            gram, start = g[:, mask] @ g[:, mask].T, g[:, mask] @ w[mask]
            for lam in DAMPINGS:
                parts = gram, g @ w, start, g @ w, len(g) * lam
                errors[i, lam] = ORACLES[judge](*parts)
        method = linear_regression(
            damping=DAMPINGS, support=NAMES, judge=judge, first_order=first_order
        )
        found = solve(method, problem, target.budget)
        rule, lam = min(errors, key=errors.get)
        assert (int(found.details["support_rule"]), found.status) == (rule, 0)
        np.testing.assert_allclose(found.details["damping"], lam, rtol=1e-9)
        np.testing.assert_allclose(
            found.details["left_out"], errors[rule, lam], rtol=1e-8
        )
        assert "loss" not in found.details
        assert (found.details["first_order"] > 0) == first_order
        chosen = linear_regression(
            damping=lam, support=NAMES[rule], judge="none", first_order=first_order
        )
        same = solve(chosen, problem, target.budget)
        np.testing.assert_allclose(flat(found.weights), flat(same.weights), rtol=1e-9)


def test_nobody_takes_the_first_of_each():
    problem, target = setting()
    several = linear_regression(damping=DAMPINGS, judge="none", first_order=False)
    found = solve(several, problem, target.budget)
    one = linear_regression(damping=DAMPINGS[0], support="magnitude", first_order=False)
    alone = solve(one, problem, target.budget)
    np.testing.assert_allclose(flat(found.weights), flat(alone.weights), rtol=1e-5)
    assert not {"loss", "left_out"} & set(found.details)


@pytest.mark.parametrize(
    ("make", "options", "storage"),
    [
        (swap, {"target": "hybrid"}, "matrix-free"),
        (swap, {"target": "smoothed", "epsilon": 0.5}, "stored"),
        (linear_regression, {"ridge": "kfac", "kappa": (0.1, 10.0)}, "stored"),
    ],
    ids=["hybrid", "smoothed", "kfac"],
)
def test_any_coupling_ridge_and_storage_may_be_judged(make, options, storage, problem):
    method = make(judge="loo", **options)
    (record,) = prune(problem, method=method, storage=storage).history
    assert record.status in (Status.CONVERGED, Status.NOT_REFITTED)
    assert 0 < record.details["left_out"] < np.inf


@pytest.mark.parametrize("make", [linear_regression, swap])
def test_a_judge_that_knows_nothing_is_an_error(make):
    with pytest.raises(ValueError, match=r"^judge must be .* got 'cv'"):
        make(judge="cv")
    for judge in ("loo", "gcv", "none"):
        with pytest.raises(ValueError, match=rf"^judge: '{judge}' looks at rows left"):
            make(judge=judge, algebra="cg")
    make(judge="none", algebra="cg", first_order=False)
    assert dict(make(judge="loo").settings)["algebra"] == "gram"
