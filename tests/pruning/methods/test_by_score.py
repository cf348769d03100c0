"""Criteria, ours and a stranger's, against explicit arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import explicit, flat, loss_fn, setting, solve

import swapjax
from swapjax import Status
from swapjax.pruning import by_score


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
                r"leaf 0 must be floats of shape \(6, 9\), got float32 of shape \(9,\)",
            ),
            (
                lambda p: [p.weights[0], p.weights[1] > 0],
                r"leaf 1 must be floats of shape \(9, 2\), got bool of shape \(9, 2\)",
            ),
        ],
        ids=["fewer", "an array", "nothing", "another shape", "bools"],
    )
    def test_bad_scores_are_named(self, score, message):
        problem, target = setting()
        with pytest.raises(ValueError, match="score of mine: ") as e:
            by_score("mine", score)(problem, target.budget)
        assert e.match(message)
