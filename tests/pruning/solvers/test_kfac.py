"""The Kronecker-factored ridge against dense algebra in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.activations.layer import Layer
from swapjax.gradients.stored import StoredRows
from swapjax.pruning.solvers import conjugate_gradients, kfac, targets
from swapjax.pruning.solvers.refit import prepare, refit
from swapjax.pruning.solvers.unit_blocks import SupportRidge
from swapjax.pruning.solvers.units import units_of

N = 7
SHAPES = ((6, 5), (3,), (7, 3))


class Rows:
    """Dense rows of three leaves: a kernel, one that is not followed, two groups."""

    def __init__(self, seed, shapes=SHAPES, dtype=jnp.float64):
        rng = np.random.default_rng(seed)
        self.n, self.batch, self.unit = N, 1, None
        size = sum(map(np.prod, shapes))
        self.dense = rng.normal(size=(N, size)) * rng.uniform(0.1, 2, size)
        parts = np.split(self.dense, np.cumsum([np.prod(s) for s in shapes])[:-1], 1)
        matrices = tuple(
            jnp.asarray(p.reshape(N, *s), dtype)
            for p, s in zip(parts, shapes, strict=True)
        )
        stored = StoredRows(matrices, None)
        self.project, self.pull_back = stored.project, stored.pull_back
        self.columns = stored.columns
        self.squares = tuple(jnp.mean(jnp.square(m), axis=0) for m in matrices)

    def gram(self, support):
        raise AssertionError("the ridge has a Gram matrix of its own")


def layers(seed, dtype=jnp.float64):
    rng = np.random.default_rng(seed)

    def moment(groups, inputs):
        a = rng.normal(size=(groups, 20, inputs))
        return jnp.asarray(np.einsum("gei,gej->gij", a, a) / 20, dtype)

    one = Layer(moment(1, 6), jnp.arange(30, dtype=jnp.int32).reshape(1, 6, 5))
    # Two groups; the second lacks an input, which is entry -1.
    index = np.where(np.arange(24) < 21, np.arange(24), -1).reshape(2, 4, 3)
    reads = moment(2, 4).at[1, 3].set(0).at[1, :, 3].set(0)
    two = Layer(reads, jnp.asarray(index, jnp.int32), filled=True)
    return one, None, two


def leaves(seed, shapes=SHAPES, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


def supports(seed, density=0.5):
    rng = np.random.default_rng(seed)
    found = [rng.uniform(size=s) < density for s in SHAPES]
    found[0][:, 2] = False  # an output without inputs
    return tuple(map(jnp.asarray, found))


def flat(leaves):
    return np.concatenate([np.asarray(x).ravel() for x in leaves])


def dense(found):
    """Build T entry by entry."""
    total = sum(diagonal.size for diagonal in found.diagonals)
    matrix = np.zeros((total, total))
    offset = 0
    for layer, gamma, diagonal in zip(
        found.layers, found.gammas, found.diagonals, strict=True
    ):
        if layer is None:
            at = offset + np.arange(diagonal.size)
            matrix[at, at] = np.ravel(diagonal)
        else:
            index, moment = np.asarray(layer.index), np.asarray(layer.moment)
            for g, o in np.ndindex(index.shape[0], index.shape[2]):
                there = index[g, :, o] >= 0
                at = offset + index[g, there, o]
                block = moment[g][np.ix_(there, there)]
                matrix[np.ix_(at, at)] = block * float(gamma[g, 0, o])
        offset += diagonal.size
    return matrix


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def make(seed=0):
    rows, weights = Rows(seed), leaves(seed + 1)
    found = kfac.estimate(layers(seed + 2), weights, rows.squares)
    return rows, weights, found


def test_gammas_follow_their_formula():
    rows, weights, _ = make()
    weights = (weights[0].at[0, 0].set(0), *weights[1:])
    found = kfac.estimate(layers(2), weights, rows.squares)
    squares, there = flat(rows.squares), flat(weights) != 0
    floor = np.sort(squares[there])[: int(np.ceil(0.02 * there.sum()))].max()
    np.testing.assert_allclose(found.noise, floor / squares[there].mean(), rtol=1e-6)
    first = np.asarray(found.layers[0].moment)[0]
    inside = np.asarray(weights[0]) != 0
    above = np.where(inside, np.maximum(np.asarray(rows.squares[0]) - floor, 0), 0)
    reads = np.where(inside, np.diag(first)[:, None], 0)
    np.testing.assert_allclose(
        found.gammas[0][0, 0], above.sum(0) / reads.sum(0), rtol=1e-12
    )
    np.testing.assert_allclose(found.diagonals[1], rows.squares[1])
    assert found.gammas[1] is None


def mean_diagonals(kronecker):
    """Of each output, or of a leaf without a layer."""
    found = []
    for layer, diagonal in zip(kronecker.layers, kronecker.diagonals, strict=True):
        values = np.ravel(diagonal)
        means = np.full(values.size, values.mean())
        if layer is not None:
            index = np.asarray(layer.index)
            for g, o in np.ndindex(index.shape[0], index.shape[2]):
                at = index[g, index[g, :, o] >= 0, o]
                means[at] = values[at].mean()
        found.append(means)
    return np.concatenate(found)


@pytest.mark.parametrize("seed", range(3))
def test_each_output_is_damped_in_its_own_units(seed):
    rows, weights, _ = make(seed)
    rng = np.random.default_rng(seed)
    weights = tuple(
        jnp.where(jnp.asarray(rng.uniform(size=w.shape) < 0.3), 0, w) for w in weights
    )
    weights = (weights[0].at[:, 1].set(0), *weights[1:])
    found = kfac.estimate(layers(seed + 2), weights, rows.squares)
    units, support = units_of(found, jnp.dtype(jnp.float64)), supports(seed)
    mask = flat(support).astype(bool)
    ridge = SupportRidge.of(
        found, units, support, jnp.asarray(0.7), jnp.asarray(1e-3), share=0.2
    )
    damped = 0.2 * mean_diagonals(found)
    full = 0.7 * (dense(found) + np.diag(damped)) + 1e-3 * np.eye(len(mask))
    v = leaves(seed + 5)
    np.testing.assert_allclose(flat(ridge.multiply(v)), full @ flat(v), rtol=1e-10)
    np.testing.assert_allclose(flat(ridge.diagonal()), np.diag(full), rtol=1e-10)
    expected = np.zeros(len(mask))
    expected[mask] = np.linalg.solve(full[np.ix_(mask, mask)], flat(v)[mask])
    solved, gram = ridge.solve_and_gram(v, rows)
    np.testing.assert_allclose(flat(solved), expected, rtol=1e-9, atol=1e-9)
    some = rows.dense[:, mask]
    block = full[np.ix_(mask, mask)]
    np.testing.assert_allclose(
        gram, some @ np.linalg.solve(block, some.T), rtol=1e-9, atol=1e-9
    )
    assert not ridge.raised


@pytest.mark.parametrize("seed", range(3))
def test_products_and_solutions_are_those_of_the_dense_matrix(seed):
    rows, _, found = make(seed)
    matrix, support = dense(found), supports(seed)
    mask = flat(support).astype(bool)
    units = units_of(found, jnp.dtype(jnp.float64))
    kappa, damping = jnp.asarray(0.7), jnp.asarray(0.03)

    @jax.jit
    def all_three(v):
        ridge = SupportRidge.of(found, units, support, kappa, damping)
        return found.multiply(v), *ridge.solve_and_gram(v, rows), ridge.multiply(v)

    v = leaves(seed + 5)
    times, solved, gram, moved = all_three(v)
    np.testing.assert_allclose(flat(times), matrix @ flat(v), rtol=1e-10)
    full = 0.7 * matrix + 0.03 * np.eye(len(matrix))
    np.testing.assert_allclose(flat(moved), full @ flat(v), rtol=1e-10)
    block = full[np.ix_(mask, mask)]
    expected = np.zeros(len(mask))
    expected[mask] = np.linalg.solve(block, flat(v)[mask])
    np.testing.assert_allclose(flat(solved), expected, rtol=1e-9, atol=1e-12)
    some = rows.dense[:, mask]
    np.testing.assert_allclose(
        gram, some @ np.linalg.solve(block, some.T), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(flat(found.diagonal()), np.diag(matrix), rtol=1e-12)


@pytest.mark.parametrize("density", [0.1, 0.6, 1.0])
def test_blocks_of_several_widths_take_several_steps(monkeypatch, density):
    """Of 1 to 40 inputs, where a step holds 64 entries and not all of each width."""
    from swapjax.pruning.solvers import unit_blocks

    monkeypatch.setattr(unit_blocks, "_COLUMNS", 64)
    rng, shapes = np.random.default_rng(0), ((40, 9), (1, 3), (17, 2), (0, 4))
    some = []
    for inputs, outputs in shapes:
        a = rng.normal(size=(60, inputs))
        index = jnp.arange(inputs * outputs, dtype=jnp.int32)
        moment = jnp.asarray(a.T @ a / 60)[None]
        some.append(Layer(moment, index.reshape(1, inputs, outputs)))
    rows, weights = Rows(0, shapes), leaves(1, shapes)
    found = kfac.estimate(tuple(some), weights, rows.squares)
    full = 0.7 * dense(found) + 0.03 * np.eye(sum(w.size for w in weights))
    support = tuple(jnp.asarray(rng.uniform(size=s) < density) for s in shapes)
    mask = flat(support).astype(bool)
    units = units_of(found, jnp.dtype(jnp.float64))
    two = tuple(jnp.stack([w, jnp.cos(w)]) for w in weights)

    @jax.jit
    def solve(two):
        kappa, damping = jnp.asarray(0.7), jnp.asarray(0.03)
        ridge = SupportRidge.of(found, units, support, kappa, damping)
        first = tuple(v[0] for v in two)
        return ridge.solve_several(two), *ridge.solve_and_gram(first, rows)

    several, one, gram = solve(two)
    inverse = np.zeros_like(full)
    inverse[np.ix_(mask, mask)] = np.linalg.inv(full[np.ix_(mask, mask)])
    for i, got in enumerate(
        (tuple(v[0] for v in several), tuple(v[1] for v in several))
    ):
        expected = inverse @ flat(tuple(v[i] for v in two))
        np.testing.assert_allclose(flat(got), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(flat(one), inverse @ flat(weights), rtol=1e-9, atol=1e-9)
    expected = rows.dense @ inverse @ rows.dense.T
    np.testing.assert_allclose(gram, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algebra", ["gram", "cg"])
@pytest.mark.parametrize("kappa", [1e-9, 0.3, 4.0, 1e7])
def test_refit_minimises_its_objective(algebra, kappa):
    rows, weights, found = make(3)
    support, damping = supports(3), 0.05
    mask, wbar = flat(support).astype(bool), flat(weights)
    target = targets.make(
        "identity", epsilon=0.0, perplexity=None, rho=0.0, max_iterations=1
    )
    y = rows.project(weights)
    units = units_of(found, jnp.dtype(jnp.float64))
    ridge = SupportRidge.of(
        found, units, support, jnp.asarray(kappa), jnp.asarray(damping)
    )
    problem = rows, support, weights, y, target, target.prepare(y)
    limits = {"bend": None, "rounds": 1, "tolerance": 1e-6}
    if algebra == "gram":
        ground = prepare(*problem, 1.0, ridge)
        fit = refit(rows, ground, y, target, damping=1.0, **limits)
    else:
        fit = conjugate_gradients.refit(*problem, damping=1.0, ridge=ridge, **limits)
    full = kappa * dense(found) + damping * np.eye(len(mask))

    def objective(w):
        residual, change = rows.dense @ (w - wbar), w - wbar
        return 0.5 * residual @ residual + 0.5 * N * change @ full @ change

    def solve(full, rows=rows.dense):
        """Set the slope of the objective on the support to zero."""
        hessian = rows.T @ rows + N * full
        off = np.where(mask, 0, wbar)
        found = np.where(mask, wbar, 0)
        block = hessian[np.ix_(mask, mask)]
        found[mask] += np.linalg.solve(block, (hessian @ off)[mask])
        return found

    best, got = solve(full), flat(fit.weights)
    np.testing.assert_allclose(got, best, rtol=1e-4, atol=1e-4 * np.abs(best).max())
    np.testing.assert_allclose(fit.objective[-1], objective(got), rtol=1e-6)
    if kappa < 1e-6:  # today's regression
        plain = solve(damping * np.eye(len(mask)))
        np.testing.assert_allclose(got, plain, atol=1e-4)
    if kappa > 1e6:  # each layer by itself, whatever the rows say
        alone = solve(dense(found), np.zeros((1, len(mask))))
        np.testing.assert_allclose(got, alone, atol=1e-3)


def test_widths_hold_every_block():
    from swapjax.pruning.solvers.unit_blocks import _widths

    assert _widths(5) == (5,)
    assert _widths(16) == (16,)
    assert _widths(100) == (16, 32, 64, 100)


def test_more_entries_than_an_int32_numbers_are_too_many(monkeypatch):
    from swapjax.pruning.solvers import units as rooms

    _, weights, found = make()
    units, one = units_of(found, jnp.dtype(jnp.float64)), jnp.asarray(1.0)
    monkeypatch.setattr(rooms, "_MOST", 60)
    given = found, units, supports(0), one, one
    with pytest.raises(ValueError, match=r"ridge: the blocks of .kfac. have .* than"):
        SupportRidge.of(*given)
    # Products number nothing.
    SupportRidge.of(*given, in_blocks=False).multiply(weights)


def test_weights_in_16_bits_are_held_in_full_precision():
    rows, weights, found = make(1)
    # What layers read is nearly alike, so that the inverse is large.
    alike = tuple(
        x and Layer(x.moment + 1e4 * (x.moment > -np.inf), x.index, filled=x.filled)
        for x in found.layers[:1]
    )
    first = kfac.estimate((*alike, *layers(3)[1:]), weights, rows.squares)
    reference = tuple(w.astype(jnp.bfloat16) for w in weights)
    support, one = supports(1), jnp.asarray(1.0)
    units = units_of(first, jnp.dtype(jnp.float64))
    ridge = SupportRidge.of(first, units, support, one, jnp.asarray(1e-6))
    target = targets.none()
    y = jnp.zeros(N)
    ground = prepare(rows, support, reference, y, target, target.prepare(y), 1, ridge)
    mask, wbar = flat(support).astype(bool), np.float64(flat(reference))
    full = dense(first) + 1e-6 * np.eye(len(mask))
    off = full[np.ix_(mask, ~mask)] @ wbar[~mask]
    wanted = wbar[mask] + np.linalg.solve(full[np.ix_(mask, mask)], off)
    got = np.float64(flat(ground.kept))[mask]
    np.testing.assert_allclose(got, wanted, atol=2**-8 * np.abs(wanted).max())
