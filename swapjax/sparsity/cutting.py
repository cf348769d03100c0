"""Cut a vector into leaves, in a way that compiles fast on a CPU."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.members import any_member
from swapjax.core.types import Leaves


def cut(
    vector: jax.Array, shapes: Sequence[tuple[int, ...]], never: jax.Array
) -> Leaves:
    """Cut a vector into leaves.

    XLA compiles equal code once, but slices at places that it knows are not equal, nor
    is all that is made of them. So it must not know where leaves begin: the places
    depend on a flag that is False, and come out of a reduction, which stays apart.

    Args:
        vector: of all entries.
        shapes: of the leaves.
        never: False, unknown to the compiler.
    """
    sizes = [math.prod(shape) for shape in shapes]
    starts = np.cumsum((0, *sizes[:-1])).astype(np.int32)
    opaque = starts + any_member(never).astype(jnp.int32)
    own = np.eye(len(shapes), dtype=bool)
    rows = tuple(jnp.where(own[i], opaque, 0) for i in range(len(shapes)))
    zeros = (jnp.zeros((), jnp.int32),) * len(shapes)
    places = jax.lax.reduce(rows, zeros, _add, (0,))
    return tuple(
        jax.lax.dynamic_slice_in_dim(vector, place, size).reshape(shape)
        for place, size, shape in zip(places, sizes, shapes, strict=True)
    )


def apart(vector: jax.Array, never: jax.Array) -> jax.Array:
    """Keep XLA from compiling all that makes a vector into each leaf it is `cut` into.

    What comes out of a loop is there once, at the cost of a copy; a CPU sees through
    `jax.lax.optimization_barrier`.

    Args:
        vector: of all entries.
        never: False, unknown to the compiler.
    """

    def other(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        go, x = state
        return go & False, jnp.flip(x)

    start = any_member(never), vector
    return jax.lax.while_loop(lambda state: state[0], other, start)[1]


def _add(first: tuple, second: tuple) -> tuple:
    return tuple(a + b for a, b in zip(first, second, strict=True))
