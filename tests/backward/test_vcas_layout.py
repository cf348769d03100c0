"""What VCAS samples and what it costs, of losses of which one can see it."""

import jax
import jax.numpy as jnp
import pytest

from swapjax import backward
from swapjax.backward.shared import trace_loss
from swapjax.backward.vcas_layout import layout_of
from swapjax.core.objective import as_objective


def layout(loss_fn, shapes, x):
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    data = ((), jax.ShapeDtypeStruct(x, jnp.float32), jax.random.key(0))
    return params, layout_of(trace_loss(as_objective(loss_fn), params, data), params, 2)


def share(found, **kept):
    """What is left, if these shares of examples and rows are kept."""
    told = {name: jnp.array([*both, 0, 0]) for name, both in kept.items()}
    return float(found.left(told))


def test_groups_of_channels_take_the_share_of_the_examples():
    def convolved(x, kernel, groups=1):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    def loss_fn(params, x):
        x = jax.nn.relu(convolved(x, params["first"]))
        x = jax.nn.relu(convolved(x, params["depth"], 8))
        x = jax.nn.relu(convolved(x, params["pairs"], 4))
        return jnp.mean(x.mean((1, 2)) @ params["out"])

    shapes = {
        "first": (3, 3, 3, 8), "depth": (3, 3, 1, 8), "pairs": (3, 3, 2, 8),
        "out": (8, 5),
    }  # fmt: skip
    params, found = layout(loss_fn, shapes, (2, 6, 6, 3))
    assert [site.name for site in found.products] == ["first", "out"]
    # All that find_layers counts, which counts all products of weights.
    macs = {
        layer.name: layer.backward_macs
        for layer in backward.find_layers(
            loss_fn, params, jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
        )
    }
    assert sum(map(sum, found.costs.values())) == sum(macs.values())
    done = 0.5 * (macs["depth"] + macs["pairs"] + macs["out"] * (0.5 + 0.5 * 0.1))
    assert share(found, first=(0.0, 1.0), out=(0.5, 0.1)) == pytest.approx(
        done / sum(macs.values())
    )


def test_products_behind_all_weights_are_done_in_full():
    def loss_fn(params, x):
        hidden = x @ params["in"]
        return jnp.mean(hidden @ hidden.T)

    _, found = layout(loss_fn, {"in": (3, 4)}, (2, 3))
    weight, alike = 2 * 3 * 4, 2 * (2 * 2 * 4)  # by either side
    assert share(found, **{"in": (0.5, 1.0)}) == pytest.approx(
        (alike + 0.5 * weight) / (alike + weight)
    )


def test_slices_of_a_stack_are_told_from_a_square_that_all_steps_have():
    def loss_fn(params, x):
        def step(x, weights):
            x = jnp.tanh(x @ params["all"]) @ weights["each"].astype(x.dtype)
            return x @ weights["turned"], None

        xs = {
            "each": params["each"],
            "turned": params["turned"].T[:, None] * jnp.eye(4),
        }
        return jnp.mean(jax.lax.scan(step, x @ params["in"], xs)[0])

    shapes = {"in": (4, 4), "all": (4, 4), "each": (4, 4, 4), "turned": (4, 4)}
    _, found = layout(loss_fn, shapes, (2, 4))
    levels = {site.name: site.levels for site in found.products}
    assert levels == {"in": (), "all": (4,), "each": (4,), "turned": (4,)}
    assert found.sliced == {"in", "each"}
