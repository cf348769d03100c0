"""Convolutions: with groups, depthwise, transposed and scanned, in each framework."""

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
    at,
    fill,
    numbers,
    squared,
    stacked,
    under,
)
from networks.transformers import KEY, module

from swapjax.roles.role import matrix

PIXELS, COLOURS, OUTPUTS = 6, 4, 3

HWIO = functools.partial(matrix, "input", "input", "input", "output", pixels=(0, 1))
OIHW = functools.partial(matrix, "output", "input", "input", "input", pixels=(2, 3))


def _data(first=False):
    """Images with channels last, or first, and targets."""
    x = numbers(PIXELS, PIXELS, COLOURS)
    return (jnp.moveaxis(x, -1, 1) if first else x), x[:, 0, 0, :OUTPUTS]


class LinenConvolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (3, 3), name="plain")(x))
        x = nn.relu(nn.Conv(8, (2, 3), feature_group_count=4, name="grouped_conv")(x))
        x = nn.Conv(8, (3, 2), feature_group_count=8, strides=2, name="depthwise_conv")(
            x
        )
        x = nn.relu(nn.GroupNorm(2, name="norm")(x))
        x = nn.ConvTranspose(5, (2, 2), strides=(2, 2), name="transposed")(x)
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(OUTPUTS, name="head")(x)


def _linen(model):
    data = _data()
    params = fill(jax.eval_shape(model.init, KEY, data[0]))["params"]
    return Setup(
        params, lambda p, b: squared(model.apply({"params": p}, b[0]), b[1]), data
    )


class NnxConvolutions(nnx.Module):
    def __init__(self, rngs):
        self.plain = nnx.Conv(COLOURS, 12, (3, 3), rngs=rngs)
        self.grouped_conv = nnx.Conv(12, 8, (2, 3), feature_group_count=4, rngs=rngs)
        self.depthwise_conv = nnx.Conv(
            8, 8, (3, 2), strides=2, feature_group_count=8, rngs=rngs
        )
        self.norm = nnx.GroupNorm(8, 2, rngs=rngs)
        self.transposed = nnx.ConvTranspose(8, 5, (2, 2), strides=(2, 2), rngs=rngs)
        self.head = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.grouped_conv(nnx.relu(self.plain(x))))
        x = self.transposed(nnx.relu(self.norm(self.depthwise_conv(x))))
        return self.head(nnx.relu(x).mean((1, 2)))


def _nnx():
    model = nnx.eval_shape(lambda: NnxConvolutions(nnx.Rngs(0)))
    graph, params, _ = nnx.split(model, nnx.Param, ...)

    def loss(params, batch):
        return squared(nnx.merge(graph, params)(batch[0]), batch[1])

    return Setup(fill(nnx.as_pure(params)), loss, _data())


class EqxConvolutions(eqx.Module):
    plain: eqx.nn.Conv2d
    grouped: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    transposed: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self, key):
        self.plain = eqx.nn.Conv2d(COLOURS, 12, 3, padding=1, key=key)
        self.grouped = eqx.nn.Conv2d(12, 8, (2, 3), groups=4, key=key)
        self.depthwise = eqx.nn.Conv2d(8, 8, (3, 2), 2, groups=8, key=key)
        self.norm = eqx.nn.GroupNorm(2, 8)
        self.transposed = eqx.nn.ConvTranspose2d(8, 5, (2, 3), 2, key=key)
        self.head = eqx.nn.Linear(5, OUTPUTS, key=key)

    def __call__(self, x):
        relu = jax.nn.relu
        x = relu(self.norm(self.depthwise(relu(self.grouped(relu(self.plain(x)))))))
        return self.head(relu(self.transposed(x)).mean((1, 2)))


def _eqx():
    def loss(model, batch):
        return squared(jax.vmap(model)(batch[0]), batch[1])

    return module(EqxConvolutions, _data(first=True), loss)


def _hk():
    data = _data()

    def forward(x):
        x = jax.nn.relu(hk.Conv2D(12, 3)(x))
        x = hk.Conv2D(8, (2, 3), feature_group_count=2)(x)
        x = hk.DepthwiseConv2D(1, (3, 2), 2)(jax.nn.relu(x))
        x = jax.nn.relu(hk.GroupNorm(2, name="norm")(x))
        x = hk.Conv2DTranspose(5, 2, 2)(x)
        return hk.Linear(OUTPUTS, name="head")(jax.nn.relu(x).mean((1, 2)))

    network = hk.without_apply_rng(hk.transform(forward))
    params = fill(jax.eval_shape(network.init, KEY, data[0]))
    return Setup(params, lambda p, b: squared(network.apply(p, b[0]), b[1]), data)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depth")(h)
        x = nn.relu(nn.LayerNorm(name="norm")(x))
        return h + nn.Conv(8, (1, 1), name="point")(x), None


class LinenScanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            LinenBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        h = nn.Conv(8, (2, 2), strides=2, name="stem")(x)
        h, _ = blocks(name="blocks")(h, None)
        return nn.Dense(OUTPUTS, name="head")(h.mean((1, 2)))


