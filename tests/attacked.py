"""A small network that tells three to six classes of points apart, and is trained."""

import functools

import jax
import jax.numpy as jnp
import network
import optax

from swapjax.robust import cross_entropy

CLASSES = 5


def batch(n, seed=0):
    """Points in [0, 1]^6 around one place a class, and the classes."""
    places = jax.random.uniform(
        jax.random.key(42), (CLASSES, 6), minval=0.2, maxval=0.8
    )
    first, second = jax.random.split(jax.random.key(seed))
    labels = jax.random.randint(first, (n,), 0, CLASSES)
    noise = 0.1 * jax.random.normal(second, (n, 6))
    return jnp.clip(places[labels] + noise, 0, 1), labels


@functools.cache
def trained():
    """Its params."""
    params = network.make(inputs=6, hidden=24, outputs=CLASSES)
    images, labels = batch(256, seed=1)
    tx = optax.adam(0.03)

    def loss(params):
        return jnp.mean(cross_entropy(network.apply(params, images), labels))

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda p: jax.lax.fori_loop(0, 200, step, (p, tx.init(p)))[0])(
        params
    )
