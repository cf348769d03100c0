"""The greedy order under the Kronecker-factored ridge against one weight at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.activations.layer import Layer
from swapjax.pruning.solvers import kfac, layer_curves, layer_order, layer_quadratic
from swapjax.pruning.solvers.layer_parts import Part
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget

SHAPES = ((5, 3), (7, 2))


def moment(rng, groups, inputs):
    a = rng.normal(size=(groups, 20, inputs)) * rng.uniform(0.3, 2, inputs)
    return np.einsum("gei,gej->gij", a, a) / 20


@pytest.fixture
def problem():
    """A dense layer, and two groups of which the second lacks an input."""
    rng = np.random.default_rng(0)
    index = np.where(np.arange(16) < 14, np.arange(16), -1).reshape(2, 4, 2)
    two = moment(rng, 2, 4)
    two[1, 3], two[1, :, 3] = 0, 0
    layers = (
        Layer(
            jnp.asarray(moment(rng, 1, 5), jnp.float32),
            jnp.arange(15, dtype=jnp.int32).reshape(1, 5, 3),
        ),
        Layer(
            jnp.asarray(two, jnp.float32), jnp.asarray(index, jnp.int32), filled=True
        ),
    )
    weights = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in SHAPES)
    squares = tuple(jnp.asarray(rng.uniform(1, 2, s), jnp.float32) for s in SHAPES)
    return kfac.estimate(layers, weights, squares), weights


def budget(kept):
    return Budget(jnp.asarray([kept], jnp.int32), (0, 0), (0, 0))


def scored(held, weights, within, budget, rule="obs"):
    (found,) = layer_order.scores(held, weights, within, budget, [rule])
    return found


def one_by_one(held, factors, weights, within):
    """Remove weights one by one in float64; the scaled rises, -1 for those outside."""
    found = []
    for layer, counts, w, m in zip(held.layers, factors, weights, within, strict=True):
        scored = np.full(w.size, -1.0)
        for g, matrix in enumerate(np.asarray(layer.moment, np.float64)):
            inputs = np.any(np.asarray(layer.index[g]) >= 0, axis=1)
            damped = matrix + 0.01 * np.diag(matrix).sum() / inputs.sum() * np.eye(
                len(matrix)
            )
            for o, factor in enumerate(np.asarray(counts, np.float64)[g, 0]):
                places = np.asarray(layer.index[g, :, o])
                dense = np.where(places < 0, 0, np.ravel(w)[places])
                left = [
                    i for i in range(len(matrix))
                    if places[i] >= 0 and np.ravel(m)[places[i]] and matrix[i, i] > 0
                ]  # fmt: skip
                last = 0.0
                while left:
                    part = damped[np.ix_(left, left)]
                    best = np.linalg.solve(part, damped[left] @ dense)
                    rises = best**2 / np.diag(np.linalg.inv(part))
                    goes = int(np.argmin(rises))
                    last = max(last, factor * rises[goes])
                    scored[places[left.pop(goes)]] = last
        found.append(scored.reshape(w.shape))
    return tuple(found)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_rises_are_those_of_one_weight_at_a_time(problem, share):
    held, weights = problem
    rng = np.random.default_rng(1)
    within = tuple(jnp.asarray(rng.uniform(size=s) < share) for s in SHAPES)
    got = jax.jit(lambda w: scored(held, w, within, budget(5)))(weights)
    expected = one_by_one(held, held.gammas, weights, within)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)


def test_where_little_goes_weights_are_scored_alone(problem):
    held, weights = problem
    left = sum(int(jnp.sum(w != 0)) for w in weights)
    alone = scores.fisher_diagonal(weights, held.diagonal())
    for kept, same in ((left // 2, False), (left // 2 + 1, True)):
        got = scored(held, weights, None, budget(kept))
        assert same == all(
            np.allclose(x, y) for x, y in zip(got, alone, strict=True)
        )  # fmt: skip


def test_a_leaf_that_is_not_followed_leaves_all_scored_alone(problem):
    held, weights = problem
    squares = tuple(jnp.ones_like(w) for w in weights)
    some = kfac.estimate((held.layers[0], None), weights, squares)
    got = scored(some, weights, None, budget(3))
    for x, y in zip(got, scores.fisher_diagonal(weights, some.diagonal()), strict=True):
        np.testing.assert_allclose(x, y)


def relative(layer, weights):
    """One over what the layer gives, [groups, 1, outputs], in float64."""
    index = np.asarray(layer.index)
    matrix = np.where(index < 0, 0, np.ravel(weights)[index])
    given = np.einsum("gio,gij,gjo->", matrix, layer.moment, matrix)
    return np.full((len(index), 1, index.shape[2]), 1 / given)


def by_curve(layer, weights, within, factor):
    part = Part(
        layer=layer,
        weights=layer.matrix(weights),
        ranks=jnp.where(layer.matrix(within) & (layer.reads > 0), 0, -1),
        factor=jnp.asarray(factor, jnp.float32),
        system=layer_quadratic.of_layers([layer], 0.01)[0],
        pattern=None,
        along=jnp.asarray(True),
    )
    return layer.leaf(layer_curves.scores(part, block=128), weights.shape)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_layerwise_errors_count_relative_to_the_layer_and_no_gradient_does(
    problem, share
):
    held, weights = problem
    rng = np.random.default_rng(1)
    within = tuple(jnp.asarray(rng.uniform(size=s) < share) for s in SHAPES)
    squares = tuple(jnp.asarray(rng.uniform(1, 2, s), jnp.float32) for s in SHAPES)
    other = kfac.estimate(held.layers, weights, squares)
    factors = list(map(relative, held.layers, weights))
    expected = one_by_one(held, factors, weights, within)
    for one in (held, other):
        by_gradients, got = layer_order.scores(
            one, weights, within, budget(5), ["obs", "layerwise"]
        )
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4)
        rises = one_by_one(one, one.gammas, weights, within)
        for x, y in zip(by_gradients, rises, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("rule", ["obs", "layerwise"])
def test_a_layer_too_large_for_the_order_goes_by_its_curve(
    problem, rule, share, monkeypatch
):
    held, weights = problem
    rng = np.random.default_rng(1)
    within = tuple(jnp.asarray(rng.uniform(size=s) < share) for s in SHAPES)
    monkeypatch.setattr(layer_order, "GREEDY_WORK", 300)  # 375 and 256
    large, small = scored(held, weights, within, budget(5), rule)
    factors = held.gammas if rule == "obs" else [*map(relative, held.layers, weights)]
    _, rises = one_by_one(held, factors, weights, within)
    np.testing.assert_allclose(small, rises, rtol=1e-4)
    curve = by_curve(held.layers[0], weights[0], within[0], factors[0])
    np.testing.assert_allclose(large, curve, rtol=1e-4)


@pytest.mark.parametrize(("name", "limit"), [("GREEDY_WORK", 10), ("_TOTAL_WORK", 600)])
def test_no_layer_is_ordered_where_each_or_all_are_too_large(
    problem, name, limit, monkeypatch
):
    held, weights = problem
    monkeypatch.setattr(layer_order, name, limit)
    got = scored(held, weights, None, budget(3), "layerwise")
    for layer, w, x in zip(held.layers, weights, got, strict=True):
        curve = by_curve(layer, w, jnp.ones_like(w, bool), relative(layer, w))
        np.testing.assert_allclose(x, curve, rtol=1e-4)


def test_large_layers_with_budgets_of_their_own_need_no_curve(problem, monkeypatch):
    held, weights = problem
    monkeypatch.setattr(layer_order, "GREEDY_WORK", 10)
    monkeypatch.setattr(layer_curves, "scores", None)
    each = Budget(jnp.asarray([2, 2], jnp.int32), (0, 1), (0, 0))
    got = scored(held, weights, None, each, "layerwise")
    for layer, w, x in zip(held.layers, weights, got, strict=True):
        root = layer_quadratic.of_layers([layer], 0.01)[0].root
        alone = layer_quadratic.saliency(root, layer.matrix(w))
        alone = layer.leaf(alone * relative(layer, w), w.shape)
        there = (w != 0) & (layer.leaf(layer.reads + 0 * layer.matrix(w), w.shape) > 0)
        np.testing.assert_allclose(x[there], alone[there], rtol=1e-4)


def test_narrow_weights_are_ordered_in_float32(problem):
    held, weights = problem
    narrow = tuple(w.astype(jnp.bfloat16) for w in weights)
    same = tuple(w.astype(jnp.float32) for w in narrow)
    got, wide = (scored(held, w, None, budget(3)) for w in (narrow, same))
    for x, y in zip(got, wide, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, y)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("first", "second", "data"),
    [("float32", "float32", "float64"), ("float32", "float64", "float32")],
)
def test_weights_moments_and_other_leaves_may_differ_in_dtype(first, second, data):
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(6, 5)), first),
        "b": jnp.asarray(rng.normal(size=(5, 3)), second),
    }
    x = rng.normal(size=(40, 6)).astype(data)

    def loss_fn(params, x):
        return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - 1) ** 2)

    method = swapjax.kfac_regression(support="obs")
    pruned = swapjax.prune(
        loss_fn, params, x, sparsity=0.6, samples=40, method=method,
        key=jax.random.key(0),
    )  # fmt: skip
    assert pruned.history[0].kept == 18
    assert [w.dtype for w in pruned.params.values()] == [first, second]


def test_a_leaf_without_entries_is_none_of_its_business():
    params = {"a": jnp.ones((6, 4)), "none": jnp.ones((6, 0))}
    x = jax.random.normal(jax.random.key(1), (20, 6))

    def loss_fn(params, x):
        return jnp.mean((x @ params["a"]) ** 2) + jnp.sum(x @ params["none"])

    pruned = swapjax.prune(
        loss_fn, params, x, sparsity=0.5, samples=20, key=jax.random.key(0)
    )
    assert pruned.history[0].kept == 12
