"""Smaller networks compute what the masked ones did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.core import trees
from swapjax.roles.ties import find_ties


def draw(shapes):
    """Arrays of some shapes, which are the leaves of a tree."""
    generator = np.random.default_rng(0)

    def one(shape):
        return generator.normal(size=shape).astype(np.float32)

    return jax.tree.map(one, shapes, is_leaf=lambda x: isinstance(x, tuple))


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
    params, x = draw(RESIDUAL), draw((2, 4, 4, 2))
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


def attention(p, x):
    """A transformer's block: heads next to each other in one axis, hidden units."""
    mean = jnp.mean(x, -1, keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * p["norm"]
    q, k, v = ((y @ p[n] + p["b"]).reshape(*x.shape[:2], -1, 3) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 3**0.5)
    y = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*x.shape[:2], -1)
    x = x + y @ p["out"]
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


ATTENTION = {
    **dict.fromkeys("qkv", (5, 12)),
    "b": (12,), "down": (9, 5), "norm": (5,), "out": (12, 5), "up": (5, 9),
}  # fmt: skip


def test_heads_and_hidden_units_go_in_layers_of_a_loop():
    def stack(p, x):
        return jax.lax.scan(lambda x, layer: (attention(layer, x), None), x, p)[0]

    params = draw({name: (2, *shape) for name, shape in ATTENTION.items()})
    x = draw((2, 6, 5))
    ties = find_ties(stack, params, x)
    assert sorted(map(len, ties.groups)) == [4, 9]
    params = zeroed(params, ties, keep=2)
    small = swapjax.shrink(stack, params, None, x)
    assert not small.is_rebuilt  # since the number of heads is written nowhere
    assert small.params["q"].shape == (2, 5, 6)
    assert small.params["out"].shape == (2, 6, 5)
    assert small.params["up"].shape == (2, 5, 2)
    np.testing.assert_array_equal(small.kept["out"][1], np.arange(6))
    assert small.error < 1e-5
    # Other trees like params become as small.
    cut = small.cut(params)
    jax.tree.map(np.testing.assert_array_equal, cut, small.params)
    with pytest.raises(ValueError, match=r"b must have the shape \(2, 12\)"):
        small.cut(small.params)


def test_layers_of_a_loop_lose_units_of_their_own():
    def stack(p, x):
        return jax.lax.scan(lambda x, layer: (attention(layer, x), None), x, p)[0]

    params = draw({name: (2, *shape) for name, shape in ATTENTION.items()})
    x = draw((2, 6, 5))
    params["up"][0, :, 2:5] = params["up"][1, :, 4:8] = 0  # 3 and 4 hidden units
    params["out"][0, 3:6] = params["out"][1, 9:] = 0  # heads 1 and 3
    small = swapjax.shrink(stack, params, None, x)
    assert shapes(small.params) == {
        "b": (2, 9), "down": (2, 6, 5), "k": (2, 5, 9), "norm": (2, 5),
        "out": (2, 9, 5), "q": (2, 5, 9), "up": (2, 5, 6), "v": (2, 5, 9),
    }  # fmt: skip
    assert small.error < 1e-5
    np.testing.assert_array_equal(
        small.kept["out"][1], [[0, 1, 2, 6, 7, 8, 9, 10, 11], range(9)]
    )
    jax.tree.map(np.testing.assert_array_equal, small.cut(params), small.params)
    assert "from 3 to 4 of 9" in small.stayed["up"]
    ties = swapjax.find_ties(stack, params, x)
    tied = swapjax.tie_masks(ties, jax.tree.map(lambda p: p != 0, params))
    for masks, gone in zip(tied["b"], ([3, 4, 5], [9, 10, 11]), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(~masks), gone)


def test_constants_go_to_the_bias_that_follows():
    def apply(p, x):
        y = jax.nn.relu(convolve(x, p["conv"]) + p["b1"])
        y = jnp.einsum("nhwc,cd->nhwd", y, p["point"]) - p["mean"]
        y = jnp.tanh(y).reshape(len(x), -1)
        return jax.nn.log_softmax(y @ p["dense"] + p["b2"])

    params = draw(
        {"conv": (3, 3, 1, 6), "b1": (6,), "point": (6, 4), "mean": (4,),
         "dense": (16, 3), "b2": (3,)}
    )  # fmt: skip
    params["b1"] = np.abs(params["b1"])
    masks = {name: np.ones(array.shape, bool) for name, array in params.items()}
    masks["conv"][..., 2:] = False
    masks["point"][:, 1:] = False
    x = draw((2, 2, 2, 1))
    small = swapjax.shrink(apply, params, masks, x)
    assert small.params["conv"].shape == (3, 3, 1, 2)
    assert small.params["point"].shape == (2, 1)
    assert small.params["dense"].shape == (4, 3)
    assert small.folded == ("mean", "b2")
    assert not small.is_rebuilt
    assert small.error < 1e-5


