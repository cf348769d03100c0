"""Convolutions rewritten for CPUs, beside those that JAX has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import swapjax
from swapjax.core.trees import trainable
from swapjax.experiments import models
from swapjax.gradients.build import recipe
from swapjax.loops import steps
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
    program = getattr(program, "jaxpr", program)
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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", ["depthwise", "one tap", "pytorch"])
def test_dtypes_stay(name, dtype):
    image, kernel, *setting = CASES[name]
    conv = functools.partial(
        convolution(*setting), preferred_element_type=jnp.float32, precision="highest"
    )
    image, kernel = normal(0, image, dtype), normal(1, kernel, dtype)
    found, wanted = canonical_convolutions(conv)(image, kernel), conv(image, kernel)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for eqn, _ in convolutions(
        jax.make_jaxpr(canonical_convolutions(conv))(image, kernel)
    ):
        assert eqn.params["precision"] == (lax.Precision.HIGHEST,) * 2


def pytorch(image, kernel):
    return convolution(*CASES["pytorch"][2:])(image, kernel)


def test_programs_that_are_called_are_rewritten():
    image, kernel = (normal(i, CASES["pytorch"][i]) for i in range(2))

    @jax.custom_vjp
    def twice(x):
        return 2 * jnp.sum(pytorch(x, kernel))

    twice.defvjp(lambda x: (twice(x), x), lambda x, slope: (slope * jnp.ones_like(x),))
    relu = jax.custom_jvp(lambda x: pytorch(x, kernel))
    relu.defjvp(lambda x, t: (relu(*x), pytorch(*t, kernel)))

    def loss(kernel, scale, *, more):
        total = jnp.sum(jax.checkpoint(pytorch)(image, kernel) ** 2) * scale

        def step(carry, part):
            carry = jax.lax.cond(carry > 0, lambda c: c + jnp.sum(jax.jit(pytorch)(
                image, part * kernel)), lambda c: c, carry)  # fmt: skip
            return carry, part

        total, parts = lax.scan(step, total, more["parts"])
        count = lax.fori_loop(
            0, 2, lambda i, c: c + jnp.sum(pytorch(image, kernel)), 0.0
        )
        return total + count + twice(image) + jnp.sum(relu(image)), (parts, "told")

    def work(kernel, more):
        value = loss(kernel, 2, more=more)
        told = lambda k: loss(k, 2, more=more)[0]  # noqa: E731
        # While loops have no reverse mode.
        return value, jax.jvp(told, (kernel,), (kernel,))

    more = {"parts": jnp.arange(3.0), "name": "not an array"}
    fast = canonical_convolutions(work)
    found, wanted = fast(kernel, more), work(kernel, more)
    assert found[0][1][1] == "told"
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4),
        (found[0][0], found[1]), (wanted[0][0], wanted[1]),
    )  # fmt: skip
    program = jax.make_jaxpr(lambda k, p: fast(k, {"parts": p})[1])(
        kernel, more["parts"]
    )
    assert list(convolutions(program.jaxpr))
    assert not rewritable(program.jaxpr)


def test_gradients_in_a_checkpoint_vmap_and_loop():
    image, kernel = (normal(i, CASES["pytorch"][i]) for i in range(2))

    def loss(kernel, image):
        return jnp.sum(jax.checkpoint(pytorch)(image, kernel) ** 2)

    gradient = jax.grad(loss)
    fast, images = canonical_convolutions(gradient), jnp.stack([image, -2 * image])
    wanted = jax.vmap(lambda x: gradient(kernel, x))(images)
    for found in (
        jax.vmap(lambda x: fast(kernel, x))(images),
        canonical_convolutions(jax.vmap(gradient, (None, 0)))(kernel, images),
        jax.jit(lambda i: lax.map(lambda x: fast(kernel, x), i))(images),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_effects_and_weak_types_stay(capfd):
    def work(image, kernel, weak):
        jax.debug.print("seen {}", weak)
        return pytorch(image, kernel), weak + 1, 3

    image, kernel = (normal(i, CASES["pytorch"][i]) for i in range(2))
    fast = canonical_convolutions(work)
    found = jax.jit(lambda x: fast(image, kernel, x)[1])(1.0)
    jax.effects_barrier()
    assert found.weak_type
    assert capfd.readouterr().out == "seen 1.0\n"
    assert fast(image, kernel, 2)[2] == 3


@pytest.mark.parametrize("name", ["pytorch", "depthwise"])
def test_sizes_that_are_symbols_stay(name):
    image, kernel, *setting = CASES[name]
    conv, kernel = convolution(*setting), normal(1, kernel)
    shape = jax.export.symbolic_shape(f"n, {', '.join(map(str, image[1:]))}")
    fast = jax.jit(lambda x: canonical_convolutions(conv)(x, kernel))
    told = jax.export.export(fast)(jax.ShapeDtypeStruct(shape, jnp.float32))
    image = normal(0, image)
    np.testing.assert_allclose(told.call(image), conv(image, kernel), rtol=1e-5)


def test_other_back_ends_and_other_programs_are_left_alone(monkeypatch):
    image, kernel = (normal(i, CASES["pytorch"][i]) for i in range(2))
    plain = canonical_convolutions(lambda x: jnp.sin(x) @ x.T)
    assert "sin" in str(jax.make_jaxpr(plain)(jnp.ones((2, 3))))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = jax.make_jaxpr(canonical_convolutions(pytorch))(image, kernel)
    assert rewritable(program.jaxpr)


def test_rows_have_no_convolution_with_groups_on_a_gpu(monkeypatch):
    """XLA:GPU takes a grouped kernel gradient for a forward convolution."""
    model = models.create("resnet20", (8, 8, 3), 10)
    data = jnp.ones((6, 8, 8, 3)), jnp.zeros(6, jnp.int32)
    plan = swapjax.plan(model.params, 0.5)

    def groups_of(platform):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        free = recipe(model.loss_fn, model.params, data, plan, batch=2, chunk=3)
        program = jax.make_jaxpr(lambda free: free.store())(free).jaxpr
        return {eqn.params["feature_group_count"] for eqn, _ in convolutions(program)}

    assert groups_of("gpu") == {1}
    assert groups_of("tpu") == {1, 3}


def test_loops_over_a_network_have_no_slow_convolution():
    """Of ResNet-20: rows, products with them, steps of training."""
    model = models.create("resnet20", (8, 8, 3), 10)
    data = jnp.ones((4, 8, 8, 3)), jnp.zeros(4, jnp.int32)
    plan = swapjax.plan(model.params, 0.5)
    free = recipe(model.loss_fn, model.params, data, plan, batch=2)
    leaves, optimizer = plan.layout.split(model.params), optax.sgd(0.1)
    start = steps.Carry(model.params, optimizer.init(trainable(model.params)))

    def all_of_it(free, data):
        step = steps.run(
            model.loss_fn, optimizer, start, None, data, jnp.arange(4).reshape(2, 2)
        )  # fmt: skip
        back = free.pull_back(free.project(leaves))
        return free.store(), back, free.loss(leaves), step

    program = jax.make_jaxpr(all_of_it)(free, data).jaxpr
    slow = [
        eqn for eqn, looped in convolutions(program) if looped and forms.form_of(eqn)
    ]
    assert not slow
    assert any(looped for _, looped in convolutions(program))
