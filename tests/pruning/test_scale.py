"""A loss in other units gives the same network, and no re-fit is worse than none."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest

import swapjax
from swapjax import Status
from swapjax.gradients.build import per_example_gradients, recipe
from swapjax.gradients.unit import form_in_unit, in_unit
from swapjax.pruning import Method, Solution
from swapjax.pruning.methods import METHODS
from swapjax.pruning.solvers import cholesky, dual_system
from swapjax.sparsity import scores
from swapjax.sparsity.masks import apply_masks

SCALES = (1e-6, 1e-3, 1e3, 1e6)
POWERS = (2.0**-20, 2.0**-10, 2.0**10, 2.0**20)
GIVEN = {"random": (jax.random.key(3),), "synflow": (network.apply, (6,))}
METHOD = {name: row.factory(*GIVEN.get(name, ())) for name, row in METHODS.items()}
METHOD |= {
    "woodtaylor": swapjax.woodfisher(block=None, first_order=True),
    "chita along the gradient": swapjax.chita(search="iht", first_order=True),
    "debiased": swapjax.swap(target="debiased", max_sinkhorn=20),
    "weighed by the Fisher": swapjax.layerwise_obs(weigh="fisher"),
}


def scaled_loss(params, batch):
    """A loss whose unit is data, so that all units share a program."""
    x, y, scale = batch
    return jnp.mean(scale) * jnp.mean(jnp.square(network.apply(params, x) - y))


@pytest.fixture(scope="module")
def problem():
    params = network.make(1, hidden=10, outputs=3)
    x, noise = network.data(120, 1, outputs=3)
    return params, (x, network.apply(params, x) + 0.5 * noise)


def prune(problem, scale, name, **options):
    params, (x, y) = problem
    data = x, y, jnp.full(len(x), scale, jnp.float32)
    return swapjax.prune(
        scaled_loss, params, data, method=METHOD[name], sparsity=0.6, samples=40,
        batch=2, key=jax.random.key(0), **options,
    )  # fmt: skip


def require_same(problem, name, scales, **options):
    plain = prune(problem, 1, name, **options)
    weights = network.kernels(plain.params)
    for scale in scales:
        other = prune(problem, scale, name, **options)
        assert other.history[-1].status is plain.history[-1].status
        for a, b in zip(network.kernels(other.params), weights, strict=True):
            np.testing.assert_array_equal(a != 0, b != 0)
            np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())
        if "unit" in plain.history[-1].details:
            ratio = (
                other.history[-1].details["unit"] / plain.history[-1].details["unit"]
            )
            np.testing.assert_allclose(ratio, scale, rtol=1e-3)


class TestScale:
    """Masks and weights of a loss in other units."""

    @pytest.mark.parametrize("name", METHOD)
    def test_every_method_leaves_the_network_alone(self, problem, name):
        # Twenty iterations of debiased couplings are far from converged, and tell the
        # rounding of other units in the third digit. Powers of two are exact.
        require_same(problem, name, POWERS if name == "debiased" else SCALES)

    @pytest.mark.parametrize("name", ["swap", "obd", "grasp"])
    def test_rows_that_are_not_stored(self, problem, name):
        require_same(problem, name, (1e-6, 1e6), storage="matrix-free")

    def test_rows_in_bfloat16(self, problem):
        require_same(problem, "linear-regression", (1e-6, 1e6), dtype=jnp.bfloat16)

    def test_noisy_rows(self, problem):
        noise = swapjax.GradientNoise(1.0, 0.25)
        require_same(problem, "obd", (1e-25, 1e6), noise=noise)

    def test_losses_at_the_ends_of_float32(self, problem):
        require_same(problem, "linear-regression", (1e-25, 1e25))


class TestUnit:
    """The root mean square norm of the rows."""

    @pytest.mark.parametrize("storage", ["stored", "matrix-free"])
    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
    @pytest.mark.parametrize("dtype", [None, jnp.float16])
    def test_equals_numpy(self, problem, storage, scale, dtype):
        params, (x, y) = problem
        target = swapjax.plan(params, 0.5)
        data = x, y, jnp.full(len(x), scale, jnp.float32)
        free = recipe(scaled_loss, params, data, target, batch=3, dtype=dtype, chunk=7)
        rows = form_in_unit(free, target, storage)
        plain = per_example_gradients(
            lambda p, b: scaled_loss(p, (*b[:2], 1.0)), params, data, target, batch=3
        )
        g = np.concatenate(
            [np.asarray(m, np.float64).reshape(len(m), -1) for m in plain.matrices], 1
        )
        unit = np.sqrt(np.mean(np.sum(g**2, axis=1)))
        np.testing.assert_allclose(rows.unit, np.float32(scale) * unit, rtol=1e-5)
        weights = target.layout.split(params)
        found = rows.project(weights)
        w = np.concatenate([np.ravel(leaf) for leaf in weights])
        rough = 1e-4 if dtype is None else 1e-2
        np.testing.assert_allclose(
            found, g @ w / unit, atol=rough * np.abs(found).max()
        )
        # Nothing is divided twice.
        assert in_unit(rows) is rows

    def test_rows_of_zeros_have_the_unit_one(self, problem):
        params, (x, y) = problem
        target = swapjax.plan(params, 0.5)
        data = x, y, jnp.zeros(len(x))
        assert float(in_unit(recipe(scaled_loss, params, data, target)).unit) == 1

    def test_squares_of_tiny_gradients_do_not_tie(self):
        weights = (jnp.linspace(1e-12, 2e-12, 50),)
        squares = (jnp.linspace(1e-30, 3e-30, 50),)
        assert len(np.unique(scores.fisher_diagonal(weights, squares)[0])) == 50


def refitting(change):
    """A method that keeps the largest weights, changed."""

    def solve(problem, budget):
        ranked = tuple(abs(w) for w in problem.weights)
        mask = swapjax.select(ranked, budget, problem.within)
        moved = tuple(change(w) for w in problem.weights)
        return Solution(
            apply_masks(moved, mask), mask, jnp.zeros(1), jnp.zeros((), jnp.int32),
            jnp.asarray(Status.CONVERGED, jnp.int32), {},
        )  # fmt: skip

    return Method("mine", (), solve, needs_rows=False)


class TestNeverWorse:
    """The loss of the stage's examples, against weights that were only thresholded."""

    @pytest.mark.parametrize("change", [lambda w: 30 * w, lambda w: w * jnp.nan])
    def test_a_re_fit_that_harms_is_not_taken(self, problem, change):
        options = {"sparsity": 0.6, "samples": 40, "key": jax.random.key(0)}
        found = swapjax.prune(
            network.loss_fn, *problem, method=refitting(change), **options
        )
        plain = swapjax.prune(
            network.loss_fn, *problem, method=swapjax.magnitude(), **options
        )
        assert found.history[-1].status is Status.NOT_REFITTED
        for a, b in zip(
            network.kernels(found.params), network.kernels(plain.params), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    def test_one_that_helps_is(self):
        # The weights that are left do better at double their size.
        params = {"kernel": jnp.asarray([[1.0], [1.1]])}
        x = jnp.ones((20, 2))
        found = swapjax.prune(
            lambda p, x: jnp.mean((x @ p["kernel"] - 2.1) ** 2), params, x,
            method=refitting(lambda w: 1.9 * w), sparsity=0.5, samples=20,
            key=jax.random.key(0),
        )  # fmt: skip
        assert found.history[-1].status is Status.CONVERGED
        np.testing.assert_allclose(found.params["kernel"], [[0], [2.09]], rtol=1e-6)

    @pytest.mark.parametrize(
        "method",
        [
            swapjax.linear_regression(damping=1e-12, first_order=False),
            swapjax.chita(damping=0.0, search="magnitude"),
            swapjax.swap(target="exact", epsilon=100.0, support="magnitude"),
        ],
    )
    def test_settings_that_do_not_suit_do_no_harm(self, problem, method):
        options = {"sparsity": 0.7, "samples": 30, "key": jax.random.key(0)}
        found = swapjax.prune(network.loss_fn, *problem, method=method, **options)
        plain = swapjax.prune(
            network.loss_fn, *problem, method=swapjax.magnitude(), **options
        )
        assert found.history[-1].loss <= plain.history[-1].loss * (1 + 1e-6)


class TestFloors:
    """Dampings below what rounding resolves."""

    solvers = staticmethod(
        jax.jit(
            lambda matrix, ridge: (
                dual_system.damp(dual_system.diagonalise(matrix), ridge / len(matrix)),
                cholesky.factor(matrix, ridge),
            )
        )
    )

    def test_are_raised_in_every_solver(self):
        g = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
        gram = g.T @ g  # rank 3 of 40
        least = float(np.trace(gram)) * np.finfo(np.float32).eps
        for ridge in (1e-12, 1e-9):
            system, factor = self.solvers(gram, ridge)
            assert bool(system.raised)
            assert bool(factor.raised)
            np.testing.assert_allclose(system.ridge, least, rtol=1e-3)
            assert least <= float(factor.ridge) * 1.001 <= 100 * least
        for ridge in (1e-2, 1.0):
            system, factor = self.solvers(gram, ridge)
            assert not bool(system.raised)
            assert not bool(factor.raised)

    def test_leave_sound_systems_alone(self):
        matrix = np.diag(np.linspace(1, 2, 40, dtype=np.float32))
        system, factor = self.solvers(matrix, 1e-12)
        assert not bool(system.raised)
        assert not bool(factor.raised)

    @pytest.mark.parametrize("algebra", ["gram", "cg"])
    def test_are_told(self, problem, algebra):
        method = swapjax.linear_regression(
            damping=1e-15, first_order=False, algebra=algebra, support="magnitude"
        )
        params, (x, y) = problem
        target = swapjax.plan(params, 0.3)
        rows = in_unit(per_example_gradients(network.loss_fn, params, (x, y), target))
        weights = target.layout.split(params)
        given = swapjax.pruning.Problem(weights, weights, rows)
        solution = jax.jit(method.__call__)(given, target.budget)
        assert float(solution.details["damping"]) > 1e-9
        assert int(solution.status) in (
            Status.DAMPED, Status.NOT_REFITTED, Status.ITERATION_LIMIT
        )  # fmt: skip
