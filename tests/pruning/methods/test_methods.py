"""Every method through one contract, and each against an explicit reference."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import N, apply, explicit, flat, loss_fn, setting, solve

import swapjax
from swapjax import (
    NM,
    GradientNoise,
    Status,
    chita,
    linear_regression,
    magnitude,
    plan,
    swap,
    woodfisher,
)
from swapjax.activations.trace import second_moments
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem, methods
from swapjax.pruning.methods import METHODS
from swapjax.pruning.solvers import natural_step, targets
from swapjax.pruning.solvers.conjugate_gradients import prefers_cg
from swapjax.pruning.solvers.least_squares import damp, diagonalise
from swapjax.pruning.solvers.refit import prepare, refit
from swapjax.sparsity.budget import select

# What factories need that have arguments without defaults.
GIVEN = {"random": (jax.random.key(3),), "synflow": (apply, (6,))}
LISTED = {name: row.factory(*GIVEN.get(name, ())) for name, row in METHODS.items()}
VARIANTS = {
    "conjugate gradients": linear_regression(algebra="cg"),
    "hybrid by conjugate gradients": swap(algebra="cg", rounds=3),
    "one rule": linear_regression(support="obd", first_order=False),
    "hard thresholding": linear_regression(support="iht"),
    "smoothed": swap(target="smoothed"),
    "hybrid": swap(target="hybrid", perplexity=2.0),
    "hybrid in order": swap(target="hybrid", epsilon=0.0),
    "debiased": swap(target="debiased", max_sinkhorn=50),
    "exact": swap(target="exact", max_sinkhorn=50),
    "exact in order": swap(target="exact", epsilon=0.0),
    "exact uniform": swap(target="exact", epsilon=float("inf")),
    "initial reference": swap(reference="initial"),
    "woodfisher in blocks": woodfisher(block=10),
    "woodfisher full": woodfisher(block=None),
    "woodfisher alone": woodfisher(block=10, update="independent", rounds=2),
    "woodfisher full alone": woodfisher(block=None, update="independent"),
    "woodtaylor": woodfisher(block=10, first_order=True, update="none"),
    "chita in blocks": chita(block=10),
    "chita by thresholding": chita(search="iht", polish="none"),
    "chita by descent": chita(search="magnitude", polish="descent"),
    "official": swap(official=True, max_sinkhorn=50),
    "official regression": linear_regression(official=True),
}
EVERY = LISTED | VARIANTS


NARROW = (
    "magnitude", "hybrid in order", "official", "woodfisher in blocks", "chita",
    "grasp", "random", "synflow",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in EVERY] + [(name, "bfloat16") for name in NARROW],
)
def test_keeps_the_contract(name, dtype):
    problem, target = setting(jnp.dtype(dtype))
    if EVERY[name].needs_layers:
        layers = second_moments(problem.rows.source, target.paths)
        problem = dataclasses.replace(problem, layers=layers)
    solution = solve(EVERY[name], problem, target.budget)
    kept = flat(solution.masks).astype(bool)
    assert kept.sum() == target.kept
    assert not flat(solution.weights)[~kept].any()
    assert np.isfinite(flat(solution.weights)).all()
    assert {w.dtype.name for w in solution.weights} == {dtype}
    assert {m.dtype.name for m in solution.masks} == {"bool"}
    assert Status(int(solution.status)).sentence.endswith(".")
    assert all(np.ndim(value) == 0 for value in solution.details.values())


@pytest.mark.parametrize(
    "name",
    [
        "linear-regression", "hybrid in order", "saliency", "grasp", "obd",
        "woodfisher in blocks", "woodfisher full alone", "woodfisher alone", "cbs",
        "chita",
    ],
)  # fmt: skip
def test_matrix_free_and_stored_agree(name):
    solutions = []
    for storage in ("stored", "matrix-free"):
        problem, target = setting(storage=storage)
        solutions.append(solve(EVERY[name], problem, target.budget))
    stored, free = solutions
    assert all((a == b).all() for a, b in zip(stored.masks, free.masks, strict=True))
    np.testing.assert_allclose(
        flat(free.weights),
        flat(stored.weights),
        atol=1e-4 * np.abs(flat(stored.weights)).max(),
    )


@pytest.mark.usefixtures("x64")
def test_jit_changes_nothing():
    problem, target = setting(jnp.float64)
    method = swap(target="smoothed", support="magnitude", first_order=False)
    jitted = solve(method, problem, target.budget)
    eager = method(problem, target.budget)
    np.testing.assert_allclose(flat(eager.weights), flat(jitted.weights), rtol=1e-6)


@pytest.mark.usefixtures("x64")
class TestRegression:
    """Identities in float64."""

    @pytest.mark.parametrize("storage", ["stored", "matrix-free"])
    @pytest.mark.parametrize(
        "options", [{"target": "smoothed"}, {"target": "hybrid", "rounds": 3}], ids=str
    )
    def test_conjugate_gradients_end_where_the_gram_matrix_does(self, options, storage):
        problem, target = setting(jnp.float64, storage=storage)
        options |= {"support": "obd", "first_order": False, "damping": 1.0}
        exact, steps = (
            solve(swap(algebra=algebra, **options), problem, target.budget)
            for algebra in ("gram", "cg")
        )
        np.testing.assert_allclose(
            flat(steps.weights), flat(exact.weights), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(steps.objective[-1], exact.objective[-1], rtol=1e-5)
        assert Status(int(steps.status)) == Status(int(exact.status))

    def test_conjugate_gradients_that_do_not_arrive_say_so(self):
        problem, target = setting(jnp.float64)
        method = linear_regression(algebra="cg", damping=1e-13, first_order=False)
        solution = solve(method, problem, target.budget)
        assert Status(int(solution.status)) in (
            Status.CONVERGED,
            Status.ITERATION_LIMIT,
        )
        assert np.isfinite(flat(solution.weights)).all()

    def test_the_cheaper_algebra_is_chosen(self):
        stored, _ = setting(jnp.float64)
        free, _ = setting(jnp.float64, storage="matrix-free")
        for rows, few, many in (
            (stored.rows, 1000, 200_000),
            (free.rows, 1000, 20_000),
        ):
            weights = tuple(
                jax.ShapeDtypeStruct((1000, 1000), jnp.float32) for _ in "ab"
            )
            source = rows if rows is free.rows else rows.source
            for n, cg in ((few, False), (many, True)):
                resized = dataclasses.replace(source, n=n)
                if rows is stored.rows:
                    resized = dataclasses.replace(rows, source=resized)
                assert prefers_cg(resized, weights, solves=3) == cg

    def test_swap_with_the_identity_coupling_is_linear_regression(self):
        problem, target = setting(jnp.float64)
        wanted = solve(linear_regression(), problem, target.budget)
        for same in (
            swap(target="hybrid", rho=0.0, epsilon=0.0),
            swap(target="smoothed", epsilon=0.0),
        ):
            got = solve(same, problem, target.budget)
            np.testing.assert_allclose(
                flat(got.weights), flat(wanted.weights), rtol=1e-9, atol=1e-12
            )

    def test_smoothing_with_a_tiny_epsilon_tends_to_linear_regression(self):
        problem, target = setting(jnp.float64)
        wanted = solve(linear_regression(), problem, target.budget)
        got = solve(swap(target="smoothed", epsilon=1e-9), problem, target.budget)
        np.testing.assert_allclose(flat(got.weights), flat(wanted.weights), rtol=1e-6)

    def test_linear_regression_solves_the_normal_equations_on_its_support(self):
        problem, target = setting(jnp.float64)
        method = linear_regression(support="magnitude", first_order=False, damping=0.1)
        solution = solve(method, problem, target.budget)
        g, w = explicit(problem.rows), flat(problem.weights)
        kept = flat(solution.masks).astype(bool)
        assert sorted(np.abs(w)[kept]) == sorted(np.abs(w))[-target.kept :]
        gs = g[:, kept]
        left = gs.T @ gs + N * 0.1 * np.eye(kept.sum())
        expected = np.linalg.solve(left, gs.T @ (g @ w) + N * 0.1 * w[kept])
        np.testing.assert_allclose(flat(solution.weights)[kept], expected, rtol=1e-8)

    def test_re_fitted_values_are_written(self):
        problem, target = setting(jnp.float64)
        solution = solve(linear_regression(), problem, target.budget)
        kept = flat(solution.masks).astype(bool)
        change = flat(solution.weights)[kept] - flat(problem.weights)[kept]
        assert np.all(np.abs(change) > 0)

    @pytest.mark.parametrize("name", ["exact", "hybrid", "exact in order"])
    def test_the_alternation_lowers_the_objective_every_round(self, name):
        settings = dict(EVERY[name].settings)
        method = swap(
            target=settings["target"], epsilon=settings["epsilon"],
            perplexity=settings["perplexity"], rounds=12,
            tolerance=0.0, max_sinkhorn=5000, first_order=False, support="magnitude",
        )  # fmt: skip
        problem, target = setting(jnp.float64)
        solution = solve(method, problem, target.budget)
        trace = np.asarray(solution.objective)
        assert len(trace) == 13
        # Sinkhorn stops at a marginal error of 1e-3, which the objective feels; a sort
        # is exact.
        slack = 1e-12 if settings["epsilon"] == 0 else 1e-3
        assert np.all(np.diff(trace) <= slack * trace[0])
        assert trace[-1] < trace[0]

    @pytest.mark.parametrize("name", ["identity", "smoothed", "hybrid", "exact"])
    def test_the_objective_in_the_dual_is_that_of_the_weights(self, name):
        """What the n x n algebra reports is Q at the weights that are returned."""
        problem, target = setting(jnp.float64)
        rows, wbar = problem.rows, problem.weights
        support = select(tuple(jnp.abs(w) for w in wbar), target.budget)
        y, damping = rows.project(wbar), 0.05
        variant = targets.make(
            name, epsilon=None, perplexity=3.0, rho=0.5, max_iterations=3000
        )
        state = variant.prepare(y)
        ground = prepare(rows, support, wbar, y, variant, state)
        fit = refit(rows, ground, y, variant, damping=damping, rounds=3, tolerance=0.0)
        x = rows.project(fit.weights)
        quadratic, _ = variant.fit(state, x, y)
        residual = np.asarray(x - quadratic.targets)
        m = np.eye(N) if quadratic.metric is None else np.asarray(quadratic.metric)
        ridge = N * damping / 2 * np.sum((flat(fit.weights) - flat(wbar)) ** 2)
        primal = residual @ m @ residual / 2 + float(quadratic.constant) + ridge
        # Sinkhorn stops at a marginal error of 1e-3.
        np.testing.assert_allclose(fit.objective[-1], primal, rtol=2e-3)

    def test_gradient_at_the_reference_tells_the_variants_apart(self):
        """Pulling w = wbar away from itself is the bias of the exact objective."""
        problem, _ = setting(jnp.float64)
        y = problem.rows.project(problem.weights)
        slopes = {}
        for name in ("identity", "exact", "debiased", "smoothed", "hybrid"):
            variant = targets.make(
                name, epsilon=None, perplexity=4.0, rho=0.5, max_iterations=5000
            )
            fit, _ = variant.fit(variant.prepare(y), y, y)
            slopes[name] = float(jnp.abs(y - fit.targets).max() / jnp.abs(y).max())
        assert slopes["identity"] == slopes["smoothed"] == 0
        assert slopes["debiased"] < 1e-6
        assert slopes["exact"] > 1e-3
        assert slopes["hybrid"] > 1e-3

    def test_within_limits_the_support(self):
        problem, target = setting(jnp.float64)
        allowed = tuple(
            jnp.arange(w.size).reshape(w.shape) % 2 == 0 for w in problem.weights
        )
        problem = dataclasses.replace(problem, within=allowed)
        budget = target.at(0.8).budget
        names = ("magnitude", "linear-regression", "hard thresholding", "official")
        names += ("grasp", "random", "synflow")
        names += (
            "saliency",
            "obd",
            "woodfisher in blocks",
            "woodfisher alone",
            "cbs",
            "chita",
        )
        for name in names:
            solution = solve(EVERY[name], problem, budget)
            for mask, inside in zip(solution.masks, allowed, strict=True):
                assert not np.any(mask & ~inside)

    def test_hard_thresholding_never_ends_above_its_start(self):
        problem, target = setting(jnp.float64)
        common = {"first_order": False, "damping": 0.01}
        first = solve(
            linear_regression(support="magnitude", **common), problem, target.budget
        )
        searched = solve(
            linear_regression(support="iht", iterations=30, **common),
            problem,
            target.budget,
        )
        assert int(searched.details["support_swaps"]) > 0
        assert float(searched.objective[-1]) < float(first.objective[-1])

    def test_no_damping_and_too_few_rows_is_reported(self):
        problem, target = setting(jnp.float64, sparsity=0.1)
        doubled = setting(jnp.float64, sparsity=0.8)
        few = doubled[1].budget
        solution = solve(linear_regression(damping=0.0), doubled[0], few)
        assert Status(int(solution.status)) is Status.RANK_DEFICIENT
        solution = solve(linear_regression(damping=0.1), problem, target.budget)
        assert Status(int(solution.status)) is Status.CONVERGED

    def test_a_coupling_that_did_not_converge_is_reported(self):
        problem, target = setting(jnp.float64)
        method = swap(target="exact", epsilon=1e-6, max_sinkhorn=3)
        solution = solve(method, problem, target.budget)
        assert Status(int(solution.status)) is Status.TRANSPORT_NOT_CONVERGED
        assert not bool(solution.details["transport_converged"])


@pytest.mark.usefixtures("x64")
class TestFirstOrder:
    """The natural-gradient step, and how far the rows left out confirm it."""

    def test_the_trusted_length_is_that_of_re_fits_without_each_row(self):
        problem, _ = setting(jnp.float64)
        g, damping, batch = explicit(problem.rows)[:, :40], 0.3, 1
        rng = np.random.default_rng(0)
        residual = rng.normal(size=N)

        def change(keep, t):
            """What a re-fit on some rows does to all rows."""
            gs = g[keep]
            k = gs @ gs.T + N * damping * np.eye(len(gs))
            return g @ gs.T @ np.linalg.solve(k, t[keep])

        every = np.arange(N)
        missed, follow = np.empty(N), np.empty(N)
        for i in range(N):
            others = every[every != i]
            missed[i] = change(others, residual)[i] - residual[i]
            follow[i] = change(others, np.ones(N))[i]
        # d/ds of mean(v) + batch/2 mean(v^2) at v = missed - s follow vanishes.
        expected = (follow.mean() + batch * (missed * follow).mean()) / (
            batch * (follow**2).mean()
        )
        system = damp(diagonalise(jnp.asarray(g @ g.T)), damping)
        length = natural_step.trusted_length(system, jnp.asarray(residual), batch)
        np.testing.assert_allclose(length, np.clip(expected, 0, 1 / batch), rtol=1e-8)

    def test_never_raises_the_loss_of_the_rows(self):
        problem, target = setting(jnp.float64)
        without = solve(linear_regression(first_order=False), problem, target.budget)
        with_it = solve(linear_regression(), problem, target.budget)
        loss = problem.rows.loss
        assert float(loss(with_it.weights)) <= float(loss(without.weights))
        assert 0 <= float(with_it.details["first_order"]) <= 1


@pytest.mark.usefixtures("x64")
class TestOfficial:
    """The released code's behaviour, from its description, with explicit G."""

    @pytest.mark.parametrize("paired", [True, False])
    def test_equals_an_explicit_reference(self, paired):
        problem, target = setting(jnp.float64)
        method = (
            linear_regression(official=True)
            if paired
            else swap(official=True, epsilon=0.0)
        )
        solution = solve(method, problem, target.budget)
        g, w = explicit(problem.rows), flat(problem.weights)
        start, k = flat(problem.initial), target.kept
        x, y = g @ w, g @ start
        if paired:
            direction = g.T @ (x - y) + N * 0.01 * (w - start)
        else:
            pi = np.zeros((N, N))
            pi[np.argsort(x), np.argsort(y)] = 1 / N
            direction = g.T @ pi.T @ (x - y) + 0.01 * (w - start)
        tau = float(solution.details["tau"])
        stepped = np.abs(w - tau * direction)
        expected = np.zeros(len(w), bool)
        expected[np.argsort(-stepped, kind="stable")[:k]] = True
        np.testing.assert_array_equal(flat(solution.masks).astype(bool), expected)
        # The old values stay.
        np.testing.assert_array_equal(flat(solution.weights), np.where(expected, w, 0))
        assert tau >= 0

    def test_epsilon_may_be_infinite(self):
        problem, target = setting(jnp.float64)
        solution = solve(
            swap(official=True, epsilon=float("inf")), problem, target.budget
        )
        np.testing.assert_allclose(solution.details["perplexity"], N)


