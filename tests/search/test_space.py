import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_spaces import CLASSES, HASTY, SHAPE

from swapjax import search

GENOTYPE = [3, 0, 1, 4, 2, 1]


@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(1), (2, *SHAPE))


def test_the_supernet_with_one_operation_an_edge_is_its_network(tiny, theta, image):
    genotype = tiny.decode({"cell": GENOTYPE})
    network = tiny.network(genotype, SHAPE, CLASSES, affine=False)
    alpha = tiny.one_hot(genotype)
    shapes = jax.eval_shape(network.init, jax.random.key(0))

    def there(theta, path):
        """A weight of the network among those of the supernet."""
        first, *rest = (key.key for key in path)
        cell = int(rest.pop(0)[4:]) if "stage" in first else None
        leaf = theta[first]
        for key in rest:
            leaf = leaf[key]
        return leaf if cell is None else leaf[cell]

    @functools.partial(jax.jit, compiler_options=HASTY)
    def both(theta):
        params = jax.tree.map_with_path(lambda path, _: there(theta, path), shapes)
        alone = network.apply(params, image)
        return alone, tiny.apply(theta, alpha, image, norm="eval")

    np.testing.assert_allclose(*both(theta), rtol=2e-5, atol=1e-6)


def test_an_edge_is_the_sum_of_its_operations_without_a_softmax(tiny, theta, image):
    double = jax.jit(
        lambda a: tiny.apply(theta, {"cell": a}, image), compiler_options=HASTY
    )
    zero = tiny.alpha(0.0)["cell"]
    bias = theta["fc"]["bias"]
    np.testing.assert_array_equal(double(zero), jnp.broadcast_to(bias, (2, CLASSES)))
    # Through one pooling from end to end: cells are linear, ReLUs come after each.
    once = double(zero.at[3, 4].set(1.0))
    assert jnp.any(once != bias)
    assert jnp.any(double(zero.at[3, 4].set(2.0)) != once)


def test_float64_goes_through(tiny):
    with jax.enable_x64(True):
        theta = jax.eval_shape(
            lambda key: tiny.init(key, SHAPE, CLASSES, dtype=jnp.float64),
            jax.random.key(0),
        )
        alpha = tiny.alpha(1.0, jnp.float64)
        image = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float64)
        for norm in "none", "train", "eval":
            out = jax.eval_shape(
                lambda t, a, x: tiny.apply(t, a, x, norm=norm),  # noqa: B023
                theta,
                alpha,
                image,
            )
            assert out.dtype == jnp.float64
            assert out.shape == (1, CLASSES)
    assert {x.dtype.name for x in jax.tree.leaves(theta)} == {"float64"}


def test_the_space_is_that_of_the_benchmark():
    space = search.nb201()
    assert space.size == 15_625
    assert space.ops[0] == "none"
    assert space.edges["cell"] == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    theta = jax.eval_shape(lambda: space.init(jax.random.key(0)))
    kernel = theta["stage3"]["2-3"]["nor_conv_3x3"]["kernel"]
    assert kernel.shape == (5, 3, 3, 64, 64)
    assert set(theta["stage1"]["0-1"]["nor_conv_1x1"]["bn"]) == {"mean", "var"}


def test_the_best_operation_of_each_edge_is_taken(tiny):
    scores = np.arange(30.0).reshape(6, 5)
    scores[0, 2] = 99
    found = tiny.genotype({"cell": scores})
    assert tiny.encode(found)["cell"].tolist() == [2, 4, 4, 4, 4, 4]
    scores[1] = [-np.inf, -3, -1, -2, -np.inf]
    assert tiny.encode(tiny.genotype({"cell": scores}))["cell"][1] == 2


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([0.0] * 5, r"5 operations on edge \(0, 2\) of cell tie at zero"),
        ([np.nan, 1, 2, 3, 4], "finite"),
        ([np.inf, 1, 2, 3, 4], "finite"),
    ],
)
def test_scores_that_choose_nothing_are_told(tiny, row, match):
    scores = np.ones((6, 5))
    scores[1] = row
    with pytest.raises(ValueError, match=match):
        tiny.genotype({"cell": scores})


def test_bad_input_is_told(tiny, theta, image):
    key = jax.random.key(0)
    for shape in 5, (8, 8), (7, 8, 1), (8, 7, 3), (0, 8, 1):
        with pytest.raises(ValueError, match="shape must be"):
            tiny.init(key, shape, CLASSES)
        with pytest.raises(ValueError, match="shape must be"):
            tiny.network(tiny.decode({"cell": GENOTYPE}), shape, CLASSES)
    with pytest.raises(ValueError, match="classes must be"):
        tiny.init(key, SHAPE, 0)
    with pytest.raises(ValueError, match="key must be"):
        tiny.init(3, SHAPE)
    with pytest.raises(ValueError, match="dtype must be"):
        tiny.init(key, SHAPE, dtype=jnp.int32)
    with pytest.raises(ValueError, match="norm must be one of none, train, eval"):
        tiny.apply(theta, tiny.alpha(), image, norm="batch")
    with pytest.raises(ValueError, match="x must be images"):
        tiny.apply(theta, tiny.alpha(), image[0])
    for alpha in {"cell": jnp.ones((5, 6))}, {"normal": jnp.ones((6, 5))}, 3:
        with pytest.raises(ValueError, match="alpha must have shapes"):
            tiny.apply(theta, alpha, image)
    for argument in "channels", "cells":
        with pytest.raises(ValueError, match=f"{argument} must be 1 or more"):
            search.nb201(**{argument: 0})
    with pytest.raises(ValueError, match="nodes must be 2 or more"):
        search.cell_space("mine", {"conv": search.relu_conv_bn(3)}, nodes=1)
    with pytest.raises(ValueError, match="ops must name"):
        search.cell_space("mine", {})
