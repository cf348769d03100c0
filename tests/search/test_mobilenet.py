import jax
import jax.numpy as jnp
import pytest
from small_spaces import CLASSES, SHAPE

from swapjax import search

CHOSEN = {"layer": [1, 2, 0, 1, 0, 0, 1, 2]}


def test_the_space_has_three_operations_in_each_of_eight_layers():
    space = search.mobilenet(channels=2)
    assert space.size == 6561
    genotype = space.decode(CHOSEN)
    assert str(genotype).startswith("|MB3_K3~0|+|MB6_K5~1|+|identity~2|+")
    assert space.parse(str(genotype)) == genotype
    theta = jax.eval_shape(lambda: space.init(jax.random.key(0), SHAPE, CLASSES))
    image = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
    out = jax.eval_shape(space.apply, theta, space.alpha(), image)
    assert out.shape == (2, CLASSES)
    network = space.network(genotype, SHAPE, CLASSES)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert "layer5" not in params  # an identity that changes no size
    assert set(params["layer6"]["identity"]) == {"kernel", "bn"}
    # Once more channels by pixel than there are, a kernel for each, and back.
    assert params["layer7"]["MB3_K3"]["expand"]["kernel"].shape == (1, 1, 16, 48)
    assert params["layer8"]["MB6_K5"]["depthwise"]["kernel"].shape == (5, 5, 1, 96)


def test_it_halves_images_three_times():
    with pytest.raises(ValueError, match="sides divisible by 8 for mobilenet"):
        search.mobilenet().init(jax.random.key(0), (12, 12, 3))
