"""Every output of several layers by itself, in one program for all of equal inputs.

The same few lines once a layer would make a program that takes minutes to compile: a
network has many layers, and few numbers of inputs.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_JOINED = 2**21  # entries of the largest


def alike(hessians: Sequence[jax.Array]) -> list[list[int]]:
    """List the places of those together that one program is to serve.

    They are joined for that, which of large ones would be a copy that counts.

    Args:
        hessians: of each layer, [groups, inputs, inputs].
    """
    keys = [
        (h.shape[-1], h.dtype, i if h.size > _JOINED else 0)
        for i, h in enumerate(hessians)
    ]
    return [
        [i for i, other in enumerate(keys) if other == key]
        for key in dict.fromkeys(keys)
    ]


def solve(
    function: Callable[..., jax.Array],
    hessians: Sequence[jax.Array],
    *columns: Sequence[jax.Array],
) -> list[jax.Array]:
    """Solve for every output of several layers.

    Args:
        function: of Hessians, [groups, inputs, inputs], of the number of its group for
            each output, ``int32[outputs]``, and of what each output has of the columns,
            [outputs, inputs] or [outputs, 1]: an answer [outputs, inputs].
        hessians: of each layer, [groups, inputs, inputs].
        columns: of each layer, several times, [groups, inputs or 1, outputs]; first
            what layers without an entry have for their answer, too.

    Returns:
        For each layer [groups, inputs, outputs].
    """
    shapes = [
        (*h.shape[:2], c.shape[2]) for h, c in zip(hessians, columns[0], strict=True)
    ]
    found: dict[int, jax.Array] = {}
    for places in alike(hessians):
        hessian = jnp.concatenate([hessians[i] for i in places])
        # Groups are numbered through.
        sizes = np.concatenate([np.full(shapes[i][0], shapes[i][2]) for i in places])
        group = np.repeat(np.arange(len(hessian), dtype=np.int32), sizes)
        rows = [jnp.concatenate([_rows(c[i]) for i in places]) for c in columns]
        solved = rows[0]
        if solved.size:
            solved = function(hessian, jnp.asarray(group), *rows)
        ends = np.cumsum([shapes[i][0] * shapes[i][2] for i in places])
        for i, own in zip(places, jnp.split(solved, ends[:-1]), strict=True):
            groups, inputs, outputs = shapes[i]
            found[i] = own.reshape(groups, outputs, inputs).swapaxes(1, 2)
    return [found[i] for i in range(len(shapes))]


def _rows(columns: jax.Array) -> jax.Array:
    """Lay [groups, any, outputs] out by output, [groups * outputs, any]."""
    groups, side, outputs = columns.shape
    return columns.swapaxes(1, 2).reshape(groups * outputs, side)
