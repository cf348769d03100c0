"""The operator G against the explicit matrix, row by row with jax.grad."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from network import loss_fn
from problems import explicit
from trees import flat

from swapjax.gradients import products as kernels
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise
from swapjax.sparsity.plan import plan

STORAGES = ("stored", "matrix-free")


def make(n, batch=1, dtype=jnp.float64, seed=0):
    params = network.make(seed, dtype, inputs=5, hidden=7, outputs=3)
    data = network.data(n * batch, seed, dtype, inputs=5, outputs=3)
    return params, data, plan(params, 0.5)


def by_grad(params, data, batch=1):
    """G as an array, [n, p]: one call of jax.grad a row."""
    n = len(data[0]) // batch
    rows = []
    for i in range(n):
        part = jax.tree.map(lambda a, i=i: a[i * batch : (i + 1) * batch], data)
        grads = jax.grad(loss_fn)(params, part)
        kernels = (grads["fc1"]["kernel"], grads["fc2"]["kernel"])
        rows.append(np.concatenate([np.ravel(g).astype(np.float64) for g in kernels]))
    return np.stack(rows)


# The second leaf has 21 entries: 21 and 30 are beyond its end.
BLOCKS = (jnp.asarray([[0, 30, 7], [1, 2, 3]]), jnp.asarray([[20, 5, 21], [8, 30, 9]]))
FACTORS = (jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0]))


def block_moments(g):
    """What `products` says of BLOCKS, from explicit G."""
    parts = []
    for matrix, blocks, factors in zip(
        (g[:, :35], g[:, 35:]), BLOCKS, FACTORS, strict=True
    ):
        padded = np.pad(matrix, ((0, 0), (0, 20)))
        for block, factor in zip(np.asarray(blocks), np.asarray(factors), strict=True):
            columns = padded[:, block]
            parts.append(factor * columns.T @ columns / len(g))
    return np.stack(parts)


@jax.jit
def products(rows, v, r, support):
    """All that rows offer, in one program."""
    return {
        "project": rows.project(v),
        "pull_back": rows.pull_back(r),
        "gram": rows.gram(),
        "gram on support": rows.gram(support),
        "mean_squares": rows.mean_squares(),
        "energies": rows.energies(jnp.outer(r, r) + jnp.eye(rows.n)),
        "columns": rows.columns(jnp.asarray([3, 40, 55, 56, 0, 999])),
        "blocks": rows.map_blocks(lambda f, x: f * x, BLOCKS, FACTORS),
        "elsewhere": rows.at(v).pull_back(r),
        "loss": rows.loss(v),
    }


def directions(target, dtype, seed=9):
    keys = jax.random.split(jax.random.key(seed), len(target.layout.shapes))
    return tuple(
        jax.random.normal(k, shape, dtype)
        for k, shape in zip(keys, target.layout.shapes, strict=True)
    )


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


@pytest.mark.parametrize("kept", [0, 1, 2, 300, 624, 625, 4999, 5000, 7000, 9999])
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
@pytest.mark.parametrize("unit", ["coordinate", "row"])
def test_every_product_sees_the_same_noise(x64, storage, unit):
    params, data, target = make(10)
    noise = GradientNoise(3.0, 0.4, unit)
    options = {"corruption": noise, "key": jax.random.key(5), "chunk": 4}
    stored = per_example_gradients(
        loss_fn, params, data, target, storage="stored", **options
    )
    g = explicit(stored)
    rows = per_example_gradients(
        loss_fn, params, data, target, storage=storage, **options
    )
    v, r = directions(target, jnp.float64), jax.random.normal(jax.random.key(3), (10,))
    got = products(rows, v, r, tuple(d > 0.3 for d in v))
    np.testing.assert_allclose(got["project"], g @ flat(v), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flat(got["pull_back"]), r @ g, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got["gram"], g @ g.T, rtol=1e-10, atol=1e-12)


def test_coordinate_noise_hits_its_share_of_every_row(x64):
    params, data, target = make(200)
    clean = by_grad(params, data)
    rows = per_example_gradients(
        loss_fn, params, data, target,
        corruption=GradientNoise(3.0, 0.4), key=jax.random.key(0), storage="stored",
    )  # fmt: skip
    noisy = explicit(rows)
    hit = ~np.isclose(noisy, clean, rtol=1e-9, atol=1e-12)
    assert set(hit.sum(axis=1)) == {int(0.4 * target.layout.total)}
    assert len({row.tobytes() for row in hit}) > 190
    scale = 3.0 * np.std(clean, axis=1, ddof=1, keepdims=True)
    standardised = ((noisy - clean) / scale)[hit]
    assert abs(standardised.mean()) < 0.05
    assert abs(standardised.std() - 1) < 0.05


def test_row_noise_hits_its_share_of_the_rows(x64):
    params, data, target = make(50)
    clean = by_grad(params, data)
    rows = per_example_gradients(
        loss_fn, params, data, target,
        corruption=GradientNoise(1.0, 0.3, "row"), key=jax.random.key(0),
        storage="stored",
    )  # fmt: skip
    noisy = explicit(rows)
    hit = ~np.isclose(noisy, clean, rtol=1e-9, atol=1e-12)
    assert sorted(hit.sum(axis=1)) == [0] * 35 + [target.layout.total] * 15


@pytest.mark.parametrize(("scale", "proportion"), [(0.0, 0.5), (2.0, 0.0)])
def test_noise_of_nothing_changes_nothing(x64, scale, proportion):
    params, data, target = make(6)
    rows = per_example_gradients(
        loss_fn, params, data, target,
        corruption=GradientNoise(scale, proportion), key=jax.random.key(0),
    )  # fmt: skip
    v = directions(target, jnp.float64)
    np.testing.assert_allclose(
        rows.project(v), by_grad(params, data) @ flat(v), rtol=1e-10
    )


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0.5), "noise scale must be 0 or more"),
        ((float("nan"), 0.5), "noise scale must be 0 or more"),
        ((1.0, 1.5), r"noise proportion must be in \[0, 1\]"),
        ((1.0, 0.5, "column"), "noise unit must be"),
    ],
)
def test_bad_noise_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientNoise(*arguments)
