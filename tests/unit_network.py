"""A network of an attention, a mixture of experts and a convolution."""

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import Block, Channel, Expert, Head

WIDTH, HEADS, DIM, EXPERTS = 6, 2, 3, 4
AXES = {
    "attn/(query|key|value)": ("input", "output", "output"),
    "attn/out": ("input", "input", "output"),
    "moe/router": ("input", "output"),
    "moe/w_": ("expert", "input", "output"),
    "conv/kernel": ("input", "input", "output"),
}
# Of each pattern, the leaves that it prunes.
PATTERNS = {
    Head(): "attn",
    Channel(): ".",
    Expert(): "moe/w_",
    Block(1, 3): "attn/query|conv",
}


def params(seed=0):
    """The leaves, on the host."""
    rng = np.random.default_rng(seed)
    shapes = {
        "attn": {
            "key": (WIDTH, HEADS, DIM),
            "out": (HEADS, DIM, WIDTH),
            "query": (WIDTH, HEADS, DIM),
            "value": (WIDTH, HEADS, DIM),
        },
        "conv": {"kernel": (3, WIDTH, 6)},
        "moe": {
            "router": (WIDTH, EXPERTS),
            "w_in": (EXPERTS, WIDTH, 5),
            "w_out": (EXPERTS, 5, WIDTH),
        },
    }
    make = lambda shape: rng.normal(size=shape).astype("f4") / 2  # noqa: E731
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


def apply(params, x):
    """Outputs [batch, time, 6] of inputs [batch, time, 6]."""
    attn, moe = params["attn"], params["moe"]
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", x, attn[name]) for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    read = jnp.einsum("bhts,bshk->bthk", weights, v)
    x = x + jnp.einsum("bthk,hkd->btd", read, attn["out"])
    gate = jax.nn.softmax(x @ moe["router"])
    to = jnp.einsum("btd,bte->ebtd", x, gate)
    hidden = jax.nn.relu(jnp.einsum("ebtd,edf->ebtf", to, moe["w_in"]))
    x = x + jnp.einsum("ebtf,efd->ebtd", hidden, moe["w_out"]).sum(0)
    return jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(apply(params, x) - y))


def data(n=12):
    x = np.random.default_rng(5).normal(size=(n, 4, WIDTH)).astype("f4")
    return x, np.asarray(apply(params(1), x))


def require_whole(units, leaves):
    """Assert that masks have all of a unit, or nothing."""
    for mask, whole in zip(leaves, units.expand(units.touched(leaves)), strict=True):
        np.testing.assert_array_equal(mask, whole)
