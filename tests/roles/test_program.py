"""Roles from programs, beside roles written down by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from swapjax.roles.program import trace_roles
from swapjax.roles.role import Role, matrix

mean = jnp.mean
TABLE, VECTOR, UNKNOWN = Role("table"), Role("vector"), Role("unknown")
IN_OUT, OUT_IN = matrix("input", "output"), matrix("output", "input")
STACK, EXPERT = matrix("stack", "input", "output"), matrix("expert", "input", "output")
KERNEL = matrix("input", "input", "input", "output")
MULTI, ROUTED = matrix("input", "output", "output"), matrix("input", "input", "output")


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def ids(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def roles(loss_fn, params, batch):
    found = trace_roles(loss_fn, params, batch)
    assert all(role.reason for role in found)
    return list(found)


def check(loss_fn, params, batch, *wanted):
    assert roles(loss_fn, params, batch) == list(wanted)


x, square = floats(2, 5), floats(5, 5)


def conv(images, kernel, numbers=("NHWC", "HWIO", "NHWC"), **options):
    return lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=numbers, **options
    )


def attend(q, k, v, o, h, source=None):
    """Multi-head attention [batch, places, width] with kernels as Flax has them."""
    source = h if source is None else source
    query = jnp.einsum("...ti,ihd->...thd", h, q)
    key, value = (jnp.einsum("...ti,ihd->...thd", source, w) for w in (k, v))
    weights = jax.nn.softmax(jnp.einsum("...qhd,...khd->...hqk", query, key))
    return jnp.einsum("...hqd,hdo->...qo", weights @ value.swapaxes(-2, -3), o)


def mixture(p, x):
    """All experts for every place, weighted by a gate."""
    hidden = jax.nn.gelu(jnp.einsum("td,edf->tef", x, p[0]))
    gate = jax.nn.softmax(x @ p[2])
    return jnp.einsum("te,ted->td", gate, jnp.einsum("tef,efd->ted", hidden, p[1]))


def styled(p, b):
    """A convolution whose kernel each example scales."""
    w = p[None] * b[1][:, None, :, None, None]
    w = w * lax.rsqrt((w**2).sum((2, 3, 4), keepdims=True) + 1e-8)
    x = b[0].reshape(1, 8, 9, 9)
    w = w.reshape(12, 4, 3, 3)
    return mean(conv(x, w, ("NCHW", "OIHW", "NCHW"), feature_group_count=2))


images = floats(2, 9, 9, 4)
HEADS = (*(floats(8, 2, 4),) * 3, floats(2, 4, 8))


# Each: the loss, params (one leaf or a tuple), the batch, the roles.
CASES = {
    "dense": (lambda p, x: mean(x @ p[0] + p[1]), (floats(5, 3), floats(3)), x,
              IN_OUT, VECTOR),
    "torch": (lambda p, x: mean(x @ p.T), floats(3, 5), x, OUT_IN),
    "column": (lambda p, x: mean(x @ p), floats(5), x, matrix("input")),
    "one output": (lambda p, x: mean(x @ p), floats(5, 1), x, IN_OUT),
    "one input": (lambda p, x: mean(x[:, :1] @ p), floats(1, 5), x, IN_OUT),
    "squeezed": (lambda p, x: mean(x @ p[0]), floats(1, 5, 3), x, STACK),
    "scale": (lambda p, x: mean((x - 1) * p[0] + p[1]), (floats(5), floats(5)), x,
              VECTOR, VECTOR),
    "temperature": (lambda p, x: mean(x @ p[0] * jnp.exp(p[1])),
                    (floats(5, 3), floats()), x, IN_OUT, VECTOR),
    # Made of weights alone.
    "cast": (lambda p, x: mean(x @ (p.astype(jnp.bfloat16) * 0.5).astype(x.dtype)),
             floats(5, 3), x, IN_OUT),
    "masked": (lambda p, x: mean(x @ jnp.where(jnp.ones((5, 3), bool), p, 0)),
               floats(5, 3), x, IN_OUT),
    "quantised": (lambda p, x: mean(x @ (jnp.clip(jnp.round(p / jnp.max(p)), -8, 7))),
                  floats(5, 3), x, IN_OUT),
    "int8": (lambda p, x: mean(x @ (p[0].astype(x.dtype) * p[1])),
             (jax.ShapeDtypeStruct((5, 3), jnp.int8), floats(3)), x, IN_OUT, VECTOR),
    "delta": (lambda p, x: mean(x @ (p[0] + p[1])), (floats(5, 3),) * 2, x,
              IN_OUT, IN_OUT),
    "weight norm": (lambda p, x: mean(x @ (p[0] * p[1] / jnp.linalg.norm(p[0]))),
                    (floats(5, 3), floats(3)), x, IN_OUT, VECTOR),
    "standardised": (lambda p, x: mean(x @ ((p - p.mean(0)) / p.std(0))),
                     floats(5, 3), x, IN_OUT),
    "identity": (lambda p, x: mean(x @ (jnp.eye(5) @ p)), floats(5, 3), x, IN_OUT),
    "rotated": (lambda p, x: mean(x @ (p @ jnp.ones((3, 3)))), floats(5, 3), x, IN_OUT),
    "lora": (lambda p, x: mean(x @ (p[0] + p[1] @ p[2])),
             (floats(5, 3), floats(5, 2), floats(2, 3)), x, IN_OUT, IN_OUT, IN_OUT),
    "lora of torch": (lambda p, x: mean(x @ (p[0] + p[1] @ p[2]).T),
                      (floats(3, 5), floats(3, 2), floats(2, 5)), x,
                      OUT_IN, OUT_IN, OUT_IN),
    "kronecker": (lambda p, x: mean(x[:, :4] @ jnp.kron(*p)),
                  (floats(2, 3), floats(2, 3)), x, IN_OUT, IN_OUT),
    "soup": (lambda p, x: mean(x @ p.mean(0)), floats(4, 5, 3), x, STACK),
    # Parts.
    "split outputs": (lambda p, x: mean(x @ p[:, :4] * (x @ p[:, 4:])), floats(5, 8), x,
                      IN_OUT),
    "joined": (lambda p, x: mean(x @ jnp.concatenate(p, 1)), (floats(5, 3),) * 2, x,
               IN_OUT, IN_OUT),
    "padded": (lambda p, x: mean(x @ jnp.pad(p, ((0, 1), (0, 0)))), floats(4, 3), x,
               IN_OUT),
    "heads": (lambda p, x: mean(jnp.einsum("bi,ihd->bhd", x, p)), floats(5, 2, 3), x,
              MULTI),
    "heads joined": (lambda p, x: mean(x[:, :4] @ p.reshape(4, 3)), floats(2, 2, 3), x,
                     ROUTED),
    # Convolutions.
    "convolution": (lambda p, x: mean(conv(x, p)), floats(3, 3, 4, 8), images, KERNEL),
    "depthwise": (lambda p, x: mean(conv(x, p, feature_group_count=4)),
                  floats(3, 3, 1, 4), images,
                  matrix("input", "input", "input", "output", groups=4)),
    "groups": (lambda p, x: mean(conv(x, p, feature_group_count=2)),
               floats(3, 3, 2, 8), images,
               matrix("input", "input", "input", "output", groups=2)),
    "depthwise of keras": (
        lambda p, x: mean(conv(x, p.reshape(3, 3, 1, 8), feature_group_count=4)),
        floats(3, 3, 4, 2), images,
        matrix("input", "input", "output", "output", groups=4)),
    "of torch": (lambda p, x: mean(conv(x, p, ("NCHW", "OIHW", "NCHW"))),
                 floats(8, 9, 3, 3), images,
                 matrix("output", "input", "input", "input")),
    "transposed": (lambda p, x: mean(lax.conv_transpose(
        x, p, (2, 2), "SAME", transpose_kernel=True)), floats(3, 3, 8, 4), images,
        matrix("input", "input", "output", "input")),
    "flipped": (lambda p, x: mean(conv(x, p[::-1, ::-1].swapaxes(2, 3))),
                floats(3, 3, 8, 4), images,
                matrix("input", "input", "output", "input")),
    "of several": (lambda p, x: mean(jax.vmap(conv)(x, p)), floats(5, 3, 3, 4, 8),
                   floats(5, 2, 9, 9, 4),
                   matrix("expert", "input", "input", "input", "output")),
    # Loops.
    "scanned": (lambda p, x: mean(lax.scan(
        lambda h, w: (jnp.tanh(h @ w[0] + w[1]), None), x, p)[0]),
        (floats(4, 5, 5), floats(4, 5)), x, STACK, VECTOR),
    "scanned twice": (lambda p, x: mean(lax.scan(
        lambda h, w: (lax.scan(lambda h, w: (h @ w, None), h, w)[0], None), x, p)[0]),
        floats(4, 3, 5, 5), x, matrix("stack", "stack", "input", "output")),
    "indexed": (lambda p, x: mean(lax.fori_loop(
        0, 4, lambda i, h: jnp.tanh(h @ p[0][i] + p[1][i]), x)),
        (floats(4, 5, 5), floats(4, 5)), x, STACK, VECTOR),
    "shared": (lambda p, x: mean(lax.scan(lambda h, _: (h @ p, None), x, None, 3)[0]),
               square, x, IN_OUT),
    "stacked": (lambda p, x: mean(lax.scan(
        lambda h, w: (h @ w, None), x, jnp.stack(p))[0]), (square,) * 3, x,
        IN_OUT, IN_OUT, IN_OUT),
    "prepared": (lambda p, x: mean(lax.scan(
        lambda h, w: (h @ w, None), x, lax.map(lambda w: w / 2, p))[0]),
        floats(4, 5, 5), x, STACK),
    "while": (lambda p, x: mean(lax.while_loop(
        lambda c: mean(c[1]) > 0, lambda c: (c[0] + 1, c[1] @ p[c[0]]), (0, x))[1]),
        floats(4, 5, 5), x, STACK),
    "branches": (lambda p, x: mean(lax.switch(
        jnp.argmax(x[0]), [lambda x: x @ p[0], lambda x: p[1] + x], x)),
        (square, floats(5)), x, IN_OUT, VECTOR),
    "chosen": (lambda p, x: mean(x @ lax.cond(x[0, 0] > 0, lambda: p[0], lambda: p[1])),
               (square,) * 2, x, IN_OUT, IN_OUT),
    "recurrent": (lambda p, x: mean(lax.scan(
        lambda h, x: (jnp.tanh(p[0] @ x + p[1] @ h + p[2]), None), p[3], x)[0]),
        (floats(4, 5), floats(4, 4), floats(4), floats(4)), x,
        OUT_IN, OUT_IN, VECTOR, VECTOR),
    # Experts.
    "experts": (lambda p, x: mean(jnp.einsum("ecd,edf->ecf", x, p)), floats(4, 5, 3),
                floats(4, 2, 5), EXPERT),
    "ragged": (lambda p, b: mean(lax.ragged_dot(b[0], p, b[1])), floats(4, 5, 3),
               (x, ids(4)), EXPERT),
    "routed": (lambda p, x: mean(jax.vmap(lambda x: x @ p[jnp.argmax(x)])(x)),
               floats(5, 5, 3), x, EXPERT),
    "routed together": (lambda p, x: mean(x @ p[jnp.argmax(x[0])]), floats(5, 5, 3), x,
                        EXPERT),
    "of one input": (lambda p, x: mean(jax.vmap(
        lambda p: jax.nn.relu(x @ p[0]) @ p[1])(p)), (floats(4, 5, 3), floats(4, 3, 6)),
        x, EXPERT, EXPERT),
    "kernels of one input": (lambda p, x: mean(jax.vmap(
        lambda k, w: conv(conv(x, k), w))(*p)),
        (floats(5, 3, 3, 4, 8), floats(5, 3, 3, 8, 8)), images,
        *(matrix("expert", "input", "input", "input", "output"),) * 2),
    "gated": (lambda p, x: mean(mixture(p, x)),
              (floats(4, 5, 3), floats(4, 3, 5), floats(5, 4)), x,
              EXPERT, EXPERT, IN_OUT),
    "mixed kernels": (lambda p, x: mean(jnp.einsum(
        "bi,bio->bo", x, jnp.einsum("bk,kio->bio", jax.nn.softmax(x[:, :3]), p))),
        floats(3, 5, 4), x, EXPERT),
    "bilinear": (lambda p, x: mean(jnp.einsum("bi,oij,bj->bo", x, p, x)),
                 floats(3, 5, 5), x, matrix("output", "input", "input")),
    "styled": (styled, floats(6, 4, 3, 3), (floats(2, 4, 9, 9), floats(2, 4)),
               matrix("output", "input", "input", "input")),
    "attention": (lambda p, x: mean(attend(*p, x)), HEADS, floats(2, 7, 8),
                  MULTI, MULTI, MULTI, ROUTED),
    "attention of several": (
        lambda p, x: mean(jax.vmap(lambda p: attend(*p, x))(p)),
        tuple(floats(5, *w.shape) for w in HEADS), floats(2, 7, 8),
        *(matrix("expert", *MULTI.axes),) * 3, matrix("expert", *ROUTED.axes)),
    "one key for all heads": (lambda p, x: mean(jnp.einsum(
        "bhd,cd->bhc", jnp.einsum("bi,ihd->bhd", x, p[0]), x @ p[1])),
        (floats(5, 2, 4), floats(5, 4)), x, MULTI, IN_OUT),
    # Tables.
    "table": (lambda p, i: mean(p[i]), floats(9, 5), ids(2, 3), TABLE),
    "take": (lambda p, i: mean(jnp.take(p, i, axis=0)), floats(9, 5), ids(2), TABLE),
    "one row": (lambda p, i: mean(jax.vmap(lambda i: p[i])(i)), floats(9, 5), ids(2),
                TABLE),
    "row of one": (lambda p, i: mean(p[i]), floats(9, 5), ids(), TABLE),
    "positions": (lambda p, i: mean(p[0][i] + p[1][:3] + p[2][jnp.arange(3)]),
                  (floats(9, 5),) * 3, ids(2, 3), TABLE, VECTOR, TABLE),
    "two tables": (lambda p, i: mean((p[0][i] * p[1][i]).sum(-1)), (floats(9, 5),) * 2,
                   ids(2), TABLE, TABLE),
    "one hot": (lambda p, i: mean(jax.nn.one_hot(i, 9) @ p), floats(9, 5), ids(2),
                IN_OUT),
    # Without data.
    "unused": (lambda p, x: mean(x @ p[0]), (square, square), x, IN_OUT, UNKNOWN),
    "penalty": (lambda p, x: mean(x @ p[0]) + jnp.sum(p[1] ** 2)
                + jnp.sum((p[0].T @ p[0] - jnp.eye(5)) ** 2), (square, square), x,
                IN_OUT, UNKNOWN),
    "latents": (lambda p, x: mean(jnp.tanh(p[0] @ p[1]) @ (x @ p[2]).T),
                (floats(4, 6), floats(6, 3), floats(5, 3)), x, OUT_IN, IN_OUT, IN_OUT),
    "queries": (lambda p, x: mean(attend(*p[1:], p[0] - mean(p[0]), x)),
                (floats(5, 8), *HEADS), floats(2, 7, 8),
                OUT_IN, MULTI, MULTI, MULTI, ROUTED),
    "attention without data": (lambda p, x: mean(x + attend(*p[1:], p[0])),
                               (floats(7, 8), *HEADS), floats(2, 7, 8),
                               OUT_IN, MULTI, MULTI, MULTI, ROUTED),
    "derivative": (lambda p, x: mean(jax.grad(
        lambda x: mean(jnp.tanh(x @ p[0]) @ p[1]))(x) ** 2),
        (floats(5, 3), floats(3, 4)), x, IN_OUT, IN_OUT),
    "inner step": (lambda p, x: mean(x @ (p - jax.grad(lambda p: mean(x @ p))(p))),
                   square, x, IN_OUT),
    "dropped": (lambda p, b: mean(b[0] @ (p * jax.random.bernoulli(b[1], 0.5, (5, 3)))),
                floats(5, 3), (x, jax.eval_shape(lambda: jax.random.key(0))), IN_OUT),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_roles_are_those_written_down(name):
    loss_fn, params, batch, *wanted = CASES[name]
    check(loss_fn, params, batch, *wanted)


def test_programs_over_devices_are_followed():
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    spec = jax.sharding.PartitionSpec

    def part(kernel, stack, bias, x):
        whole = lax.all_gather(kernel, "data", axis=0, tiled=True)
        h = lax.psum(x @ whole, "model") + bias
        return lax.scan(lambda h, w: (h @ w, None), h, stack)[0]

    over = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(spec(("model", "data")), spec(), spec(), spec("data", "model")),
        out_specs=spec("data"),
    )
    params = (floats(8, 5), floats(3, 5, 5), floats(5))
    sharded = tuple(
        jax.ShapeDtypeStruct(
            p.shape, p.dtype, sharding=jax.sharding.NamedSharding(mesh, s)
        )
        for p, s in zip(params, (spec(("model", "data")), spec(), spec()), strict=True)
    )
    data = jax.ShapeDtypeStruct(
        (4, 8),
        jnp.float32,
        sharding=jax.sharding.NamedSharding(mesh, spec("data", "model")),
    )
    check(lambda p, x: mean(over(*p, x)), sharded, data, IN_OUT, STACK, VECTOR)


def test_calls_and_derivatives_by_hand_are_entered():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

    @jax.custom_jvp
    def twice(x, w):
        return 2 * (x @ w)

    twice.defjvp(lambda primals, tangents: (twice(*primals), twice(*tangents)))

    def loss(p, x):
        h = product(x, p[0])
        h = twice(h, p[1])
        h = jax.checkpoint(lambda h, w: jnp.tanh(h @ w))(h, p[2])
        return mean(jax.jit(lambda h, w: h @ w.T)(h, lax.optimization_barrier(p[3])))

    check(loss, (square,) * 4, x, IN_OUT, IN_OUT, IN_OUT, OUT_IN)


def test_a_callback_ends_the_leaf_that_enters_it_alone():
    def host(w):
        return jax.pure_callback(np.asarray, w, w)

    found = roles(lambda p, x: mean(x @ p[0] @ host(p[1])), (square, square), x)
    assert found == [IN_OUT, UNKNOWN]
    assert found[1].reason == "enters the loss through pure_callback"
    check(lambda p, x: mean(jax.pure_callback(np.asarray, x, x) @ p), square, x, IN_OUT)


def test_roles_of_arrays_are_those_of_their_shapes():
    loss = CASES["scanned"][0]
    params = (jnp.ones((4, 5, 5)), np.ones((4, 5), np.float32))
    check(loss, params, jnp.ones((2, 5)), STACK, VECTOR)


def test_arrays_that_the_loss_closes_over_are_data_where_the_batch_is_not():
    images, eye = jnp.ones((2, 5)), jnp.eye(5)
    check(lambda p, _: mean(images @ p), square, floats(), IN_OUT)
    check(lambda p, _: mean(images @ p), square, None, IN_OUT)
    check(lambda p, x: mean(eye @ p[0]) + mean(x @ p[1]), (square,) * 2, x,
          UNKNOWN, IN_OUT)  # fmt: skip


def test_pixels_of_a_kernel_are_told_from_its_channels():
    for name in ("convolution", "depthwise", "flipped"):
        (role,) = roles(*CASES[name][:3])
        assert role.pixels == (0, 1)
    (role,) = roles(*CASES["of several"][:3])
    assert role.pixels == (1, 2)
    (role,) = roles(*CASES["of torch"][:3])
    assert role.pixels == (2, 3)


def test_loops_are_followed_where_jit_is_off():
    with jax.disable_jit():
        for name in ("scanned", "while", "branches"):
            loss_fn, params, batch, *wanted = CASES[name]
            check(loss_fn, params, batch, *wanted)


def test_reasons_follow_the_path_of_a_leaf():
    (role,) = roles(lambda p, i: mean(p[i] @ p.T), floats(9, 5), ids(2))
    assert role.kind == "unknown"
    wanted = "is looked up by gather, and multiplied with axes (output, input)"
    assert role.reason == wanted
    (role,) = roles(lambda p, x: mean(x @ p @ p.T), floats(5, 3), x)
    assert role.reason == (
        "is multiplied with axes (input, output), and multiplied with axes (output, "
        "input)"
    )
    (role,) = roles(lambda p, x: mean(x @ jnp.fft.fft(p).real), square, x)
    assert role.reason == "enters the loss through fft"
    _, role = roles(lambda p, x: mean(x @ p[0]), (square, square), x)
    assert role.reason == "meets no data"
    (role,) = roles(
        lambda p, x: mean(x @ p[:15].reshape(5, 3) @ p[15:].reshape(3, 4)),
        floats(27),
        x,
    )
    assert role.reason == (
        "is multiplied with an axis that numbers both inputs and outputs"
    )


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda p, x: float(mean(x @ p)),
        lambda p, x: mean(x @ p) if x.sum() > 0 else 0.0,
        lambda p, x: np.asarray(x @ p).mean(),
        lambda p, x: mean((x @ p)[x[:, 0] > 0]),
        lambda p, x: mean(x @ p[int(x[0, 0])]),
    ],
)
def test_a_loss_that_asks_for_values_is_an_error(loss_fn):
    with pytest.raises(ValueError, match=r"^loss_fn: must be traceable .* axes= "):
        trace_roles(loss_fn, square, x)
