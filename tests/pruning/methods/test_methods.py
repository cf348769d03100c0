"""Every method through one contract, and the table of them."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network import apply, loss_fn
from problems import check_contract, setting, solve
from trees import flat

import swapjax
from swapjax import (
    NM,
    GradientNoise,
    Status,
    cbs,
    chita,
    linear_regression,
    magnitude,
    obd,
    plan,
    saliency,
    swap,
    woodfisher,
)
from swapjax.activations.trace import second_moments
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem, methods
from swapjax.pruning.methods import METHODS

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
}
EVERY = LISTED | VARIANTS


NARROW = (
    "magnitude", "hybrid in order", "swap-released", "woodfisher in blocks", "chita",
    "grasp", "random", "synflow", "kfac-regression",
)  # fmt: skip


def limited(problem):
    """The problem with every other weight for good at zero."""
    allowed = tuple(
        jnp.arange(w.size).reshape(w.shape) % 2 == 0 for w in problem.weights
    )
    return dataclasses.replace(problem, within=allowed)


def require_inside(solution, problem):
    for mask, inside in zip(solution.masks, problem.within, strict=True):
        assert not np.any(mask & ~inside)


@pytest.mark.parametrize("name", LISTED)
def test_every_method_keeps_the_contract(name):
    keeps_the_contract(name)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_keep_the_contract(name):
    keeps_the_contract(name)


def with_layers(method, problem, target):
    """The problem with what its layers read, if the method looks at it."""
    if not method.needs_layers:
        return problem
    rows = getattr(problem.rows, "source", problem.rows)  # stored, or matrix-free
    data = jax.tree.map(lambda x: x[:, 0], rows.examples)
    layers = second_moments(loss_fn, problem.params, data, target.layout.paths)
    return dataclasses.replace(problem, layers=layers)


def keeps_the_contract(name):
    problem, target = setting(jnp.float32)
    problem = with_layers(EVERY[name], problem, target)
    solution = solve(EVERY[name], problem, target.budget)
    check_contract(solution, target, "float32")
    assert Status(int(solution.status)).sentence.endswith(".")
    text = METHODS[EVERY[name].name].factory.__doc__
    for other in re.findall(r"details are those of `(\w+)`", text):
        text += getattr(methods, other).__doc__
    for key in solution.details:
        assert f"``{key}``" in text


@pytest.mark.parametrize("name", NARROW)
def test_narrow_weights_keep_the_contract_within_masks(name):
    problem, target = setting(jnp.bfloat16)
    problem, target = limited(problem), target.at(0.8)
    problem = with_layers(EVERY[name], problem, target)
    solution = solve(EVERY[name], problem, target.budget)
    check_contract(solution, target, "bfloat16")
    require_inside(solution, problem)


@pytest.mark.parametrize(
    "name",
    [
        "linear-regression", "hybrid in order", "saliency", "grasp", "obd",
        "woodfisher in blocks", "woodfisher full alone", "woodfisher alone", "cbs",
        "chita", "kfac-regression",
    ],
)  # fmt: skip
def test_matrix_free_and_stored_agree(name):
    solutions = []
    for storage in ("stored", "matrix-free"):
        problem, target = setting(storage=storage)
        problem = with_layers(EVERY[name], problem, target)
        solutions.append(solve(EVERY[name], problem, target.budget))
    stored, free = solutions
    assert all((a == b).all() for a, b in zip(stored.masks, free.masks, strict=True))
    np.testing.assert_allclose(
        flat(free.weights),
        flat(stored.weights),
        atol=1e-4 * np.abs(flat(stored.weights)).max(),
    )


@pytest.mark.parametrize(
    "name", ["linear-regression", "hard thresholding", "obd", "woodfisher alone", "cbs"]
)
def test_within_limits_the_support(name):
    """Of those that no test of narrow weights limits."""
    problem, target = setting()
    problem = limited(problem)
    solution = solve(EVERY[name], problem, target.at(0.8).budget)
    require_inside(solution, problem)


def test_one_row_and_rows_of_zeros_are_harmless():
    problem, target = setting()
    params = {"w": {"kernel": jnp.arange(1.0, 5.0).reshape(2, 2)}}
    small = plan(params, 0.5)
    rows = per_example_gradients(
        lambda p, b: 0.0 * jnp.sum(p["w"]["kernel"]) + 0.0 * jnp.sum(b),
        params, jnp.ones((3, 1)), small,
    )  # fmt: skip
    weights = small.layout.split(params)
    silent = Problem(weights, weights, rows)
    for name in ("smoothed", "hybrid", "swap-released"):
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
    for name in ("smoothed", "hybrid", "swap-released"):
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
        for row in METHODS.values():
            assert getattr(swapjax.pruning, row.factory.__name__) is row.factory

    @pytest.mark.parametrize("row", METHODS.values(), ids=list(METHODS))
    def test_rows_tell_the_truth(self, row):
        method = LISTED[row.name]
        assert method.name == row.name == row.factory.__name__.replace("_", "-")
        needs = {
            "nothing": (False, False, False),
            "gradients": (True, False, False),
            "activations": (False, True, False),
            "both": (True, "some", False),
            "network": (False, False, True),
        }
        got = (method.needs_rows, method.needs_layers, method.needs_params)
        assert got == needs[row.needs]
        assert set(row.options) <= set(inspect.signature(row.factory).parameters)
        assert not row.summary.endswith(".")
        for paper in re.findall(r"arXiv:[\d.]+", row.source):
            assert paper in row.factory.__doc__

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


def test_a_method_that_needs_rows_says_so():
    weights = (jnp.ones((2, 2)),)
    target = plan({"kernel": weights[0]}, 0.5)
    with pytest.raises(ValueError, match="needs gradient rows"):
        linear_regression()(Problem(weights, weights), target.budget)
    assert (
        int(magnitude()(Problem(weights, weights), target.budget).masks[0].sum()) == 2
    )


def test_they_say_that_they_need_rows():
    weights = (jnp.ones((2, 2)),)
    budget = plan({"kernel": weights[0]}, 0.5).budget
    for method in (saliency(), obd(), woodfisher(), cbs(), chita()):
        with pytest.raises(ValueError, match="needs gradient rows"):
            method(Problem(weights, weights), budget)
