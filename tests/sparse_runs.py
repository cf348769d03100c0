"""Runs of sparse training with the small network, every state of which is kept."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
from network import kernels

from swapjax import cubic
from swapjax.training import gmp, masks_of, sparse

KEY = jax.random.key(0)
FINAL = 0.7
STEPS = 12
# A program of these tests runs a few steps; what it takes to make it is what counts.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def initial(dtype="float32", wide=6):
    """The small network before training."""
    return network.make(1, dtype, inputs=wide)


@functools.cache
def batches(dtype="float32", wide=6, steps=STEPS):
    """A batch of eight examples for each step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, 8, wide))
    y = rng.normal(size=(steps, 8, 2))
    # On the host, since the first to ask may be a function that is being traced.
    return list(
        zip(x.astype(jnp.dtype(dtype)), y.astype(jnp.dtype(dtype)), strict=True)
    )


def gradients(steps=STEPS, seed=7, wide=6):
    """Known gradients, one tree a step, unlike each other and zero nowhere."""
    rng = np.random.default_rng(seed)
    like = initial(wide=wide)
    return [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), like)
        for _ in range(steps)
    ]


def brief(rule=None, **options):
    """Half of the weights gone in four steps of Adam."""
    goal = {} if "plan" in options else {"sparsity": 0.5}
    settings = {**goal, "schedule": cubic(1, 3, initial=0.3), "steps": 4, "key": KEY}
    return sparse(optax.adam(0.01), rule or gmp(), **(settings | options))


def by_loss(tx, **options):
    """A jitted step along the gradient of the loss of a batch."""

    @functools.partial(jax.jit, **options)
    def step(params, state, batch):
        updates, state = tx.update(
            jax.grad(network.loss_fn)(params, batch), state, params
        )
        return optax.apply_updates(params, updates), state

    return step


def by_gradients(tx, **options):
    """A jitted step along given gradients."""

    @functools.partial(jax.jit, **options)
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def follow(step, params, state, inputs):
    """Params and states after 0, 1, ... updates."""
    trail = [(params, state)]
    for given in inputs:
        trail.append(step(*trail[-1], given))
    return trail


def counts(state):
    """How many entries the masks of the two kernels keep."""
    return [int(m.sum()) for m in kernels(masks_of(state))]


class OneOf(NamedTuple):
    index: jax.Array
    states: tuple[Any, ...]


def one_of(optimizers):
    """An optimizer that is one of several by a number in its state.

    A step compiles once a rule then, not once a rule and optimizer.
    """

    def init(params):
        return OneOf(
            jnp.zeros((), jnp.int32), tuple(o.init(params) for o in optimizers)
        )

    def update(gradients, state, params):
        def branch(i):
            def run():
                states = list(state.states)
                updates, states[i] = optimizers[i].update(gradients, states[i], params)
                return updates, OneOf(state.index, tuple(states))

            return run

        every = [branch(i) for i in range(len(optimizers))]
        return jax.lax.switch(state.index, every)

    return optax.GradientTransformation(init, update)


def choose(state, index):
    """The state with another of the optimizers chosen."""
    return state._replace(inner=state.inner._replace(index=jnp.int32(index)))
