"""Smaller networks compute what the masked ones did."""

import jax
import jax.numpy as jnp
import numpy as np

import swapjax
from swapjax.core import trees
from swapjax.roles.ties import find_ties

KEY = jax.random.key(0)


def draw(shapes):
    """Weights of some shapes; the shapes are leaves of a tree."""
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(KEY, len(leaves))
    arrays = [jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, arrays)


def zeroed(params, ties, keep=2):
    """All but some units of each group, zero in all leaves."""
    leaves = [np.array(leaf) for leaf in jax.tree.leaves(params)]
    for group in ties.groups:
        for member in group.members:
            gone = member.positions[keep:].reshape(-1)
            np.moveaxis(leaves[member.leaf], member.axis, 0)[gone] = 0
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def shapes(tree):
    return {k: x.shape for k, x in trees.by_path(tree).items()}


def convolve(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def residual(p, x):
    """Convolutions with batch norm, a residual sum, depthwise, padded channels."""

    def norm(y, p):
        mean, var = jnp.mean(y, (0, 1, 2)), jnp.var(y, (0, 1, 2))
        return (y - mean) * jax.lax.rsqrt(var + 1e-5) * p["scale"] + p["bias"]

    y = jax.nn.relu(norm(convolve(x, p["stem"]), p["norm"]))
    z = jax.nn.relu(convolve(y, p["depthwise"], y.shape[-1]))
    y = y + convolve(z, p["point"])
    y = jnp.pad(y, ((0, 0), (0, 0), (0, 0), (1, 2)))
    y = jnp.concatenate([y, convolve(x, p["beside"])], axis=-1)
    y = jax.lax.reduce_window(
        y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return jax.nn.log_softmax(y.reshape(len(x), -1) @ p["dense"])


RESIDUAL = {
    "beside": (3, 3, 2, 4),
    "dense": (2 * 2 * 15, 3),
    "depthwise": (3, 3, 1, 8),
    "norm": {"bias": (8,), "scale": (8,)},
    "point": (1, 1, 8, 8),
    "stem": (3, 3, 2, 8),
}


def test_channels_go_through_norms_sums_groups_and_flattening():
    params, x = draw(RESIDUAL), jax.random.normal(KEY, (2, 4, 4, 2))
    params = zeroed(params, find_ties(residual, params, x), keep=3)
    small = swapjax.shrink(residual, params, None, x)
    assert shapes(small.params) == {
        "beside": (3, 3, 2, 3),
        "dense": (2 * 2 * 6, 3),
        "depthwise": (3, 3, 1, 3),
        "norm/bias": (3,),
        "norm/scale": (3,),
        "point": (1, 1, 3, 3),
        "stem": (3, 3, 2, 3),
    }
    # The function pads by three channels in any case, its program by none.
    assert small.is_rebuilt
    np.testing.assert_allclose(
        small.apply(small.params, x), residual(params, x), rtol=1e-5, atol=1e-5
    )
