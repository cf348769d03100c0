"""What lives or dies together is found from the program of a network."""

import jax
import jax.numpy as jnp
import pytest

from swapjax.roles.ties import find_ties


def told(function, params, *inputs):
    """Groups as text, without shapes being made."""
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        params,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    inputs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in inputs]
    return [str(group) for group in find_ties(function, params, *inputs).groups]


def convolve(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def test_a_flattened_channel_has_the_rows_of_all_its_pixels():
    def apply(p, x):
        y = jax.nn.relu(convolve(x, p["conv"]) + p["bias"])
        return y.reshape(len(x), -1) @ p["dense"]

    params = {"bias": (6,), "conv": (3, 3, 1, 6), "dense": (4 * 4 * 6, 2)}
    (group,) = told(apply, params, (1, 4, 4, 1))
    assert group == "6 units of conv: bias[axis 0], conv[axis 3], dense[axis 0]"


def test_residual_sums_tie_and_concatenations_do_not():
    def apply(p, x):
        y = x @ p["a"]
        y = y + jnp.tanh(y) @ p["b"]
        return jnp.concatenate([y, x @ p["c"]], axis=-1) @ p["d"]

    params = {"a": (3, 5), "b": (5, 5), "c": (3, 2), "d": (7, 1)}
    assert told(apply, params, (1, 3)) == [
        "5 units of a: a[axis 1], b[axis 0], b[axis 1], d[axis 0]",
        "2 units of c: c[axis 1], d[axis 0]",
    ]


def test_depthwise_kernels_go_with_their_channels_and_groups_as_wholes():
    def apply(p, x):
        y = convolve(convolve(x, p["a"]), p["b"], groups=8)
        return jnp.sum(convolve(y, p["c"], groups=4), axis=(1, 2)) @ p["d"]

    params = {"a": (1, 1, 3, 8), "b": (3, 3, 1, 8), "c": (1, 1, 2, 4), "d": (4, 2)}
    assert told(apply, params, (1, 4, 4, 3)) == [
        "4 units of a: a[axis 3], b[axis 3], c[axis 3], d[axis 0]"
    ]


def attention(p, x):
    q, k, v = ((x @ p[name]).reshape(*x.shape[:2], 4, 3) for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    y = jnp.einsum("bhts,bshd->bthd", weights, v)
    return y.reshape(x.shape[0], x.shape[1], 12) @ p["out"]


def test_heads_that_are_neighbours_in_one_axis_are_units():
    params = {"k": (5, 12), "out": (12, 5), "q": (5, 12), "v": (5, 12)}
    (group,) = told(attention, params, (2, 6, 5))
    assert group.startswith("4 units of")
    assert all(f"{name}[axis" in group for name in params)


def test_layers_of_a_loop_share_their_units():
    def apply(p, x):
        def step(x, layer):
            return x + jax.nn.gelu(x @ layer["up"]) @ layer["down"], None

        return jax.lax.scan(step, x @ p["in"], p["layers"])[0] @ p["out"]

    layers = {"down": (3, 9, 5), "up": (3, 5, 9)}
    params = {"in": (2, 5), "layers": layers, "out": (5, 2)}
    stream, hidden = told(apply, params, (1, 2))
    assert stream.startswith("5 units of in: in[axis 1], layers/down[axis 2], ")
    assert hidden == "9 units of layers/up: layers/down[axis 1], layers/up[axis 2]"


def test_what_cannot_go_says_why():
    def apply(p, x):
        y = jnp.sort(x @ p["a"], axis=-1), jax.nn.softmax(x @ p["b"])
        return *y, jnp.tanh(x) @ p["c"], p["table"][x.astype(int)[0]]

    params = {
        "a": jnp.zeros((3, 4)),
        "b": jnp.zeros((3, 5)),
        "c": jnp.zeros((3, 2)),
        "idle": jnp.zeros(2),
        "table": jnp.zeros((7, 2)),
    }
    ties = find_ties(apply, params, jnp.zeros((1, 3)))
    assert not ties.groups
    why = {
        (path, axis): ties.reasons(leaf, axis)
        for leaf, path in enumerate(ties.paths)
        for axis in range(len(ties.shapes[leaf]))
    }
    assert why["a", 0] == why["c", 0] == ("meets an axis of the inputs (0)",)
    assert why["a", 1] == ("is mixed by sort",)
    assert why["b", 1] == ("is reduced by reduce_max",)
    assert why["c", 1] == ("is an axis of the result",)
    assert why["idle", 0] == ("is not used by the function",)
    assert why["table", 0] == ("is looked up by number",)


def test_a_function_that_asks_for_values_is_refused():
    with pytest.raises(ValueError, match="function: must be traceable"):
        find_ties(lambda p, x: p if p.sum() > 0 else x, jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match="function must take params"):
        find_ties(3, jnp.zeros(3))
