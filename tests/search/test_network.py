import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import DATA
from small_spaces import CLASSES, SHAPE

from swapjax import search

TEXT = (
    "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
    "+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
)


@pytest.fixture(scope="module")
def network(tiny):
    return tiny.network(TEXT, SHAPE, CLASSES)


@pytest.fixture(scope="module")
def params(network):
    return network.init(jax.random.key(0))


def test_statistics_of_the_batch_make_inference_what_training_is(network, params):
    x = 3 + jax.random.normal(jax.random.key(1), (8, *SHAPE))

    @jax.jit
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


def test_no_gradient_reaches_running_statistics(network, params):
    x = jnp.ones((1, *SHAPE))
    gradient = jax.jit(jax.grad(lambda p: network.apply(p, x).sum()))(params)
    for path, g in jax.tree.leaves_with_path(gradient):
        if path[-1].key in ("mean", "var"):
            assert not jnp.any(g)


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
    tables = np.load(DATA / "data/nas_tables.npz")
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