def test_one_row_and_rows_of_zeros_are_harmless():
    problem, target = setting()
    silent = Problem(
        problem.weights,
        problem.initial,
        per_example_gradients(
            lambda p, b: 0.0 * jnp.sum(p["w"]["kernel"]) + 0.0 * jnp.sum(b),
            {"w": {"kernel": jnp.arange(1.0, 5.0).reshape(2, 2)}},
            jnp.ones((3, 1)),
            plan({"w": {"kernel": jnp.ones((2, 2))}}, 0.5),
        ),
    )
    small = plan({"w": {"kernel": jnp.ones((2, 2))}}, 0.5)
    weights = (jnp.arange(1.0, 5.0).reshape(2, 2),)
    silent = Problem(weights, weights, silent.rows)
    for name in ("smoothed", "hybrid", "official"):
        solution = solve(EVERY[name], silent, small.budget)
        # Nothing to learn from: the largest weights stay as they are.
        np.testing.assert_allclose(solution.weights[0], [[0, 0], [3, 4]], atol=1e-6)

    one = per_example_gradients(
        loss_fn,
        {
            "fc1": {"kernel": problem.weights[0], "bias": jnp.zeros(9)},
            "fc2": {"kernel": problem.weights[1]},
        },
        (jnp.ones((1, 6)), jnp.ones((1, 2))),
        target,
    )
    for name in ("smoothed", "hybrid", "official"):
        solution = solve(
            EVERY[name], Problem(problem.weights, problem.weights, one), target.budget
        )
        assert np.isfinite(flat(solution.weights)).all()


