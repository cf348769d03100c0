"""Convolutions rewritten for CPUs, beside those that JAX has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from swapjax.loops.convolutions import forms
from swapjax.loops.convolutions.canonical import canonical_convolutions

NHWC = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# Image, kernel, strides, padding, dilations, groups of features and of examples, axes;
# shapes in the order of the axes.
CASES = {
    "fast as it is": ((2, 5, 5, 3), (3, 3, 3, 4), (1, 1), "SAME", {}, NHWC),
    "pytorch": (
        (2, 3, 5, 6), (4, 3, 3, 2), (2, 1), ((1, 0), (2, 1)), {},
        ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
    ),
    "any axes": (
        (5, 2, 6, 3), (3, 4, 3, 2), (1, 2), ((0, 2), (1, 1)), {"rhs_dilation": (2, 1)},
        ((1, 3, 0, 2), (1, 2, 0, 3), (2, 0, 3, 1)),
    ),
    "spread": (
        (2, 4, 4, 3), (3, 2, 3, 4), (1, 2), ((1, 2), (1, 0)),
        {"lhs_dilation": (2, 3)}, NHWC,
    ),
    "cut": ((2, 6, 7, 3), (2, 3, 3, 4), (1, 1), ((-1, 0), (2, -2)), {}, NHWC),
    "larger than the image": ((3, 2, 2, 4), (3, 3, 4, 5), (1, 1), "SAME", {}, NHWC),
    "one tap": ((2, 4, 5, 3), (1, 1, 3, 4), (2, 2), "VALID", {}, NHWC),
    "one tap of a spread image": (
        (2, 3, 4, 3), (5, 3, 1, 1), (1, 2), ((0, 1), (2, -1)),
        {"lhs_dilation": (2, 2)}, ((0, 3, 1, 2), (0, 1, 2, 3), (1, 2, 0, 3)),
    ),
    "one place": (
        (2, 3, 4, 2), (3, 4, 2, 5), (1, 1), "VALID", {},
        ((3, 0, 1, 2), (3, 2, 0, 1), (3, 0, 1, 2)),
    ),
    "depthwise": (
        (2, 6, 5, 4), (3, 3, 1, 4), (2, 1), "SAME", {"feature_group_count": 4}, NHWC,
    ),
    "depthwise, two a channel": (
        (2, 3, 5, 5), (6, 1, 3, 2), (1, 1), ((1, 1), (0, -1)),
        {"feature_group_count": 3, "rhs_dilation": (2, 1)},
        ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
    ),
    "depthwise, spread": (
        (1, 3, 3, 3), (2, 3, 1, 3), (1, 1), ((1, 1), (2, 0)),
        {"feature_group_count": 3, "lhs_dilation": (2, 2)}, NHWC,
    ),
    "depthwise, of one pixel": (
        (2, 1, 1, 4), (3, 3, 1, 4), (1, 1), "SAME", {"feature_group_count": 4}, NHWC,
    ),
    "grouped": (
        (1, 6, 4, 4), (6, 3, 3, 3), (1, 2), "SAME", {"feature_group_count": 2},
        ((0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3, 1)),
    ),
    "grouped, spread": (
        (1, 6, 4, 4), (6, 3, 2, 2), (1, 1), ((1, 1), (0, 1)),
        {"feature_group_count": 2, "lhs_dilation": (2, 1)},
        ((0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3, 1)),
    ),
    "groups of examples": (
        (6, 4, 5, 3), (2, 3, 3, 4), (1, 2), ((1, 1), (0, 1)),
        {"batch_group_count": 2}, NHWC,
    ),
    "groups of one example": (
        (4, 5, 5, 3), (4, 3, 3, 4), (1, 1), "VALID", {"batch_group_count": 4}, NHWC,
    ),
    "in one dimension": (
        (2, 3, 8), (4, 3, 3), (2,), ((2, 1),), {"rhs_dilation": (2,)},
        ((0, 1, 2), (0, 1, 2), (0, 1, 2)),
    ),
    "in three": (
        (1, 2, 4, 3, 4), (2, 2, 2, 2, 2), (1, 1, 2), "SAME", {},
        ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)),
    ),
    "in none": ((2, 3), (4, 3), (), (), {}, ((0, 1), (0, 1), (0, 1))),
    "of nothing": ((0, 5, 5, 3), (3, 3, 3, 4), (1, 1), "SAME", {}, NHWC),
}  # fmt: skip


def convolution(strides, padding, more, axes):
    return functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **more,
        dimension_numbers=lax.ConvDimensionNumbers(*axes),
    )  # fmt: skip


def normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def in_all_modes(conv, image, kernel):
    """Values and derivatives of a convolution, in each mode of differentiation."""

    def loss(image, kernel):
        return jnp.sum(jnp.sin(conv(image, kernel)))

    both = image, kernel
    moved = normal(2, image.shape, image.dtype), normal(3, kernel.shape, kernel.dtype)
    gradient = jax.grad(loss, argnums=(0, 1))
    return jax.jvp(conv, both, moved), jax.jvp(gradient, both, moved)


@pytest.mark.parametrize("name", CASES)
def test_all_modes_agree_with_the_original(name, x64):
    image, kernel, *setting = CASES[name]
    conv = convolution(*setting)
    image, kernel = normal(0, image, jnp.float64), normal(1, kernel, jnp.float64)
    work = functools.partial(in_all_modes, conv)
    fast = canonical_convolutions(work)
    found, wanted = jax.jit(lambda *x: (fast(*x), work(*x)))(image, kernel)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12),
        found, wanted,
    )  # fmt: skip
    assert not rewritable(jax.make_jaxpr(fast)(image, kernel).jaxpr)


def convolutions(program, *, looped=False):
    """Each convolution of a program, and whether it is in a loop or a branch."""
    for eqn in program.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn, looped
        inner = looped or eqn.primitive.name in ("scan", "while", "cond")
        for part in jax.tree.leaves(list(eqn.params.values())):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from convolutions(part, looped=inner)


def rewritable(program):
    return [eqn for eqn, _ in convolutions(program) if forms.form_of(eqn)]
