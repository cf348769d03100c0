"""Criteria, ours and a stranger's, against explicit arithmetic."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network import apply, loss_fn
from problems import N, chain, chain_params, explicit, setting, solve
from trees import flat

import swapjax
from swapjax import (
    GradientNoise,
    Status,
    grasp,
    obd,
    plan,
    random,
    saliency,
    snip,
    synflow,
)
from swapjax.pruning import Problem, by_score
from swapjax.sparsity.scores import gradient_flow

KEY = jax.random.key(0)


def root(problem):
    """``|w| sqrt(F_qq)``."""
    squares = problem.rows.mean_squares()
    return [abs(w) * jnp.sqrt(f) for w, f in zip(problem.weights, squares, strict=True)]


def size(problem):
    return [abs(w) for w in problem.weights]


def power(exponent):
    def score(problem):
        return [abs(w) ** exponent for w in problem.weights]

    settings = (("exponent", exponent),)
    return by_score("power", score, settings=settings, needs_rows=False)


class TestOwnCriterion:
    @pytest.mark.usefixtures("x64")
    def test_keeps_the_largest_scores(self):
        problem, target = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        wanted = np.abs(w) * np.sqrt(np.mean(g**2, axis=0))
        solution = solve(by_score("root", root), problem, target.budget)
        kept = flat(solution.masks).astype(bool)
        best = np.sort(np.argsort(-wanted)[: target.kept])
        np.testing.assert_array_equal(np.flatnonzero(kept), best)
        np.testing.assert_array_equal(flat(solution.weights), np.where(kept, w, 0))
        assert Status(int(solution.status)) is Status.CONVERGED

    @pytest.mark.parametrize(
        ("method", "needs"),
        [
            (by_score("root", root), "rows"),
            (by_score("size", size, needs_rows=False), "nothing"),
        ],
        ids=["gradients", "nothing"],
    )
    def test_is_a_method_for_prune(self, method, needs):
        problem, _ = setting()
        data = (jnp.ones((24, 6)), jnp.zeros((24, 2)))
        pruned = swapjax.prune(
            loss_fn, problem.params, data, sparsity=0.5, method=method, samples=24,
            stages=2, key=jax.random.key(0),
        )  # fmt: skip
        assert method.needs_rows == (needs == "rows")
        assert swapjax.density(pruned.masks) == 0.5
        if needs == "nothing":
            control = swapjax.prune(
                loss_fn, problem.params, data, sparsity=0.5, samples=24, stages=2,
                method=swapjax.magnitude(), key=jax.random.key(0),
            )  # fmt: skip
            got, wanted = map(jax.tree.leaves, (pruned.params, control.params))
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(a, b)

    def test_may_look_at_what_layers_read_and_at_the_whole_network(self):
        def energy(problem):
            bias = problem.params["fc1"]["bias"]
            assert len(problem.layers) == 2
            assert bias.shape == (9,)
            return [
                layer.leaf(
                    jnp.abs(layer.matrix(w)) * jnp.trace(layer.moment[0]), w.shape
                )
                for w, layer in zip(problem.weights, problem.layers, strict=True)
            ]

        problem, _ = setting()
        data = (jnp.ones((24, 6)), jnp.zeros((24, 2)))
        pruned = swapjax.prune(
            loss_fn, problem.params, data, sparsity=0.5, samples=24,
            method=by_score(
                "energy", energy, needs_rows=False, needs_layers=True, needs_params=True
            ),
            key=jax.random.key(0),
        )  # fmt: skip
        assert swapjax.density(pruned.masks) == 0.5

    def test_scores_that_are_not_finite_are_told(self):
        def broken(problem):
            return [jnp.full(w.shape, jnp.nan) for w in problem.weights]

        problem, target = setting()
        solution = solve(by_score("broken", broken), problem, target.budget)
        assert Status(int(solution.status)) is Status.NOT_FINITE
        assert flat(solution.masks).sum() == target.kept

    def test_is_one_with_the_same_settings_and_the_same_code(self):
        assert power(2) == power(2) != power(3)
        assert hash(power(2)) == hash(power(2))
        assert str(power(2)) == "power(exponent=2)"
        other = by_score("power", size, settings=(("exponent", 2),), needs_rows=False)
        assert other != power(2)

    def test_a_criterion_that_is_written_again_is_another(self):
        """The name alone would give what was compiled for the first one."""
        problem, target = setting()
        masks = []
        for sign in (1, -1):

            def score(problem, sign=sign):
                return [sign * abs(w) for w in problem.weights]

            method = by_score("mine", score, needs_rows=False)
            masks.append(flat(solve(method, problem, target.budget).masks))
        assert masks[0].sum() == masks[1].sum() == target.kept
        assert (masks[0] != masks[1]).any()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"score": 3}, "score must be a function of a problem, got 3"),
            ({"name": ""}, "name must be text, got ''"),
            ({"name": root}, "name must be text, got <function"),
            ({"settings": (("a", [1]),)}, "settings must be pairs of a name and a va"),
            ({"settings": ("alpha",)}, "settings must be pairs of a name and a value"),
            ({"settings": 1}, "settings must be pairs of a name and a value"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            by_score(**{"name": "mine", "score": root, **arguments})

    @pytest.mark.parametrize(
        ("score", "message"),
        [
            (
                lambda p: size(p)[:1],
                "one array for each of the 2 prunable leaves, got 1",
            ),
            (lambda p: size(p)[0], "one array for each of the 2 prunable leaves, got "),
            (lambda p: None, "one array for each of the 2 prunable leaves, got None"),
            (
                lambda p: [jnp.sum(w, axis=0) for w in p.weights],
                r"fc1/kernel must be floats of shape \(6, 9\), got float32",
            ),
            (
                lambda p: [p.weights[0], p.weights[1] > 0],
                r"fc2/kernel must be floats of shape \(9, 2\), got bool",
            ),
        ],
        ids=["fewer", "an array", "nothing", "another shape", "bools"],
    )
    def test_bad_scores_are_named(self, score, message):
        problem, target = setting()
        with pytest.raises(ValueError, match="score of mine: ") as e:
            by_score("mine", score)(problem, target.budget)
        assert e.match(message)


@pytest.mark.usefixtures("x64")
class TestScored:
    """Ranks from formulas."""

    def test_saliency_and_obd(self):
        problem, target = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        scores = {
            saliency(): np.abs(w * g.mean(axis=0)),
            obd(): w**2 * np.mean(g**2, axis=0),
        }
        for method, score in scores.items():
            solution = solve(method, problem, target.budget)
            best = np.sort(np.argsort(-score)[: target.kept])
            np.testing.assert_array_equal(np.flatnonzero(flat(solution.masks)), best)
            kept = flat(solution.masks).astype(bool)
            np.testing.assert_array_equal(flat(solution.weights), np.where(kept, w, 0))


class TestSnip:
    @pytest.mark.usefixtures("x64")
    def test_takes_the_absolute_value_of_the_mean(self):
        problem, target = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        mean_first = np.abs(w * g.mean(0))
        kept = flat(solve(snip(), problem, target.budget).masks).astype(bool)
        assert kept.sum() == target.kept
        assert mean_first[kept].min() > mean_first[~kept].max()
        mean_last = np.abs(w * g).mean(0)
        assert set(np.argsort(-mean_last)[: target.kept]) != set(np.flatnonzero(kept))

    def test_is_saliency_under_its_own_name(self):
        assert str(snip()) == "snip()"
        problem, target = setting()
        got, wanted = (
            flat(solve(method, problem, target.budget).masks)
            for method in (snip(), swapjax.saliency())
        )
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.usefixtures("x64")
class TestGrasp:
    def squared_gradient(self, problem, at):
        g = problem.rows.at(at).pull_back(jnp.full(N, 1 / N))
        return float(np.sum(flat(g) ** 2))

    def scores(self, problem):
        gradient = problem.rows.pull_back(jnp.full(N, 1 / N))
        return gradient_flow(problem.weights, problem.rows.curve(gradient))

    @pytest.mark.parametrize("storage", ["stored", "matrix-free"])
    def test_scores_are_what_a_removal_takes_from_the_squared_gradient(self, storage):
        problem, target = setting(jnp.float64, storage=storage, chunk=5)
        weights, scores = problem.weights, flat(self.scores(problem))
        step, place = 1e-5, 0
        for leaf, w in enumerate(weights):
            for entry in range(0, w.size, 7):
                moved = [
                    tuple(
                        x if i != leaf else x.at[divmod(entry, x.shape[1])].multiply(m)
                        for i, x in enumerate(weights)
                    )
                    for m in (1 + step, 1 - step)
                ]
                more, less = (self.squared_gradient(problem, at) for at in moved)
                # A whole removal is a step of one: g^T g then changes by -2 w (H g).
                change = (less - more) / (2 * step)
                np.testing.assert_allclose(
                    change, -2 * scores[place + entry], rtol=1e-6, atol=1e-9
                )
            place += w.size
        kept = flat(solve(grasp(), problem, target.budget).masks).astype(bool)
        assert kept.sum() == target.kept
        assert scores[kept].min() > scores[~kept].max()

    def test_the_hessian_is_that_of_the_mean_loss(self):
        stored, _ = setting(jnp.float64)
        free, _ = setting(jnp.float64, storage="matrix-free", chunk=7)
        v = tuple(jnp.cos(jnp.arange(w.size)).reshape(w.shape) for w in stored.weights)
        gradient = jax.grad(stored.rows.loss)
        wanted = jax.jvp(gradient, (stored.weights,), (v,))[1]
        for problem in (stored, free):
            found = flat(problem.rows.curve(v)) * problem.rows.unit
            np.testing.assert_allclose(found, flat(wanted), rtol=1e-9, atol=1e-12)

    def test_noise_and_rounded_rows_leave_the_hessian_alone(self):
        clean, _ = setting(jnp.float64, storage="matrix-free")
        noisy, target = setting(
            jnp.float64, storage="matrix-free", corruption=GradientNoise(4.0, 0.5),
            key=KEY,
        )  # fmt: skip
        rounded = dataclasses.replace(clean.rows, dtype=jnp.dtype("bfloat16"))
        wanted = flat(clean.rows.curve(clean.weights)) * clean.rows.unit
        for rows in (noisy.rows, rounded):
            got = flat(rows.curve(clean.weights)) * rows.unit
            np.testing.assert_allclose(got, wanted, rtol=1e-12)
        solution = solve(grasp(), noisy, target.budget)
        assert flat(solution.masks).sum() == target.kept
        assert (
            flat(solution.masks) != flat(solve(grasp(), clean, target.budget).masks)
        ).any()


class TestRandom:
    def test_the_same_key_gives_the_same_masks(self):
        problem, target = setting()
        first, again, other = (
            flat(solve(random(key), problem, target.budget).masks)
            for key in (KEY, jax.random.key(0), jax.random.key(1))
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
        assert random(KEY) == random(jax.random.key(0)) != random(jax.random.key(1))
        assert hash(random(KEY)) == hash(random(jax.random.key(0)))
        old = solve(random(jax.random.PRNGKey(0)), problem, target.budget)
        np.testing.assert_array_equal(flat(old.masks), first)

    def test_entries_are_kept_wherever_they_lie(self):
        params = {"a": {"kernel": np.ones((400, 300))}, "b": {"kernel": np.ones(80000)}}
        target = plan(params, 0.7, include="kernel")
        weights = target.layout.split(jax.tree.map(jnp.float32, params))
        masks = solve(random(KEY), Problem(weights, weights), target.budget).masks
        for part in (*np.split(masks[0], 4), *np.split(masks[1], 4)):
            deviation = np.sqrt(0.3 * 0.7 / part.size)
            assert abs(np.mean(part) - 0.3) < 5 * deviation

    def test_counts_of_an_erk_plan_are_exact(self):
        params = chain_params((30, 20, 10, 4))
        target = plan(params, 0.8, allocation="erk")
        pruned = swapjax.prune(
            lambda p, b: jnp.mean(chain(p, b)), params, np.ones((1, 30), np.float32),
            plan=target, method=random(KEY), samples=1, key=KEY,
        )  # fmt: skip
        kept = [int(layer["kernel"].sum()) for layer in pruned.masks.values()]
        assert kept == list(target.keep)

    def test_masks_of_stages_lie_in_each_other(self):
        problem, target = setting()
        masks = [
            flat(solve(random(KEY), problem, target.at(s).budget).masks)
            for s in (0.2, 0.5, 0.6)
        ]
        for more, fewer in itertools.pairwise(masks):
            assert (fewer <= more).all()


@pytest.mark.parametrize("name", ["snip", "grasp", "random", "synflow", "magnitude"])
@pytest.mark.usefixtures("x64")
def test_jit_changes_nothing(name):
    problem, target = setting(jnp.float64)
    method = {
        "snip": snip(), "grasp": grasp(), "random": random(KEY),
        "synflow": synflow(apply, (6,)), "magnitude": swapjax.magnitude(),
    }[name]  # fmt: skip
    eager = method(problem, target.budget)
    jitted = solve(method, problem, target.budget)
    np.testing.assert_array_equal(flat(eager.masks), flat(jitted.masks))
    np.testing.assert_array_equal(flat(eager.weights), flat(jitted.weights))
    # Weights are left as they are, for training to start from.
    kept = flat(eager.masks).astype(bool)
    np.testing.assert_array_equal(
        flat(eager.weights), np.where(kept, flat(problem.weights), 0)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random(0), "key must be a JAX PRNG key, got 0"),
        (lambda: random(jax.random.split(KEY)), "key must be one PRNG key"),
        (lambda: random(jnp.ones(3)), "key must be a JAX PRNG key"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