def test_what_is_zero_and_stays_has_its_reason():
    def apply(p, x):
        y = jax.nn.relu(convolve(x, p["conv"]) + p["bias"])
        return jnp.sum(convolve(y, p["next"]), axis=(1, 2)) @ p["dense"]

    params = draw(
        {"conv": (3, 3, 1, 4), "bias": (4,), "next": (3, 3, 4, 2), "dense": (2, 3)}
    )
    params["bias"] = np.abs(params["bias"])
    params["conv"][..., 0] = 0
    params["dense"][:, 0] = 0
    x = draw((2, 4, 4, 1))
    small = swapjax.shrink(apply, params, None, x)
    assert "is a constant other than zero" in small.stayed["conv[axis 3]"]
    assert "is an axis of the result" in small.stayed["dense[axis 1]"]
    assert str(small).startswith("nothing to remove\nzeros that stay")
    assert small.apply is apply
    assert shapes(small.params) == shapes(params)


def test_what_cannot_be_followed_stays_and_is_named():
    def apply(p, x):
        y = jnp.abs(jnp.fft.fft(jax.nn.relu(x @ p["a"])))
        return y @ p["b"]

    params = draw({"a": (3, 4), "b": (4, 2)})
    params["b"][1] = 0
    small = swapjax.shrink(apply, params, None, draw((2, 3)))
    assert str(small).startswith("nothing to remove")
    assert "goes through fft, which cannot be followed" in small.stayed["b[axis 0]"]
    assert small.params["b"] is params["b"]


def test_faults_of_arguments_are_named():
    params, x = draw({"a": (3, 4)}), draw((2, 3))
    with pytest.raises(ValueError, match="function must take params"):
        swapjax.shrink("apply", params, None, x)
    with pytest.raises(ValueError, match="tolerance must be a number"):
        swapjax.shrink(lambda p, x: x @ p["a"], params, None, x, tolerance=-1)
    with pytest.raises(TypeError) as caught:
        swapjax.shrink(lambda p, x: x @ p["a"], params)
    assert caught.value.__notes__[-1] == "function was traced with params and 0 inputs"
    params["a"][0, 0] = np.nan
    params["b"] = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="are params finite"):
        swapjax.shrink(lambda p, x: x @ p["a"] @ p["b"], params, None, x)


def test_masks_of_other_params_are_refused():
    params = draw({"a": (3, 4), "b": (4, 2)})
    with pytest.raises(ValueError, match="masks"):
        swapjax.shrink(
            lambda p, x: x @ p["a"] @ p["b"], params, {"a": np.ones((3, 4), bool)},
            jnp.zeros((1, 3)),
        )  # fmt: skip


def test_of_each_axis_one_place_stays():
    params = {"a": np.zeros((3, 4), np.float32), "b": np.zeros((4, 2), np.float32)}
    small = swapjax.shrink(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, None, jnp.ones((1, 3))
    )
    assert shapes(small.params) == {"a": (3, 1), "b": (1, 2)}


def gated(p, x):
    """A residual stream that a gated layer reads and writes."""
    y = x @ p["in"] + p["bias"]
    z = jax.nn.silu(y @ p["gate"]) * (y @ p["up"])
    return (y + z @ p["down"]) @ p["out"]


GATED = {
    "bias": (6,), "down": (8, 6), "gate": (6, 8), "in": (3, 6), "out": (6, 2),
    "up": (6, 8),
}  # fmt: skip


