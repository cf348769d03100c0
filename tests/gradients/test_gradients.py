"""The operator G against the explicit matrix, row by row with jax.grad."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from gradient_rows import BLOCKS, FACTORS, STORAGES, by_grad, directions, make, products
from network import loss_fn
from trees import flat

from swapjax.gradients import products as kernels
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise


def block_moments(g):
    """What `products` says of BLOCKS, from explicit G."""
    padded = [np.pad(m, ((0, 0), (0, 20))) for m in (g[:, :35], g[:, 35:])]
    parts = []
    for (leaf, blocks), factors in zip(BLOCKS, FACTORS, strict=True):
        for block, factor in zip(np.asarray(blocks), np.asarray(factors), strict=True):
            columns = padded[leaf][:, block]
            parts.append(np.ravel(factor * columns.T @ columns / len(g)))
    return np.concatenate(parts)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("n", "batch", "chunk"),
    [(12, 1, None), (13, 1, 5), (7, 3, 2), (1, 1, None), (1, 4, 1), (6, 2, 6)],
)
def test_equals_the_explicit_matrix(x64, storage, n, batch, chunk):
    params, data, target = make(n, batch)
    g = by_grad(params, data, batch)
    rows = per_example_gradients(
        loss_fn, params, data, target, batch=batch, storage=storage, chunk=chunk
    )
    v, r = directions(target, jnp.float64), jax.random.normal(jax.random.key(3), (n,))
    support = tuple(d > 0.3 for d in v)
    on = g * flat(support)

    got = products(rows, v, r, support)
    wanted = {
        "project": g @ flat(v),
        "pull_back": r @ g,
        "gram": g @ g.T,
        "gram on support": on @ on.T,
        "mean_squares": np.mean(g**2, axis=0),
        "energies": np.sum(((np.outer(r, r) + np.eye(n)) @ g) ** 2, axis=0),
        "columns": np.pad(g, ((0, 0), (0, 1)))[:, [3, 40, 55, 56, 0, 56]],
        "blocks": block_moments(g),
        "elsewhere": r @ by_grad(target.layout.merge(v, params), data, batch),
        "loss": loss_fn(target.layout.merge(v, params), data),
    }
    assert (rows.n, rows.batch) == (n, batch)
    for name, value in wanted.items():
        leaves = got[name] if isinstance(got[name], tuple) else (got[name],)
        np.testing.assert_allclose(
            flat(leaves), np.ravel(value), rtol=1e-10, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("storage", STORAGES)
def test_pull_back_is_the_adjoint_of_project(x64, storage):
    params, data, target = make(11)
    rows = per_example_gradients(loss_fn, params, data, target, storage=storage)
    v, r = directions(target, jnp.float64), jax.random.normal(jax.random.key(3), (11,))
    forward = jnp.vdot(rows.project(v), r)
    backward = flat(v) @ flat(rows.pull_back(r))
    np.testing.assert_allclose(forward, backward, rtol=1e-12)


@pytest.mark.parametrize("kept", [0, 1, 157, 158, 627, 628, 629, 5000, 9999, 10000])
def test_gram_gathers_any_number_of_columns(x64, kept):
    rng = np.random.default_rng(kept)
    g = rng.normal(size=(9, 10_030))
    columns = np.zeros(10_030, bool)
    columns[rng.permutation(10_000)[:kept]] = True
    columns[10_000::2] = True
    split = lambda x: (x[..., :10_000], x[..., 10_000:])  # noqa: E731
    gram = jax.jit(kernels.gram)(split(jnp.asarray(g)), split(jnp.asarray(columns)))
    expected = (g * columns) @ (g * columns).T
    np.testing.assert_allclose(gram, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("storage", STORAGES)
def test_bfloat16_rows_are_multiplied_in_float32(storage):
    params, data, target = make(40, dtype=jnp.float32)
    rows = per_example_gradients(
        loss_fn, params, data, target, dtype=jnp.bfloat16, storage=storage
    )
    g = np.concatenate(
        [
            np.asarray(jnp.asarray(part, jnp.float32).astype(jnp.bfloat16), np.float64)
            for part in np.split(by_grad(params, data), [35], axis=1)
        ],
        axis=1,
    )
    v, r = directions(target, jnp.float32), jax.random.normal(jax.random.key(3), (40,))
    # The rounding to bfloat16 is that of the rows alone, 2^-9; the rest is float32.
    results = products(rows, v, r, tuple(d > 0.3 for d in v))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    for got, wanted in (
        (results["project"], g @ flat(v)),
        (flat(results["pull_back"]), np.asarray(r, np.float64) @ g),
        (results["gram"], g @ g.T),
    ):
        np.testing.assert_allclose(got, wanted, atol=2e-3 * np.abs(wanted).max())
    if storage == "stored":
        assert {m.dtype for m in rows.matrices} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("storage", STORAGES)
def test_bfloat16_params_give_float32_products(storage):
    params, data, target = make(8, dtype=jnp.bfloat16)
    rows = per_example_gradients(loss_fn, params, data, target, storage=storage)
    assert rows.project(target.layout.split(params)).dtype == jnp.float32
    assert jax.eval_shape(rows.gram).dtype == jnp.float32


def test_jit_changes_nothing():
    params, data, target = make(10, dtype=jnp.float32)
    v = directions(target, jnp.float32)
    for storage in STORAGES:
        rows = per_example_gradients(loss_fn, params, data, target, storage=storage)
        jitted = products(rows, v, jnp.ones(10), v)["project"]
        np.testing.assert_allclose(rows.project(v), jitted, rtol=1e-5, atol=1e-6)


def test_matrix_free_products_never_hold_all_rows():
    """The largest array in the compiled program stays the same when n grows."""

    def largest(n):
        params, data, target = make(n, dtype=jnp.float32)
        rows = per_example_gradients(
            loss_fn, params, data, target, storage="matrix-free", chunk=8
        )
        v = directions(target, jnp.float32)
        compiled = jax.jit(lambda r: r.pull_back(r.project(v))).lower(rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # What grows is the vectors in R^n, 4 bytes a row; a row of G has 224.
    assert largest(512) - largest(64) < 4 * 4 * (512 - 64)


def test_a_row_that_is_zero_is_harmless(x64):
    params, (x, y), target = make(5)
    y = y.at[2].set(network.apply(params, x)[2])
    rows = per_example_gradients(loss_fn, params, (x, y), target)
    v = directions(target, jnp.float64)
    got = products(rows, v, jnp.ones(5), v)
    assert float(got["project"][2]) == 0
    assert float(jnp.abs(got["gram"][2]).max()) == 0


def test_automatic_storage_depends_on_the_size():
    params, data, target = make(4, dtype=jnp.float32)
    rows = per_example_gradients(loss_fn, params, data, target)
    assert type(rows).__name__ == "StoredRows"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"batch": 5}, "12 examples do not make whole rows of batch=5"),
        ({"chunk": 0}, "chunk must be 1 or more, got 0"),
        ({"corruption": GradientNoise(1, 0.5)}, "key: a corruption needs a PRNG key"),
        ({"storage": "disk"}, "storage must be 'auto', 'stored' or 'matrix-free'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    params, data, target = make(12, dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        per_example_gradients(loss_fn, params, data, target, **options)


def test_data_that_disagrees_about_its_length_is_an_error():
    params, (x, y), target = make(12, dtype=jnp.float32)
    with pytest.raises(ValueError, match="one leading axis of examples"):
        per_example_gradients(loss_fn, params, (x, y[:-1]), target)
    with pytest.raises(ValueError, match="0 examples"):
        per_example_gradients(loss_fn, params, (x[:0], y[:0]), target)


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_that_are_not_finite_name_the_leaf(storage):
    params, (x, y), target = make(12, dtype=jnp.float32)

    def bad(p, b):
        # The derivative of the root at zero is infinite, and only fc2 meets it.
        return jnp.sqrt(jnp.abs(jnp.mean(p["fc2"]["kernel"] * 0))) + loss_fn(p, b)

    with pytest.raises(ValueError, match=r"gradients: NaN.*fc2/kernel \(21 of 21\)"):
        per_example_gradients(bad, params, (x, y), target, storage=storage)
