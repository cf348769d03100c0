"""Initial weights, all of a network from one draw."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Deviation = Callable[[tuple[int, ...]], float]


def he(shape: tuple[int, ...]) -> float:
    """Return the standard deviation sqrt(2 / inputs), by He et al. (arXiv 1502.01852).

    Args:
        shape: of a kernel; all axes but the last are inputs of an output.
    """
    return math.sqrt(2 / math.prod(shape[:-1]))


def pytorch(shape: tuple[int, ...]) -> float:
    """Return the standard deviation sqrt(1 / (3 inputs)) of PyTorch's own weights."""
    return math.sqrt(1 / (3 * math.prod(shape[:-1])))


class Draw:
    """Hands out initial weights, one after another.

    Args:
        noise: standard normal numbers, float[n]; None to count how many there must be.
        deviation: standard deviation of a convolution's weights, from its shape.
        affine: whether batch norm within operations has a scale and a bias. Supernets
            have none.
        dtype: of the weights.
    """

    def __init__(
        self, noise: Any, deviation: Deviation, affine: bool, dtype: Any
    ) -> None:
        self.affine, self.taken = affine, 0
        self._noise, self._deviation, self._dtype = noise, deviation, dtype
        self._stack: tuple[int, ...] = ()

    def stacked(self, count: int, init: Callable[[], Any]) -> Any:
        """Draw weights for a loop over so many layers, along a first axis.

        Args:
            count: of the layers.
            init: draws those of one, from this very object.
        """
        before, self._stack = self._stack, (*self._stack, count)
        drawn = init()
        self._stack = before
        return drawn

    def kernel(self, size: int, inputs: int, outputs: int, groups: int = 1) -> Any:
        """Draw the kernel [size, size, inputs / groups, outputs] of a convolution."""
        shape = (size, size, inputs // groups, outputs)
        return self._deviation(shape) * self._normal(shape)

    def convolution(
        self, size: int, inputs: int, outputs: int, groups: int = 1
    ) -> dict[str, Any]:
        """Draw a layer that is such a kernel alone, for operations of several."""
        return {"kernel": self.kernel(size, inputs, outputs, groups)}

    def dense(self, inputs: int, outputs: int) -> dict[str, Any]:
        """Draw a dense layer as PyTorch scales it; its bias is zero."""
        kernel = pytorch((inputs, outputs)) * self._normal((inputs, outputs))
        return {"kernel": kernel, "bias": self._full(0, outputs)}

    def batch_norm(self, channels: int, *, affine: bool = True) -> dict[str, Any]:
        """Return running statistics and, if affine, a scale and a bias."""
        running = {"mean": self._full(0, channels), "var": self._full(1, channels)}
        if not affine:
            return running
        return {
            **running, "scale": self._full(1, channels), "bias": self._full(0, channels)
        }  # fmt: skip

    def _full(self, value: float, channels: int) -> Any:
        return np.full((*self._stack, channels), value, self._dtype)

    def _normal(self, shape: tuple[int, ...]) -> Any:
        shape = (*self._stack, *shape)
        first, self.taken = self.taken, self.taken + math.prod(shape)
        if self._noise is None:
            return np.broadcast_to(np.zeros((), self._dtype), shape)
        return self._noise[first : self.taken].reshape(shape)


def draw_all(
    key: jax.Array,
    build: Callable[[Draw], Any],
    deviation: Deviation,
    affine: bool,
    dtype: Any,
) -> Any:
    """Draw all weights of a network.

    Args:
        key: a PRNG key, traced or not.
        build: makes a tree of weights with a `Draw`.
        deviation: see `Draw`, and so the rest.
        affine: whether batch norm within operations is affine.
        dtype: of the weights.
    """
    count = Draw(None, deviation, affine, dtype)
    build(count)
    noise: Any = _normal(key, count.taken, dtype)
    if not isinstance(noise, jax.core.Tracer):
        noise = np.asarray(noise)  # cut on the host, where nothing is compiled for it
    drawn = build(Draw(noise, deviation, affine, dtype))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), drawn)


# One draw for all: XLA takes a fourth of a second to compile one, and ten times as long
# for one of five axes.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, count: int, dtype: Any) -> jax.Array:
    return jax.random.normal(key, (count,), dtype)