def test_noise_leaves_the_contract_alone():
    problem, target = setting(corruption=GradientNoise(4.0, 0.5), key=jax.random.key(1))
    solution = solve(EVERY["smoothed"], problem, target.budget)
    assert flat(solution.masks).sum() == target.kept


class TestTable:
    def test_the_factories_are_the_public_names(self):
        listed = [row.factory.__name__ for row in METHODS.values()]
        assert sorted(listed) == sorted(methods.__all__)
        for name in listed:
            assert getattr(swapjax, name) is getattr(swapjax.pruning, name)

    @pytest.mark.parametrize("row", METHODS.values(), ids=list(METHODS))
    def test_rows_tell_the_truth(self, row):
        method = LISTED[row.name]
        assert method.name == row.name == row.factory.__name__.replace("_", "-")
        needs = {
            "nothing": (False, False, False),
            "gradients": (True, False, False),
            "activations": (False, True, False),
            "network": (False, False, True),
        }
        got = (method.needs_rows, method.needs_layers, method.needs_params)
        assert got == needs[row.needs]
        assert set(row.options) <= set(inspect.signature(row.factory).parameters)
        assert not row.summary.endswith(".")

    def test_lines_of_pictures_are_told_apart(self):
        assert len({row.colour for row in METHODS.values()}) == len(METHODS)

    @pytest.mark.parametrize(
        "name", [n for n, row in METHODS.items() if "patterns" in row.unsupported]
    )
    def test_what_a_method_cannot_do_is_refused(self, name):
        problem, _ = setting()
        patterned = plan(problem.params, pattern=NM(2, 3))
        with pytest.raises(ValueError, match="pattern"):
            LISTED[name](problem, patterned.budget)


