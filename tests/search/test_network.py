import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import DATA
from small_spaces import CLASSES, HASTY, SHAPE

from swapjax import search
from swapjax.search.nasbench201 import OPS


@pytest.fixture(scope="module")
def network():
    """One convolution a cell, a cell a stage."""
    space = search.cell_space("one", OPS, nodes=2, channels=2, cells=1, stages=2)
    return space.network("|nor_conv_3x3~0|", SHAPE, CLASSES)


@pytest.fixture(scope="module")
def params(network):
    return network.init(jax.random.key(0))


def test_statistics_of_the_batch_make_inference_what_training_is(network, params):
    x = 3 + jax.random.normal(jax.random.key(1), (8, *SHAPE))

    @functools.partial(jax.jit, compiler_options=HASTY)
    def run(params):
        filled = network.statistics(params, x)
        training = network.apply(params, x, norm="train")
        return filled, training, network.apply(filled, x), network.apply(params, x)

    filled, training, inference, before = run(params)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, filled)
    moved = {path[-1].key: m for path, m in jax.tree.leaves_with_path(moved) if m}
    assert set(moved) == {"mean", "var"}
    np.testing.assert_allclose(inference, training, rtol=1e-4, atol=1e-5)
    assert jnp.any(before != training)


def test_no_gradient_reaches_running_statistics():
    params = {k: jnp.full(2, 2.0) for k in ("mean", "var", "scale", "bias")}
    x = jnp.arange(6.0).reshape(3, 2)
    gradient = jax.grad(lambda p: search.Run("eval").batch_norm(p, x).sum())(params)
    assert {k for k, g in gradient.items() if jnp.any(g)} == {"scale", "bias"}


def test_images_of_another_shape_are_told(network, params):
    for shape in SHAPE, (2, 8, 8, 3):
        with pytest.raises(
            ValueError, match=r"images must have the shape \(n, 8, 8, 1"
        ):
            network.apply(params, jnp.ones(shape))


needs_tables = pytest.mark.skipif(
    not (DATA / "data/nas_tables.npz").exists(), reason="needs nas_tables.npz"
)


@needs_tables
def test_weights_and_products_are_the_published_ones():
    """Those of NAS-Bench-201's cells, as NASLib counted them.

    Its flops count batch norm as two operations a number, ReLU as one and pooling as
    nine, and 0.1608 million of them lie outside of the cells.
    """
    with np.load(DATA / "data/nas_tables.npz") as file:
        tables = dict(file)
    columns = tables["columns"].tolist()
    space = search.nb201()
    assert space.ops == tuple(tables["ops"].tolist())
    assert space.edges["cell"] == tuple(map(tuple, tables["edges"].tolist()))
    pixels = 5 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    chosen = np.random.default_rng(0).choice(245, 8, replace=False)
    for i in chosen:
        cell, row = tables["nb201_ops"][i], tables["nb201_values"][0, i]
        network = space.network(space.decode({"cell": cell}))
        assert network.weights / 1e6 == pytest.approx(
            row[columns.index("params")], rel=1e-6
        )
        others = pixels * (3 * np.isin(cell, (2, 3)).sum() + 9 * (cell == 4).sum())
        told = row[columns.index("flops")] * 1e6
        assert network.macs + others + 160_834 == pytest.approx(told, rel=1e-6)
