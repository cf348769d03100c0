"""A small network in a loop, for tests of ways back: two residual blocks."""

import jax
import jax.numpy as jnp
import optax


def loss_fn(params, batch):
    """Two residual blocks in a loop between two layers."""
    x, y = batch

    def block(x, weight):
        return x + jnp.tanh(x @ weight), None

    x, _ = jax.lax.scan(jax.checkpoint(block), x @ params["in"], params["blocks"])
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(x @ params["out"], y)
    )


def weights(key):
    """Weights of it, normal."""
    shapes = {"in": (3, 4), "blocks": (2, 4, 4), "out": (4, 3)}
    return {
        name: jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
