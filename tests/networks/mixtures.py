"""Mixtures of experts: all experts on all tokens, with capacities, scanned, ragged."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from networks.row import (
    DENSE,
    VECTOR,
    Network,
    Setup,
    at,
    fill,
    numbers,
    squared,
    stacked,
    under,
)
from networks.transformers import KEY

from swapjax.roles.role import matrix

EXPERTS, WIDTH, HIDDEN, LENGTH, LAYERS = 3, 8, 12, 5, 2
CAPACITY = 4

EXPERT = matrix("expert", "input", "output")
ROLES = {"experts/down": EXPERT, "experts/up": EXPERT, "router": DENSE}


def _dense(p, h):
    """Every expert sees every token; the gates weigh them."""
    gates = jax.nn.softmax(h @ p["router"])
    x = jax.nn.relu(jnp.einsum("btd,edh->beth", h, p["experts"]["up"]))
    x = jnp.einsum("beth,ehd->betd", x, p["experts"]["down"])
    return h + jnp.einsum("betd,bte->btd", x, gates)


def _routes(p, h):
    """Each token's best expert, its gate, and where among the expert's tokens it is."""
    gates = jax.nn.softmax(h @ p["router"])
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), EXPERTS, dtype=jnp.int32)
    place = jnp.cumsum(chosen, 1) * chosen - 1
    send = chosen[..., None] * jax.nn.one_hot(place, CAPACITY)
    return send, jnp.sum(gates * chosen, -1)


def _top1(p, h):
    """Each token goes to its best expert, as long as that has room."""
    send, gate = _routes(p, h)
    x = jnp.einsum("btec,btd->becd", send, h)
    x = jax.nn.relu(jnp.einsum("becd,edh->bech", x, p["experts"]["up"]))
    x = jnp.einsum("bech,ehd->becd", x, p["experts"]["down"])
    return h + jnp.einsum("becd,btec->btd", x, send) * gate[..., None]


def _top1_loop(p, h):
    """The same with experts of their own leaves, one by one."""
    send, gate = _routes(p, h)
    x = jnp.einsum("btec,btd->becd", send, h)
    x = [jax.nn.relu(x[:, i] @ e["up"]) @ e["down"] for i, e in enumerate(p["experts"])]
    return h + jnp.einsum("becd,btec->btd", jnp.stack(x, 1), send) * gate[..., None]


def _vmapped(p, h):
    """The experts as a function that is mapped over them."""
    expert = lambda e: jax.nn.relu(h @ e["up"]) @ e["down"]  # noqa: E731
    x = jax.vmap(expert)(p["experts"])
    return h + jnp.einsum("ebtd,bte->btd", x, jax.nn.softmax(h @ p["router"]))


def _shapes(lead=()):
    shape = lambda *sizes: jax.ShapeDtypeStruct((*lead, *sizes), jnp.float32)  # noqa: E731
    return {
        "experts": {
            "down": shape(EXPERTS, HIDDEN, WIDTH),
            "up": shape(EXPERTS, WIDTH, HIDDEN),
        },
        "router": shape(WIDTH, EXPERTS),
    }


def _loss(run, params, x):
    return squared(run(params, x), x[..., ::-1])


def _plain(run):
    return Setup(fill(_shapes()), functools.partial(_loss, run), numbers(LENGTH, WIDTH))


def _scan(params, h):
    return jax.lax.scan(lambda h, p: (_top1(p, h), None), h, params["blocks"])[0]


def _scan_loop(params, h):
    return functools.reduce(lambda h, p: _top1_loop(p, h), params["blocks"], h)


def _scanned():
    params = fill({"blocks": _shapes((LAYERS,))})
    return Setup(params, functools.partial(_loss, _scan), numbers(LENGTH, WIDTH))


class LinenMixture(nn.Module):
    """Experts that nn.vmap makes, each a network of its own."""

    @nn.compact
    def __call__(self, h):
        expert = nn.vmap(
            LinenExpert, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=None, out_axes=-2, axis_size=EXPERTS,
        )  # fmt: skip
        gates = nn.softmax(nn.Dense(EXPERTS, name="router")(h))
        return h + jnp.sum(expert(name="experts")(h) * gates[..., None], -2)


class LinenExpert(nn.Module):
    @nn.compact
    def __call__(self, h):
        return nn.Dense(WIDTH, name="down")(nn.relu(nn.Dense(HIDDEN, name="up")(h)))


def _linen():
    model, x = LinenMixture(), numbers(LENGTH, WIDTH)
    params = fill(jax.eval_shape(model.init, KEY, x))["params"]
    apply = lambda p, x: model.apply({"params": p}, x)  # noqa: E731
    return Setup(params, functools.partial(_loss, apply), x)


def _experts(axis="expert"):
    bias, kernel = VECTOR, matrix(axis, "input", "output")
    return {
        "down/bias": bias,
        "down/kernel": kernel,
        "up/bias": bias,
        "up/kernel": kernel,
    }


ROWS = (
    Network(
        "mixture, all experts",
        functools.partial(_plain, _dense),
        ROLES,
        (at("experts"),),
        named=None,
    ),
    Network(
        "mixture, best expert",
        functools.partial(_plain, _top1),
        ROLES,
        (at("experts"),),
        loop=functools.partial(_loss, _top1_loop),
        named=None,
    ),
    Network(
        "mixture, vmapped",
        functools.partial(_plain, _vmapped),
        ROLES,
        (at("experts"),),
        named=None,
    ),
    Network(
        "mixture, scanned",
        _scanned,
        under("blocks", stacked(ROLES)),
        (at("blocks"), *(at("blocks", i, "experts") for i in range(LAYERS))),
        loop=functools.partial(_loss, _scan_loop),
        named=None,
    ),
    Network(
        "linen mixture, vmapped",
        _linen,
        under("experts", _experts()) | {"router/kernel": DENSE, "router/bias": VECTOR},
        (at("experts"),),
    ),
)
