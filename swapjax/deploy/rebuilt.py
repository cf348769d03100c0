"""The function of a smaller network, from the program of the whole one."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.types import Params
from swapjax.deploy.rebuild import Smaller
from swapjax.roles.ties import Ties, find_ties


def rebuilt(
    function: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    ties: Ties,
    smaller: Smaller,
) -> Callable[..., Any]:
    """Make a function for smaller params.

    For inputs of other shapes, as more examples, the function is traced again.

    Args:
        function: ``(params, *inputs)`` of the whole network.
        params: of the whole network; their shapes are kept, and what is no array.
        inputs: examples.
        ties: of the function for these.
        smaller: its program without what is removed.
    """
    shapes = [
        leaf
        if n is None
        else jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))
        for leaf, n in _pairs(jax.tree.leaves(params), ties)
    ]
    whole = jax.tree.unflatten(ties.tree, shapes)
    of_shapes = {_key(inputs): (ties, smaller)}

    @jax.jit
    def of_arrays(arrays: list[Any], inputs: Sequence[Any]) -> Any:
        key = _key(inputs)
        if key not in of_shapes:
            of_shapes[key] = _again(function, whole, inputs, ties, smaller)
        own, program = of_shapes[key]
        results = program.evaluate([*arrays, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(own.result, results)

    def apply(params: Params, *inputs: Any) -> Any:
        leaves = _pairs(jax.tree.leaves(params), ties)
        return of_arrays([leaf for leaf, n in leaves if n is not None], inputs)

    return apply


def _again(
    function: Callable[..., Any],
    whole: Params,
    inputs: Sequence[Any],
    ties: Ties,
    smaller: Smaller,
) -> tuple[Ties, Smaller]:
    """Take the same places out of the program for inputs of other shapes.

    Raises:
        ValueError: where they are tied otherwise there.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    other = find_ties(function, whole, *shapes)
    flags = np.zeros(other.highest + 1, bool)
    for leaf, (path, number) in enumerate(zip(ties.paths, ties.leaves, strict=True)):
        if number is None:
            continue
        for axis, labels in enumerate(ties.labels[number]):
            gone = other.axes(leaf)[axis][smaller.removed[labels]]
            if not gone.all():
                raise ValueError(
                    f"inputs: for those of shapes {_told(inputs)} places along axis "
                    f"{axis} of {path} cannot be removed; shrink the network for them"
                )
            flags[gone] = True
    program = Smaller(other.program, other.labels, flags)
    for leaf, number in enumerate(ties.leaves):
        same = other.leaves[leaf]
        if number is None or same is None:
            continue
        if smaller.shape(number) != program.shape(same):
            raise ValueError(
                f"inputs: for those of shapes {_told(inputs)} other units are tied to "
                f"those of {ties.paths[leaf]}; shrink the network for them"
            )
    return other, program


def _pairs(leaves: list[Any], ties: Ties) -> list[tuple[Any, int | None]]:
    return list(zip(leaves, ties.leaves, strict=True))


def _key(inputs: Sequence[Any]) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(inputs)
    return treedef, *(str(jax.typeof(x)) for x in leaves)


def _told(inputs: Sequence[Any]) -> list[tuple[int, ...]]:
    return [np.shape(x) for x in jax.tree.leaves(inputs)]
