"""Paths of leaves, and what is checked of trees before work starts."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import counts
from swapjax.core.text import printable
from swapjax.core.types import Leaves, Params

_BOXES = ("Variable", "AxisMetadata")  # of nnx, of Linen; Flax may be missing
_VALUE = (jax.tree_util.GetAttrKey("value"),)


def paths(tree: Params) -> tuple[str, ...]:
    """Name every leaf of a tree, in its flattening order.

    Keys are joined by ``/``, as in ``layers/0/kernel``. The ``value`` that Flax puts
    behind each variable is dropped, so that a network has the same paths as an
    ``nnx.State`` and as a pure dict; fields that others call so keep their name.

    Args:
        tree: any pytree.

    Returns:
        One path a leaf; the empty string for a bare array.
    """
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    keys = []
    for key, leaf in keyed:
        inside = [((), leaf)]
        if _is_variable(leaf):
            inside, _ = jax.tree_util.tree_flatten_with_path(leaf)
            # Of a variable's one field; one that a user calls so keeps its name.
            inside = [(k[1:] if k[:1] == _VALUE else k, x) for k, x in inside]
        keys += [(*key, *k) for k, _ in inside]
    return tuple(jax.tree_util.keystr(k, simple=True, separator="/") for k in keys)


def by_path(tree: Params) -> dict[str, Any]:
    """List the leaves of a tree by their paths.

    Raises:
        ValueError: for two leaves of one path.
    """
    names = paths(tree)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two leaves of the tree have the path {printable(', '.join(twice))}"
        )
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def _is_variable(node: Any) -> bool:
    """Whether a node is Flax's box of an array, or derived from it."""
    return any(
        c.__name__ in _BOXES and c.__module__.startswith("flax.")
        for c in type(node).__mro__
    )


def is_trained(leaf: Any) -> bool:
    """Tell whether a leaf of params has a gradient: integers, bools, keys have none."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def trainable(params: Params) -> Params:
    """Show an optimizer the real tree, a zero in place of what it cannot train.

    Counters, flags and PRNG keys among params have no gradient, and no moments; masks
    and labels that a user has made of params still fit.
    """
    zero = jnp.zeros(())
    return jax.tree.map(lambda x: x if is_trained(x) else zero, params)


def filled(seen: Params, params: Params) -> Params:
    """Put what has no gradient back where `trainable` has taken it out."""
    return jax.tree.map(lambda new, p: new if is_trained(p) else p, seen, params)


def cast_like(tree: Params, reference: Params) -> Params:
    """Give every leaf of a tree the dtype of the leaf it stands for."""
    return jax.tree.map(lambda x, r: x.astype(r.dtype), tree, reference)


def require_finite(
    names: Iterable[str], leaves: Iterable[jax.Array], what: str
) -> None:
    """Raise if an array holds NaN or infinity. Reads values: not for use in jit.

    Args:
        names: one name an array, for the message.
        leaves: the arrays; those that do not hold floats pass.
        what: what the arrays are, as in ``"params"``.

    Raises:
        ValueError: naming every array that is not finite, and how many of its
            entries are not.
    """
    pairs = [(n, x) for n, x in zip(names, leaves, strict=True) if is_trained(x)]
    if any(isinstance(leaf, jax.core.Tracer) for _, leaf in pairs):
        raise ValueError(f"{what}: values are checked here, which jit does not know")
    # One program and one wait for all; counts are for the message.
    if not pairs or bool(are_finite(tuple(leaf for _, leaf in pairs))):
        return
    bad = []
    for name, leaf in pairs:
        count = counts.total(_not_finite(leaf))
        if count:
            bad.append(
                f"{printable(name) or 'the array'} ({count:,} of {np.size(leaf):,})"
            )
    raise ValueError(f"{what}: NaN or infinite entries in {', '.join(bad)}")


def require_like(tree: Any, reference: Params, what: str) -> None:
    """Raise unless a tree has the structure, shapes and dtypes of another.

    Args:
        tree: any pytree.
        reference: arrays.
        what: made the tree, as in ``"recalibrate"``.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    expected: object = jax.tree.structure(reference)
    got: object = jax.tree.structure(tree)
    if got != expected:
        raise ValueError(
            f"{what}: must return the tree of params {expected}, got {got}"
        )
    pairs = zip(jax.tree.leaves(reference), jax.tree.leaves(tree), strict=True)
    for path, (old, new) in zip(paths(reference), pairs, strict=True):
        wanted = f"{old.dtype} of shape {old.shape}"
        dtype = getattr(new, "dtype", None)
        found = f"{dtype} of shape {np.shape(new)}" if dtype is not None else repr(new)
        if found != wanted:
            raise ValueError(f"{what}: {path or 'it'} must stay {wanted}, got {found}")


def require_arrays(tree: Params, what: str) -> None:
    """Raise unless every leaf is an array or a number.

    Args:
        tree: any pytree.
        what: the tree is, as in ``"params"``.

    Raises:
        ValueError: naming the first such leaf.
    """
    for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            raise ValueError(
                f"{what}: {printable(path) or 'it'} is a {type(leaf).__name__}, not an "
                "array; take the arrays out first, as eqx.partition and nnx.split do"
            )


@jax.jit
def are_finite(leaves: Leaves) -> jax.Array:
    """Tell whether all entries of arrays of floats are finite, ``bool[]``."""
    found = [_is_finite(leaf) for leaf in leaves]
    return functools.reduce(jnp.logical_and, found, jnp.asarray(True))


def _is_finite(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.all(jnp.isfinite(leaf))
    # 0 times what is not finite is NaN, and so is a sum with it; on a CPU that is found
    # faster than entries are looked at one by one. A maximum of many hides NaN there.
    return jnp.isfinite(jnp.sum(leaf * 0))


@jax.jit
def _not_finite(leaf: jax.Array) -> jax.Array:
    return counts.partial_counts(~jnp.isfinite(leaf))


def split_flat(flat: jax.Array, like: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Cut a vector into arrays of the shapes of others, laid end to end."""
    parts, offset = [], 0
    for leaf in like:
        parts.append(flat[offset : offset + leaf.size].reshape(leaf.shape))
        offset += leaf.size
    return tuple(parts)


def wide(leaves: Leaves) -> jnp.dtype:
    """Find the dtype that products are accumulated in: float32 or wider."""
    # Not jnp.result_type, which knows no such type where promotion is strict.
    is_double = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def count_examples(data: Any, what: str = "data") -> int:
    """Count the examples of a pytree of arrays with a leading example axis.

    Args:
        data: the pytree.
        what: the argument that it came in.

    Raises:
        ValueError: when there is no array, or the leaves disagree.
    """
    shapes = [np.shape(x) for x in jax.tree.leaves(data)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"{what}: must be a pytree of arrays with one leading axis of examples, "
            f"got shapes {shapes}"
        )
    return shapes[0][0]
