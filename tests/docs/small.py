"""What the pages of methods and rules speak of, small."""

import types

import jax
import jax.numpy as jnp
import optax

import swapjax

KEY = jax.random.key(0)
# Layers of one size share programs.
SHAPES = {"fc1": (8, 8), "fc2": (8, 8), "fc3": (8, 8)}


def apply(params, x):
    for name in SHAPES:
        x = jax.nn.relu(x @ params[name]["kernel"])
    return x


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(apply(params, x) - y))


def prune(*args, samples=24, batch=1, stages=1, **kwargs):
    """Prune from few rows, in few stages."""
    del samples, batch
    return swapjax.prune(*args, samples=24, stages=min(stages, 2), **kwargs)


def finetune(optimizer, steps, batch=64):
    """Train for a few steps."""
    return swapjax.FineTune(optimizer, min(steps, 4), batch)


def names():
    """The names that the pages take for granted."""
    params = {
        name: {"kernel": jax.random.normal(jax.random.fold_in(KEY, i), shape) / 3}
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    x = jax.random.normal(KEY, (96, 8))
    data = x, jax.nn.relu(x)
    return {
        "swapjax": types.SimpleNamespace(
            **{
                **{name: getattr(swapjax, name) for name in swapjax.__all__},
                "prune": prune,
                "FineTune": finetune,
            }
        ),
        "jax": jax,
        "optax": optax,
        "params": params,
        "loss_fn": loss_fn,
        "data": data,
        "key": KEY,
        "optimizer": optax.sgd(0.1, momentum=0.9),
        "masks": swapjax.magnitude_masks(params, 0.9),
        "apply": apply,
        "shape": (8,),
        "train": lambda params, masks, key: swapjax.apply_masks(params, masks),
        "params_1": params,
        "params_4": params,
        "accuracy": lambda params: -float(loss_fn(params, data)),
        "loss_of_all": lambda params: loss_fn(params, data),
    }
