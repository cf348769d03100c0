"""The layers of networks of search spaces.

Images are [n, height, width, channels], kernels [height, width, in, out]. Nothing here
names a dtype: float64 goes through as it came.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NORMS = ("none", "train", "eval")


def require_norm(norm: str) -> None:
    """Raise a ValueError for what batch norm does not do."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


_EPSILON = 1e-5


class Run:
    """How a network is run: what its batch norm does, and what that has seen.

    Args:
        norm: ``"none"``: batch norm is left out; ``"train"``: it takes the statistics
            of the batch; ``"eval"``: the running ones.
        lazy: whether a supernet leaves operations out whose alpha is zero, by
            `jax.lax.cond`.

    Raises:
        ValueError: for another norm.
    """

    def __init__(self, norm: str, *, lazy: bool = False) -> None:
        require_norm(norm)
        self.norm, self.lazy = norm, lazy
        self._seen: dict[int, jax.Array] = {}

    def batch_norm(self, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        """Normalise the channels of x."""
        if self.norm == "none":
            return x
        mean, var = params["mean"], params["var"]
        if self.norm == "train":
            axes = tuple(range(x.ndim - 1))
            batch_mean, batch_var = jnp.mean(x, axes), jnp.var(x, axes)
            self._seen[id(mean)], self._seen[id(var)] = batch_mean, batch_var
            mean, var = batch_mean, batch_var
        else:
            mean, var = lax.stop_gradient(mean), lax.stop_gradient(var)
        x = (x - mean) * lax.rsqrt(var + _EPSILON)
        return x * params["scale"] + params["bias"] if "scale" in params else x

    def with_statistics(self, params: Any) -> Any:
        """Return params with the statistics of the batch in place of running ones.

        Layers were given the very leaves of params, and not in the body of a loop.
        """
        return jax.tree.map(lambda leaf: self._seen.get(id(leaf), leaf), params)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolve, with as many zeros on each side as keep the size at stride 1."""
    around = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((around, around), (around, around)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def average_pool(x: jax.Array, *, size: int, stride: int, around: int) -> jax.Array:
    """Average windows, over those of their pixels that lie in the image."""
    padding = ((0, 0), (around, around), (around, around), (0, 0))
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    rows, columns = (_met(n, size, stride, around) for n in x.shape[1:3])
    met = np.outer(rows, columns)[:, :, None]
    return total / jnp.asarray(met, x.dtype)


def max_pool(x: jax.Array, *, size: int, stride: int, around: int) -> jax.Array:
    """Take the maximum of windows."""
    padding = ((0, 0), (around, around), (around, around), (0, 0))
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def dense(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Multiply by a kernel and add a bias."""
    return x @ params["kernel"] + params["bias"]


def _met(length: int, size: int, stride: int, around: int) -> np.ndarray:
    """Count the pixels of a row within each window."""
    first = np.arange(0, length + 2 * around - size + 1, stride) - around
    return np.minimum(first + size, length) - np.maximum(first, 0)