def _linen_loop(params, batch):
    h = nn.Conv(8, (2, 2), strides=2).apply({"params": params["stem"]}, batch[0])
    for block in params["blocks"]:
        h, _ = LinenBlock().apply({"params": block}, h, None)
    head = params["head"]
    return squared(h.mean((1, 2)) @ head["kernel"] + head["bias"], batch[1])


def _torch():
    """A flat dict with PyTorch's names; the transposed kernel is [in, out, h, w]."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    shapes = {
        "bn.bias": shape(12), "bn.running_mean": shape(12),
        "bn.running_var": shape(12), "bn.weight": shape(12),
        "conv1.weight": shape(12, COLOURS, 3, 3), "conv2.bias": shape(9),
        "conv2.weight": shape(9, 4, 2, 2), "fc.bias": shape(OUTPUTS),
        "fc.weight": shape(OUTPUTS, 5), "up.weight": shape(9, 5, 2, 2),
    }  # fmt: skip

    def convolve(x, w, **options):
        order = options.pop("order", "OIHW")
        return jax.lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            [(1, 1)] * 2,
            dimension_numbers=("NCHW", order, "NCHW"),
            **options,
        )

    def loss(p, batch):
        wide = lambda name: p[name][:, None, None]  # noqa: E731
        x = convolve(batch[0], p["conv1.weight"]) - wide("bn.running_mean")
        x = x / jnp.sqrt(1e-5 + jnp.square(wide("bn.running_var")))
        x = jax.nn.relu(x * wide("bn.weight") + wide("bn.bias"))
        x = convolve(x, p["conv2.weight"], feature_group_count=3)
        up = jnp.flip(p["up.weight"], (2, 3))
        x = jax.nn.relu(x + wide("conv2.bias"))
        x = convolve(x, up, order="IOHW", lhs_dilation=(2, 2)).mean((2, 3))
        return squared(x @ p["fc.weight"].T + p["fc.bias"], batch[1])

    return Setup(fill(shapes), loss, _data(first=True))


def _flax_roles():
    return under("norm", {"bias": VECTOR, "scale": VECTOR}) | {
        "plain/kernel": HWIO(), "plain/bias": VECTOR,
        "grouped_conv/kernel": HWIO(groups=4),
        "grouped_conv/bias": VECTOR, "depthwise_conv/kernel": HWIO(groups=8),
        "depthwise_conv/bias": VECTOR, "transposed/kernel": HWIO(),
        "transposed/bias": VECTOR, "head/kernel": DENSE, "head/bias": VECTOR,
    }  # fmt: skip


ROWS = (
    Network(
        "linen convolutions",
        functools.partial(_linen, LinenConvolutions()),
        _flax_roles(),
    ),
    Network("nnx convolutions", _nnx, _flax_roles()),
    Network(
        "equinox convolutions",
        _eqx,
        under("norm", {"bias": VECTOR, "weight": VECTOR})
        | {f"{name}/bias": VECTOR for name in ("plain", "grouped", "depthwise",
                                               "transposed", "head")}
        | {"plain/weight": OIHW(), "grouped/weight": OIHW(groups=4),
           "depthwise/weight": OIHW(groups=8), "transposed/weight": OIHW(),
           "head/weight": TORCH},
    ),
    Network(
        "haiku convolutions",
        _hk,
        under("norm", {"offset": VECTOR, "scale": VECTOR})
        | {f"{name}/b": VECTOR for name in ("conv2_d", "conv2_d_1", "head",
                                            "depthwise_conv2_d", "conv2_d_transpose")}
        | {"conv2_d/w": HWIO(), "conv2_d_1/w": HWIO(groups=2), "head/w": DENSE,
           "depthwise_conv2_d/w": HWIO(groups=8),
           "conv2_d_transpose/w": matrix("input", "input", "output", "input",
                                         pixels=(0, 1))},
    ),
    Network(
        "linen convolutions, scanned",
        functools.partial(_linen, LinenScanned()),
        {"stem/kernel": HWIO(), "stem/bias": VECTOR, "head/kernel": DENSE,
         "head/bias": VECTOR}
        | under("blocks", stacked({
            "depth/kernel": HWIO(groups=8), "norm/bias": VECTOR, "norm/scale": VECTOR,
            "point/kernel": HWIO(), "point/bias": VECTOR})),
        (at("blocks"),),
        loop=_linen_loop,
    ),
    Network(
        "pytorch convolutions",
        _torch,
        {"bn.bias": VECTOR, "bn.running_mean": VECTOR, "bn.running_var": VECTOR,
         "bn.weight": VECTOR, "conv1.weight": OIHW(), "conv2.bias": VECTOR,
         "conv2.weight": OIHW(groups=3), "fc.bias": VECTOR, "fc.weight": TORCH,
         "up.weight": matrix("input", "output", "input", "input", pixels=(2, 3))},
        # No name tells a transposed kernel.
        named={"up.weight": OIHW()},
    ),
)  # fmt: skip
