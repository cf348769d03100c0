"""What is said to be known of values is what they are, whatever the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.deploy.constants import Constants
from swapjax.deploy.known import constant, nothing
from swapjax.roles.ties import find_ties


def sparse(*shape):
    """Weights with zeros in whole places along each axis, and elsewhere."""
    generator = np.random.default_rng(sum(shape))
    array = generator.normal(size=shape) * (generator.random(shape) < 0.7)
    for axis, size in enumerate(shape):
        if size > 2:
            np.moveaxis(array, axis, 0)[[0, size - 1]] = 0
    return array.astype(np.float32)


def conv(x, kernel, padding="VALID", **settings):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **settings,
    )  # fmt: skip


def arithmetic(p, x):
    y = x @ p["a"]
    z = jax.nn.relu(y + p["b"])
    chosen = jnp.where(y > 0, z, y), jnp.where(p["b"] > 0, z, 1.0), jnp.clip(z, 0, 6)
    return (
        chosen,
        y * x[:, :1],
        y / (1 + jnp.abs(y)),
        z**2,
        jax.nn.gelu(y),
        z.astype(int),
    )


def moves(p, x):
    y = x @ p["a"]
    turned = y.T[::-1].reshape(2, 3, -1), jnp.pad(y, ((0, 0), (1, 2)))
    joined = jnp.concatenate([y, x, jnp.ones_like(y)], axis=1)
    parts = jnp.split(joined, [2, 6], axis=1), joined[:, 1:8:3], y[0], y[:, None, 2]
    numbers = (x[:, 0] * 3).astype(int) % 4
    looked = p["table"][numbers], jax.lax.dynamic_slice_in_dim(y, numbers[0], 2, 0)
    return turned, parts, looked, jnp.max(y, axis=0), jnp.sum(y, axis=1), y.sum(0)


def products(p, x):
    y = jax.nn.relu(x @ p["a"] + p["b"])
    heads = y.reshape(len(x), 3, 2)
    scores = jnp.einsum("thd,shd->hts", heads, heads)
    batched = jnp.einsum("thd,hde->the", heads, p["c"])
    return scores, batched, jnp.einsum("he,the->te", p["c"][:, 0], batched), y @ p["d"]


def pictures(p, x):
    x = x.reshape(1, 4, 4, 1)
    y = conv(x, p["e"], "SAME") + p["b"]
    pooled = jax.lax.reduce_window(
        y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
    )
    grouped = conv(y, p["f"], feature_group_count=3)
    most = jax.lax.reduce_window(
        y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"
    )
    return pooled, grouped, most, conv(y, p["g"]), conv(y, p["g"], "SAME")


def loops(p, x):
    def step(carry, w):
        y = carry @ w * p["b"]
        return jnp.tanh(y), y[0]

    def go(carry):
        return carry[0] + 1, carry[1] @ p["h"][0]

    along = jax.lax.scan(step, x @ p["a"], p["h"])
    many = jax.lax.while_loop(lambda c: c[0] < 2, go, (0, x @ p["a"]))
    either = jax.lax.cond(
        x[0, 0] > 0, lambda y: y * p["b"], lambda y: 0 * y, x @ p["a"]
    )
    repeated = jnp.broadcast_to(p["h"][0], (300, 6, 6))
    return along, many, either, jax.lax.scan(step, x @ p["a"], repeated)


PARAMS = {
    "a": sparse(4, 6), "b": sparse(6), "c": sparse(3, 2, 5), "d": sparse(6, 4),
    "e": sparse(2, 2, 1, 6), "f": sparse(2, 2, 2, 6), "g": sparse(2, 2, 6, 4),
    "h": sparse(2, 6, 6), "table": np.ones((4, 3), np.float32) * sparse(3),
}  # fmt: skip


@pytest.mark.parametrize("function", [arithmetic, moves, products, pictures, loops])
def test_what_is_known_is_so(function):
    draws = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    ties = find_ties(function, PARAMS, draws[0])
    inputs = [
        nothing(ties.program.shapes[n]) if n not in ties.leaves else constant(leaf)
        for n, leaf in zip(
            ties.program.inputs, [*jax.tree.leaves(PARAMS), None], strict=True
        )
    ]
    told = Constants().walk(ties.program, inputs)
    call = jax.jit(function)
    results = [jax.tree.leaves(call(PARAMS, x)) for x in draws]
    entries = 0
    for i, known in enumerate(told):
        where = np.broadcast_to(known.known, known.shape)
        entries += where.sum()
        for result in results:
            assert known.shape == result[i].shape
            np.testing.assert_allclose(
                np.asarray(result[i])[where], known.full()[where], rtol=1e-5, atol=1e-6
            )
        # What differs between data is not known.
        same = np.all([r[i] == results[0][i] for r in results], axis=0)
        assert not (where & ~same & (np.abs(np.asarray(results[0][i])) > 1e-6)).any()
    assert entries > 10
