"""Leaves of params that are no arrays: functions and switches of whole modules."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.types import Params


def take_arrays(
    params: Params, what: str, *, on_device: bool = True
) -> tuple[Params, Callable | None]:
    """Take params as arrays, and how to put back what is none.

    A whole Equinox module has its activation functions and the switches of its dropout
    among its leaves. As there, Python's numbers are no arrays beside them; in a tree of
    arrays and numbers alone, they are.

    Args:
        params: any pytree of arrays, numbers and functions.
        what: the tree is, as in ``"params"``.
        on_device: whether arrays of NumPy become those of JAX, as numbers do.

    Returns:
        The same tree of arrays alone, with zeros in place of functions; and a function
        of such a tree that puts back what stood there, None where nothing did.

    Raises:
        ValueError: naming a leaf that is neither.
    """
    leaves, treedef = jax.tree.flatten(params)
    standing = [0.0 if callable(x) else x for x in leaves]
    arrays = jax.tree.unflatten(treedef, standing)
    trees.require_arrays(arrays, what)
    arrays = jax.tree.map(jnp.asarray if on_device else _on_host, arrays)
    if not any(callable(x) or isinstance(x, bool) for x in leaves):
        return arrays, None

    def put_back(tree: Params) -> Params:
        pairs = zip(jax.tree.leaves(tree), leaves, strict=True)
        whole = [new if _is_array(old) else old for new, old in pairs]
        return jax.tree.unflatten(treedef, whole)

    return arrays, put_back


def are_arrays(leaves: Sequence[Any]) -> list[bool]:
    """Tell which leaves of params are arrays, or the shapes and dtypes of some.

    So are numbers, but not beside functions and the like; see `take_arrays`.
    """
    shaped = [hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves]
    numbers = [
        isinstance(x, int | float | complex) and not isinstance(x, bool) for x in leaves
    ]
    found = [a or b for a, b in zip(shaped, numbers, strict=True)]
    return found if all(found) else shaped


def of_arrays(
    function: Callable[..., Any], params: Params
) -> tuple[list[Any], Callable[..., Any]]:
    """Make a function of the arrays of params alone, as JAX traces it.

    Args:
        function: ``(params, *inputs)``.
        params: any pytree; what is no array stays as it is.

    Returns:
        The arrays, in flattening order; and ``(arrays, *inputs)``, which does the same.
    """
    leaves, treedef = jax.tree.flatten(params)
    flags = are_arrays(leaves)

    def of_list(arrays: Sequence[Any], *inputs: Any) -> Any:
        there = iter(arrays)
        pairs = zip(leaves, flags, strict=True)
        whole = [next(there) if is_array else leaf for leaf, is_array in pairs]
        return function(jax.tree.unflatten(treedef, whole), *inputs)

    return list(itertools.compress(leaves, flags)), of_list


def _on_host(leaf: Any) -> Any:
    """Make an array; numbers stay weak, so that they widen nothing beside them."""
    return leaf if isinstance(leaf, jax.Array | np.ndarray) else jnp.asarray(leaf)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