def test_methods_of_the_same_settings_are_one():
    assert swap() == swap()
    assert hash(swap(epsilon=0.1)) == hash(swap(epsilon=0.1))
    assert swap(epsilon=0.1) != swap(epsilon=0.2)
    assert "damping=(0.5,)" in str(linear_regression(damping=0.5))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (swap, {"target": "other"}, "target must be 'exact', 'debiased'"),
        (swap, {"epsilon": -0.1}, "epsilon must be 0 or more, got -0.1"),
        (swap, {"epsilon": float("nan")}, "epsilon must be 0 or more, got nan"),
        (swap, {"epsilon": 0.1, "perplexity": 2.0}, "epsilon or perplexity, not both"),
        (swap, {"perplexity": 1.0}, "perplexity must be more than 1"),
        (swap, {"perplexity": float("inf")}, "perplexity must be more than 1 and fin"),
        (swap, {"rho": 1.5}, r"rho must be in \[0, 1\]"),
        (swap, {"max_sinkhorn": 0}, "max_sinkhorn must be 1 or more"),
        (swap, {"damping": -1.0}, "damping must be 0 or more, got -1.0"),
        (linear_regression, {"damping": float("inf")}, "damping must be 0 or more"),
        (linear_regression, {"support": "largest"}, "support must be of 'magnitude'"),
        (linear_regression, {"support": ()}, "support must be of 'magnitude'"),
        (swap, {"reference": "first"}, "reference must be 'current' or 'initial'"),
        (swap, {"iterations": 0}, "iterations must be 1 or more"),
        (swap, {"rounds": 0}, "rounds must be 1 or more"),
        (swap, {"tolerance": -1.0}, "tolerance must be 0 or more"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_method_that_needs_rows_says_so():
    weights = (jnp.ones((2, 2)),)
    target = plan({"kernel": weights[0]}, 0.5)
    with pytest.raises(ValueError, match="needs gradient rows"):
        linear_regression()(Problem(weights, weights), target.budget)
    assert (
        int(magnitude()(Problem(weights, weights), target.budget).masks[0].sum()) == 2
    )