def test_channels_that_are_tied_are_pruned_as_one_and_go():
    params, x = draw(GATED), draw((2, 3))
    ties = swapjax.find_ties(gated, params, x)
    plan = swapjax.plan(
        params, 0.5, pattern=swapjax.Channel(groups=ties), allocation="uniform",
        loss_fn=lambda p, x: jnp.mean(gated(p, x)), batch=x, exclude=["out"],
    )  # fmt: skip
    masks = swapjax.magnitude_masks(params, plan=plan)
    kept = {name: np.asarray(mask).any(axis=0) for name, mask in masks.items()}
    np.testing.assert_array_equal(kept["gate"], kept["up"])
    np.testing.assert_array_equal(kept["in"], kept["down"])
    # By the mean of all that a channel has in the plan.
    entries = {name: np.abs(params[name]) for name in GATED}
    hidden = entries["gate"].sum(0) + entries["up"].sum(0) + entries["down"].sum(1)
    np.testing.assert_array_equal(kept["gate"], hidden >= np.sort(hidden)[4])
    stream = entries["in"].sum(0) + entries["down"].sum(0)
    stream += entries["gate"].sum(1) + entries["up"].sum(1)
    np.testing.assert_array_equal(kept["in"], stream >= np.sort(stream)[3])
    tied = swapjax.tie_masks(ties, masks)
    np.testing.assert_array_equal(tied["bias"], kept["in"])
    small = swapjax.shrink(gated, params, tied, x)
    assert shapes(small.params) == {
        "bias": (3,), "down": (4, 3), "gate": (3, 4), "in": (3, 3), "out": (3, 2),
        "up": (3, 4),
    }  # fmt: skip
    assert set(str(small).splitlines()) == {
        "gate: 4 of 8 units left", "in: 3 of 6 units left"
    }  # fmt: skip


def test_flattened_channels_are_scored_by_the_rows_of_all_their_pixels():
    def apply(p, x):
        return jax.nn.relu(convolve(x, p["conv"])).reshape(len(x), -1) @ p["dense"]

    params, x = draw({"conv": (3, 3, 1, 6), "dense": (24, 2)}), draw((1, 2, 2, 1))
    ties = swapjax.find_ties(apply, params, x)
    plan = swapjax.plan(
        params, 27 / 102, pattern=swapjax.Channel(groups=ties), batch=x,
        loss_fn=lambda p, x: jnp.mean(apply(p, x)), overrides={"dense": 0.0},
    )  # fmt: skip
    masks = swapjax.magnitude_masks(params, plan=plan)
    entries = np.abs(params["conv"]).sum((0, 1, 2))
    entries += np.abs(params["dense"]).reshape(4, 6, 2).sum((0, 2))
    kept = np.asarray(masks["conv"]).any(axis=(0, 1, 2))
    np.testing.assert_array_equal(kept, entries >= np.sort(entries)[3])


def test_channels_of_which_an_axis_has_others_beside_them_go_alike():
    def apply(p, x):
        return jnp.concatenate([jax.nn.relu(x @ p["a"]), x], -1) @ p["b"]

    params, x = draw({"a": (3, 6), "b": (9, 2)}), draw((2, 3))
    ties = swapjax.find_ties(apply, params, x)
    plan = swapjax.plan(
        params, 0.5, pattern=swapjax.Channel(groups=ties), batch=x,
        loss_fn=lambda p, x: jnp.mean(apply(p, x)), exclude=["b"],
    )  # fmt: skip
    masks = swapjax.tie_masks(ties, swapjax.magnitude_masks(params, plan=plan))
    assert shapes(swapjax.shrink(apply, params, masks, x).params) == {
        "a": (3, 3), "b": (6, 2)
    }  # fmt: skip


def test_channels_of_what_is_no_ties_are_refused():
    with pytest.raises(ValueError, match="groups must be what"):
        swapjax.Channel(groups=3)
    with pytest.raises(ValueError, match="ties must be what"):
        swapjax.tie_masks(gated, {})


def test_experts_go_and_their_router_stays():
    def apply(p, x):
        gates = jax.nn.softmax(x @ p["router"])
        y = jax.nn.relu(jnp.einsum("td,edf->tef", x, p["up"]) + p["bias"])
        return jnp.einsum("te,tef,efd->td", gates, y, p["down"])

    params, x = (
        draw({"bias": (4, 6), "down": (4, 6, 3), "router": (3, 4), "up": (4, 3, 6)}),
        draw((5, 3)),
    )
    params["up"][1:3] = params["bias"][1:3] = params["down"][2] = 0
    small = swapjax.shrink(apply, params, None, x)
    assert shapes(small.params) == {
        "bias": (2, 6), "down": (2, 6, 3), "router": (3, 4), "up": (2, 3, 6),
    }  # fmt: skip
    assert small.is_rebuilt
    assert small.error < 1e-5
    more = draw((7, 3))  # other shapes than it was shrunk with
    np.testing.assert_allclose(
        small.apply(small.params, more), apply(params, more), rtol=1e-4, atol=1e-5
    )
    slopes = jax.grad(lambda p: jnp.sum(small.apply(p, x)))(small.params)
    assert shapes(slopes) == shapes(small.params)


