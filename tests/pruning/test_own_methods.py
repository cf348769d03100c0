"""Methods of one's own: what they return, and how files of runs tell them apart."""

import jax
import jax.numpy as jnp
import pytest
from prune_runs import prune, setting
from trees import equal

import swapjax
from swapjax import Method, Solution


@pytest.fixture(scope="module")
def problem():
    return setting()


def solution(problem, budget, *, masks=None, weights=None):
    """Keep the largest weights, and replace what a test wants otherwise."""
    chosen = swapjax.select([jnp.abs(w) for w in problem.weights], budget)
    masks = chosen if masks is None else masks(problem.weights)
    kept = [jnp.where(m, w, 0) for m, w in zip(chosen, problem.weights, strict=True)]
    weights = kept if weights is None else weights(problem.weights)
    zero = jnp.zeros((), jnp.int32)
    return Solution(tuple(weights), tuple(masks), jnp.zeros(1), zero, zero, {})


def returning(**changes):
    return lambda problem, budget: solution(problem, budget, **changes)


def test_a_method_of_ones_own_prunes(problem):
    pruned = prune(problem, method=Method("mine", (), returning(), needs_rows=False))
    assert equal(pruned.masks, prune(problem, method=swapjax.magnitude()).masks)


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda problem, budget: None, "method mine: must return a Solution, got None"),
        (
            returning(masks=lambda ws: [jnp.ones(w.shape, bool) for w in ws]),
            "method mine: keeps 90 entries, more than the 18 of its budget",
        ),
        (
            returning(masks=lambda ws: [jnp.ones(w.shape) for w in ws]),
            r"masks of method mine: fc1/kernel must be bools of shape \(6, 10\), got f",
        ),
        (
            returning(weights=lambda ws: ws),
            "method mine: 72 weights are not zero where masks are False",
        ),
        (
            returning(weights=lambda ws: [w.ravel() for w in ws]),
            r"weights of method mine: fc1/kernel must be floats of shape \(6, 10\)",
        ),
        (
            returning(weights=lambda ws: ws[:1]),
            "method mine: must return weights of the 2 prunable leaves",
        ),
    ],
)
def test_what_it_returns_is_checked(problem, solve, message):
    with pytest.raises(ValueError, match=message):
        prune(problem, method=Method("mine", (), solve, needs_rows=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, (), returning()), "name must be text, got 3"),
        (("mine", (), None), "solve must be a function of a problem and a budget"),
        (("mine", [("a", [])], returning()), "settings must be pairs of a name and"),
        (("mine", ("ab", "cd"), returning()), "settings must be pairs of a name and"),
    ],
)
def test_bad_fields_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Method(*arguments)


def test_settings_may_be_a_list(problem):
    method = Method("mine", [("a", 1)], returning(), needs_rows=False)
    assert str(method) == "mine(a=1)"
    assert method == Method("mine", (("a", 1),), returning(), needs_rows=False)


class TestCriteriaInFiles:
    """A run goes on with the criterion that it began with."""

    def criterion(self, sign):
        return swapjax.by_score(
            "mine",
            lambda problem: [sign * jnp.abs(w) for w in problem.weights],
            needs_rows=False,
        )

    def test_the_same_goes_on(self, problem, tmp_path):
        state = tmp_path / "state.safetensors"
        first = prune(problem, method=self.criterion(1.0), checkpoint=state)
        again = prune(problem, method=self.criterion(1.0), checkpoint=state)
        assert equal(first.masks, again.masks)

    def test_another_is_refused(self, problem, tmp_path):
        state = tmp_path / "state.safetensors"
        prune(problem, method=self.criterion(1.0), checkpoint=state)
        with pytest.raises(ValueError, match=r"another run \(method was mine"):
            prune(problem, method=self.criterion(-1.0), checkpoint=state)

        def other(problem):
            return [jnp.square(w) for w in problem.weights]

        method = swapjax.by_score("mine", other, needs_rows=False)
        with pytest.raises(ValueError, match="another run"):
            prune(problem, method=method, checkpoint=state)


def test_gradients_that_are_not_there_are_asked_for(problem):
    method = swapjax.by_score(
        "mine", lambda problem: problem.rows.mean_squares(), needs_rows=False
    )
    with pytest.raises(ValueError, match=r"score of mine: .*needs_rows"):
        prune(problem, method=method)


@pytest.mark.parametrize("count", [1, 3])
def test_select_wants_one_score_for_each_leaf(problem, count):
    budget = swapjax.plan(problem[0], 0.5).budget
    scores = [jnp.ones((2, 2))] * count
    message = (
        f"scores: must be one array for each of the 2 leaves of the budget, got {count}"
    )
    with pytest.raises(ValueError, match=message):
        swapjax.select(scores, budget)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cubic"}, "schedule must be what a function like swapjax.cubic"),
        ({"finetune": "adam"}, "finetune must be a swapjax.FineTune, got 'adam'"),
        ({"recalibrate": 3}, "recalibrate must be a function, got 3"),
        ({"callback": "log"}, "callback must be a function, got 'log'"),
        ({"dtype": "banana"}, "dtype must be one of floats, got 'banana'"),
        ({"dtype": jnp.int8}, "dtype must be one of floats, got int8"),
        ({"key": 0}, "key must be a JAX PRNG key, got 0"),
        ({"key": jax.random.split(jax.random.key(0))}, "key must be one PRNG key"),
        ({"method": "swap"}, "method must be what a function like swapjax.swap"),
        ({"noise": 0.5}, "noise must be a function of rows"),
    ],
)
def test_settings_of_prune_are_checked_before_any_work(problem, options, message):
    with pytest.raises(ValueError, match=message):
        prune(problem, **options)


def test_noise_needs_no_key_where_nothing_takes_gradients(problem):
    noise = swapjax.GradientNoise(1.0, 0.5)
    pruned = prune(problem, method=swapjax.magnitude(), key=None, noise=noise)
    assert equal(pruned.masks, prune(problem, method=swapjax.magnitude()).masks)


def test_values_are_not_checked_under_jit():
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="params: values are checked here, which jit"):
        jax.jit(lambda p: swapjax.magnitude_masks(p, 0.5))(params)
