"""Modules of Linen, nnx, Equinox and Haiku, as trees of shapes."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

KEY = jax.random.key(0)
SEQUENCE = jnp.zeros((2, 5, 8))
IMAGE = jnp.zeros((2, 6, 6, 4))


def linen(module, *inputs):
    return jax.eval_shape(module.init, KEY, *inputs)["params"]


def of_nnx(make):
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return nnx.state(module, nnx.Param)


def equinox(make):
    module = eqx.filter_eval_shape(make, KEY)
    return eqx.filter(module, lambda x: isinstance(x, jax.ShapeDtypeStruct))


def haiku(apply, *inputs):
    return jax.eval_shape(hk.transform(apply).init, KEY, *inputs)
