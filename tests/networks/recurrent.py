"""Recurrent networks: GRU and LSTM in Linen, nnx, Equinox, Haiku and plain JAX."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from networks.row import (
    DENSE,
    TORCH,
    VECTOR,
    Network,
    Setup,
    Stack,
    at,
    fill,
    numbers,
    squared,
    stacked,
    under,
)
from networks.transformers import KEY, blank, module

STEPS, INPUTS, STATE, OUTPUTS = 5, 8, 12, 2

GATED = ("hr", "hz", "hn", "ir", "iz", "in")
FREE = ("hn", "ir", "iz", "in")  # those with biases
LSTM = tuple(f"{side}{gate}" for side in "hi" for gate in "fgio")
LINEN_HEAD = {"head/kernel": DENSE, "head/bias": VECTOR}


def _data():
    x = numbers(STEPS, INPUTS)
    return x, x[:, 0, :OUTPUTS]


class LinenRecurrent(nn.Module):
    cell: nn.RNNCellBase
    bidirectional: bool = False

    @nn.compact
    def __call__(self, x):
        rnn = nn.RNN(self.cell, name="rnn")
        if self.bidirectional:
            back = nn.RNN(self.cell.clone(), name="back")
            both = nn.Bidirectional(rnn, back)(x)
            return nn.Dense(OUTPUTS, name="head")(both.mean(1))
        return nn.Dense(OUTPUTS, name="head")(rnn(x)[:, -1])


def _linen(model):
    x, y = _data()
    params = fill(jax.eval_shape(model.init, KEY, x))["params"]
    return Setup(
        params, lambda p, b: squared(model.apply({"params": p}, b[0]), b[1]), (x, y)
    )


def _linen_row(name, cell, kernels, biases):
    roles = {f"cell/{k}/kernel": DENSE for k in kernels}
    roles |= {f"cell/{k}/bias": VECTOR for k in biases}
    model = LinenRecurrent(cell(STATE))
    return Network(name, functools.partial(_linen, model), roles | LINEN_HEAD)


class NnxRecurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(INPUTS, STATE, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(STATE, OUTPUTS, rngs=rngs)

    def __call__(self, x):
        h = jnp.zeros((x.shape[0], STATE))
        first = h if isinstance(self.rnn.cell, nnx.GRUCell) else (h, h)
        return self.head(self.rnn(x, initial_carry=first)[:, -1])


def _nnx(cell):
    model = nnx.eval_shape(lambda: NnxRecurrent(cell, nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rest = blank(rest)

    def loss(params, batch):
        return squared(nnx.merge(graph, params, rest)(batch[0]), batch[1])

    return Setup(fill(nnx.as_pure(params)), loss, _data())


class EqxRecurrent(eqx.Module):
    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, cell, key):
        self.cell = cell(INPUTS, STATE, key=key)
        self.head = eqx.nn.Linear(STATE, OUTPUTS, key=key)

    def __call__(self, x):
        h = jnp.zeros(STATE)
        if isinstance(self.cell, eqx.nn.LSTMCell):
            (h, _), _ = jax.lax.scan(lambda c, x: (self.cell(x, c), None), (h, h), x)
        else:
            h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), h, x)
        return self.head(h)


class EqxDeep(eqx.Module):
    """Cells above each other, scanned over the layers and each over its steps."""

    cells: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        make = lambda key: eqx.nn.GRUCell(INPUTS, INPUTS, key=key)  # noqa: E731
        self.cells = eqx.filter_vmap(make)(jax.random.split(key, 3))
        self.head = eqx.nn.Linear(INPUTS, OUTPUTS, key=key)

    def __call__(self, x):
        arrays, rest = eqx.partition(self.cells, eqx.is_array)

        def layer(x, p):
            cell = eqx.combine(p, rest)
            step = lambda h, x: (cell(x, h),) * 2  # noqa: E731
            return jax.lax.scan(step, jnp.zeros(INPUTS), x)[1], None

        return self.head(jax.lax.scan(layer, x, arrays)[0][-1])


def _eqx_loss(model, batch):
    return squared(jax.vmap(model)(batch[0]), batch[1])


def _eqx(make):
    return module(make, _data(), _eqx_loss)


EQX_CELL = {"weight_ih": TORCH, "weight_hh": TORCH, "bias": VECTOR}
EQX_GRU = {**EQX_CELL, "bias_n": VECTOR}
EQX_HEAD = {"head/weight": TORCH, "head/bias": VECTOR}


def _hk(cell):
    x, y = _data()

    def forward(x):
        core = cell(STATE)
        steps, _ = hk.dynamic_unroll(
            core, x, core.initial_state(x.shape[0]), time_major=False
        )
        return hk.Linear(OUTPUTS, name="head")(steps[:, -1])

    network = hk.without_apply_rng(hk.transform(forward))
    params = fill(jax.eval_shape(network.init, KEY, x))
    return Setup(params, lambda p, b: squared(network.apply(p, b[0]), b[1]), (x, y))


HK_HEAD = {"head/w": DENSE, "head/b": VECTOR}


def _gru(p, h, x):
    """The gates from one product with the input and one with the state."""
    ir, iz, n = jnp.split(x @ p["w_ih"] + p["b"], 3, -1)
    hr, hz, m = jnp.split(h @ p["w_hh"], 3, -1)
    z = jax.nn.sigmoid(iz + hz)
    return (1 - z) * jnp.tanh(n + jax.nn.sigmoid(ir + hr) * m) + z * h


def _plain_gru(params, batch):
    x, y = batch
    step = lambda h, x: (_gru(params["gru"], h, x), None)  # noqa: E731
    h = jnp.zeros((x.shape[0], STATE))
    h, _ = jax.lax.scan(step, h, jnp.swapaxes(x, 0, 1))
    return squared(h @ params["head"], y)


def _lstm(p, state, x):
    """All gates from one product with the input and the state side by side."""
    h, c = state
    i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _deep(run, params, batch):
    x, y = batch

    def layer(x, p):
        first = (jnp.zeros((x.shape[1], INPUTS)),) * 2
        step = lambda state, x: (_lstm(p, state, x),) * 2  # noqa: E731
        return jax.lax.scan(step, first, x)[1][0], None

    return squared(
        run(layer, jnp.swapaxes(x, 0, 1), params["lstm"])[-1] @ params["head"], y
    )


def _over_layers(layer, x, stack):
    return jax.lax.scan(layer, x, stack)[0]


def _one_by_one(layer, x, layers):
    return functools.reduce(lambda x, p: layer(x, p)[0], layers, x)


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _plain_gru_setup():
    gru = {
        "b": _shape(3 * STATE),
        "w_hh": _shape(STATE, 3 * STATE),
        "w_ih": _shape(INPUTS, 3 * STATE),
    }
    params = fill({"gru": gru, "head": _shape(STATE, OUTPUTS)})
    return Setup(params, _plain_gru, _data())


def _deep_setup():
    lstm = {"b": _shape(3, 4 * INPUTS), "w": _shape(3, 2 * INPUTS, 4 * INPUTS)}
    params = fill({"head": _shape(INPUTS, OUTPUTS), "lstm": lstm})
    return Setup(params, functools.partial(_deep, _over_layers), _data())


ROWS = (
    _linen_row("linen gru", nn.GRUCell, GATED, FREE),
    _linen_row("linen lstm", nn.OptimizedLSTMCell, LSTM, LSTM[:4]),
    Network(
        "linen gru, both ways",
        functools.partial(_linen, LinenRecurrent(nn.GRUCell(STATE), True)),
        LINEN_HEAD
        | {f"{way}cell/{k}/kernel": DENSE for way in ("", "back/") for k in GATED}
        | {f"{way}cell/{k}/bias": VECTOR for way in ("", "back/") for k in FREE},
    ),
    Network(
        "nnx gru",
        functools.partial(_nnx, nnx.GRUCell),
        LINEN_HEAD
        | under(
            "rnn/cell",
            {"dense_h/kernel": DENSE, "dense_i/kernel": DENSE, "dense_i/bias": VECTOR},
        ),
    ),
    Network(
        "nnx lstm",
        functools.partial(_nnx, nnx.LSTMCell),
        LINEN_HEAD
        | {f"rnn/cell/{'if_' if k == 'if' else k}/kernel": DENSE for k in LSTM}
        | {f"rnn/cell/{k}/bias": VECTOR for k in LSTM[:4]},
    ),
    Network(
        "equinox gru",
        functools.partial(_eqx, functools.partial(EqxRecurrent, eqx.nn.GRUCell)),
        EQX_HEAD | under("cell", EQX_GRU),
    ),
    Network(
        "equinox lstm",
        functools.partial(_eqx, functools.partial(EqxRecurrent, eqx.nn.LSTMCell)),
        EQX_HEAD | under("cell", EQX_CELL),
    ),
    Network(
        "equinox grus in layers",
        functools.partial(_eqx, EqxDeep),
        EQX_HEAD | under("cells", stacked(EQX_GRU)),
        (
            Stack(
                lambda tree: tree.cells,
                lambda tree, value: eqx.tree_at(lambda t: t.cells, tree, value),
            ),
        ),
    ),
    Network(
        "haiku gru",
        functools.partial(_hk, hk.GRU),
        HK_HEAD | {"gru/w_i": DENSE, "gru/w_h": DENSE, "gru/b": VECTOR},
    ),
    Network(
        "haiku lstm",
        functools.partial(_hk, hk.LSTM),
        HK_HEAD | {"lstm/linear/w": DENSE, "lstm/linear/b": VECTOR},
    ),
    Network(
        "plain gru",
        _plain_gru_setup,
        {"gru/b": VECTOR, "gru/w_hh": DENSE, "gru/w_ih": DENSE, "head": DENSE},
        named=None,
    ),
    Network(
        "plain lstms in layers",
        _deep_setup,
        {"head": DENSE} | under("lstm", stacked({"b": VECTOR, "w": DENSE})),
        (at("lstm"),),
        loop=functools.partial(_deep, _one_by_one),
        named=None,
    ),
)