def test_a_program_that_is_another_for_other_inputs_is_not_cut_alike():
    def apply(p, x):
        y = (x @ p["a"]).reshape(-1, 4)
        return jax.nn.softmax(y) if len(x) > 2 else y @ jnp.eye(4)[:, :1] @ p["b"]

    params = draw({"a": (3, 4), "b": (1, 2)})
    params["a"][:, 1:] = 0
    x = draw((2, 3))
    small = swapjax.shrink(apply, params, None, x)
    assert small.params["a"].shape == (3, 1)
    assert small.is_rebuilt
    with pytest.raises(ValueError, match="axis 1 of a cannot be removed; shrink"):
        small.apply(small.params, draw((3, 3)))


def fused(p, x):
    """Queries, keys and values of one product, parts of an axis, loops, a table."""
    qkv = x.astype(jnp.bfloat16).astype(jnp.float32) @ p["qkv"] + p["b"]
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, 4, 2), 2, 0)
    y = jnp.einsum(
        "bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), v
    )
    y = y.reshape(*x.shape[:2], 8)[..., ::-1] @ p["out"]
    gate, up = jnp.split(y @ p["wide"], 2, axis=-1)
    strided = jnp.concatenate([gate * up, jnp.zeros((*up.shape[:2], 2))], -1)[..., ::2]
    repeated = jnp.broadcast_to(p["scale"], strided.shape) * strided
    many = jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, repeated)
    )[1]
    either = jax.lax.cond(x[0, 0, 0] > 0, jnp.tanh, lambda y: 2 * y, many)
    return either @ p["last"] + p["table"][jnp.arange(len(x))][:, None] @ p["rows"]


FUSED = {
    "b": (24,), "last": (4, 2), "out": (8, 5), "qkv": (5, 24), "rows": (5, 2),
    "scale": (4,), "table": (9, 5), "wide": (5, 12),
}  # fmt: skip


def test_fused_matrices_parts_loops_and_tables_are_rebuilt():
    params, x = draw(FUSED), draw((2, 3, 5))
    ties = swapjax.find_ties(fused, params, x)
    params = zeroed(params, ties, keep=2)
    small = swapjax.shrink(fused, params, None, x)
    assert small.is_rebuilt
    assert shapes(small.params) == {
        "b": (12,), "last": (3, 2), "out": (4, 2), "qkv": (5, 12), "rows": (2, 2),
        "scale": (3,), "table": (9, 2), "wide": (2, 10),
    }  # fmt: skip
    assert small.error < 1e-5


def test_units_of_a_recurrent_network_go_from_all_its_gates():
    def lstm(p, x):
        def step(carry, x):
            hidden, cell = carry
            z = x @ p["in"] + hidden @ p["again"] + bias
            i, f, g, o = jnp.split(jax.nn.sigmoid(z), 4, axis=-1)
            cell = f * cell + i * g
            return (o * jnp.tanh(cell), cell), None

        start = jnp.zeros((x.shape[1], 6))
        (hidden, _), _ = jax.lax.scan(step, (start, start), x)
        return hidden @ p["out"]

    # What the function closes over becomes smaller, too.
    bias = np.arange(24, dtype=np.float32)
    params = draw({"again": (6, 24), "in": (3, 24), "out": (6, 2)})
    params["again"][2:4] = params["out"][2:4] = 0
    small = swapjax.shrink(lstm, params, None, draw((5, 2, 3)))
    assert shapes(small.params) == {"again": (4, 16), "in": (3, 16), "out": (4, 2)}
    assert small.is_rebuilt
    assert small.error < 1e-5


def test_layers_too_many_to_go_through_lose_units_alike():
    def stack(p, x):
        step = lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1] / 300, None)  # noqa: E731
        return jax.lax.scan(step, x, (p["up"], p["down"]))[0]

    params = draw({"down": (300, 4, 3), "up": (300, 3, 4)})
    params["down"][:, 1] = params["up"][::2, :, 0] = params["up"][1::2, :, 2] = 0
    small = swapjax.shrink(stack, params, None, draw((2, 3)))
    assert small.params["up"].shape == (300, 3, 3)  # what is dead in all of them
    assert small.apply is stack
