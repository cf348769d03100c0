"""The kernels among the weights of a network, one layer or a stack of them a leaf."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NAME = "kernel"  # of leaves: [..., height, width, in, out], or [..., in, out] if dense


def even(theta: Any) -> Any:
    """Divide each kernel, of no signs, by what an output of its layer sums to.

    Sums are over inputs, and their mean over outputs, so that each layer hands on as
    much as it gets in the mean.
    """

    def divide(kernel: jax.Array) -> jax.Array:
        sums = jnp.sum(kernel, _axes(kernel)[:-1], keepdims=True)
        mean = jnp.mean(sums, -1, keepdims=True)
        return kernel / jnp.where(mean > 0, mean, 1)

    return map_kernels(divide, theta)


def map_kernels(fn: Callable[[jax.Array], Any], theta: Any) -> Any:
    """Apply a function to the kernels of a tree, and leave all else."""

    def one(path: tuple, leaf: Any) -> Any:
        return fn(leaf) if _is_kernel(path) else leaf

    return jax.tree.map_with_path(one, theta)


def only(theta: Any) -> Any:
    """Return a tree with zeros for all that is no kernel."""

    def one(path: tuple, leaf: Any) -> Any:
        return leaf if _is_kernel(path) else jnp.zeros_like(leaf)

    return jax.tree.map_with_path(one, theta)


def kernels(theta: Any) -> list[jax.Array]:
    """Return the kernels of a tree.

    Raises:
        ValueError: if there are none.
    """
    found = [x for path, x in jax.tree.leaves_with_path(theta) if _is_kernel(path)]
    if not found:
        raise ValueError(f"params must have leaves that are called {NAME!r}, got none")
    return found


def by_layer(kernel: jax.Array) -> jax.Array:
    """Return a kernel as [layers, weights]."""
    size = math.prod(kernel.shape[axis] for axis in _axes(kernel))
    return kernel.reshape(-1, size)


def norms(kernel: jax.Array) -> jax.Array:
    """Return the Euclidean norm of each layer of a kernel: [layers]."""
    return jnp.linalg.norm(by_layer(kernel), axis=-1)


def _axes(kernel: jax.Array) -> tuple[int, ...]:
    """Return the axes of one layer, from behind."""
    return tuple(range(-4 if kernel.ndim >= 4 else -2, 0))


def _is_kernel(path: tuple) -> bool:
    return getattr(path[-1], "key", None) == NAME
