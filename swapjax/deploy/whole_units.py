"""Masks of whole units, so many that what is left costs no more than a budget."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.static_leaves import take_arrays
from swapjax.core.types import Masks, Params
from swapjax.deploy.constants import find_constants
from swapjax.deploy.folds import find_folds
from swapjax.deploy.removal import find_dead
from swapjax.deploy.unit_costs import Costs, choose
from swapjax.roles.role import Role
from swapjax.roles.ties import Group, Ties, find_ties
from swapjax.sparsity.allocation import some
from swapjax.sparsity.leaf_rules import Rule, match
from swapjax.sparsity.masks import apply_masks

_ANY = Role("matrix")  # what ties tell of leaves is enough


def unit_masks(
    loss_or_apply: Callable[[Params, Any], Any],
    params: Params,
    batch: Any,
    *,
    flops: float | None = None,
    size: float | None = None,
    scores: Params | None = None,
    exclude: Rule = (),
    min_keep: int = 1,
) -> Masks:
    """Keep whole units: channels, hidden units, heads, through all that ties them.

    A unit is what `swapjax.shrink` removes: a channel with the rows and columns of all
    matrices that make or read it, residual sums, concatenations and convolutions by
    channel included. Those of least score go until the rest costs no more than the
    budget, of given scores those of least score for what they save: a greedy answer to
    a knapsack problem. What the last, largest unit leaves unused of the budget is given
    back to others. Groups stay whole whose units `swapjax.shrink` could not remove, as
    those that a layer norm subtracts a mean from, which counts in its variance.

    Args:
        loss_or_apply: ``loss_fn(params, batch)`` or ``apply(params, x)``, whose program
            tells what depends on what.
        params: any pytree of arrays.
        batch: what loss_or_apply takes, arrays or their shapes and dtypes.
        flops: what part of the multiplications of matrix products and convolutions may
            be left, in (0, 1].
        size: instead, what part of the bytes of params.
        scores: what each entry is worth, a tree like params; a unit is worth their sum
            over all leaves, which must be comparable between layers, as what the loss
            would rise by is. By default squares of all weights but vectors, over their
            mean in a group, which are not: what units save is not looked at then.
        exclude: leaves that stay whole, and so does all that is tied to them, by
            regular expressions or a predicate of path and leaf.
        min_keep: units that each group keeps at least.

    Returns:
        Masks with the tree of params, False for all that belongs to a unit that goes,
        its bias and norm too, and the scalar True for leaves that stay whole.
        `swapjax.shrink` then makes arrays smaller.

    Raises:
        ValueError: for a budget outside of (0, 1], both or none, one that is out of
            reach, saying what is not; for scores of other shapes than params, or not
            finite; for rules that match nothing, and where no units may go.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> make = jax.random.normal
        >>> params = {"in": make(jax.random.key(0), (6, 8)), "out": jnp.ones((8, 2))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
        >>> masks = swapjax.unit_masks(apply, params, jnp.ones((1, 6)), flops=0.5)
        >>> masks["in"].any(0).sum(), swapjax.density(masks)
        (Array(4, dtype=int32), 0.5)
    """
    name, part = _budget(flops, size)
    require_count("min_keep", min_keep)
    params, put_back = take_arrays(params, "params")
    function = loss_or_apply
    if put_back is not None:
        function = lambda p, x: loss_or_apply(put_back(p), x)  # noqa: E731
    ties = find_ties(function, params, batch)
    groups = _that_may_go(ties, params, exclude)
    worth = _scores(params, scores, groups)
    terms = _terms(ties, params, name)
    for_savings = scores is not None
    treedef = jax.tree.structure(params)
    stay: list[str] = []
    while groups:
        costs = Costs.of(terms, groups)
        whole = costs.without(np.zeros(len(groups)))
        counts = choose(costs, worth, min_keep, part * whole, for_savings=for_savings)
        if counts is None:
            most = np.array([max(0, len(group) - min_keep) for group in groups])
            least = costs.without(most) / whole
            raise ValueError(
                f"{name}: {part:g} is out of reach; {least:.3g} is left where each "
                f"group keeps min_keep={min_keep} of its units{_told(stay)}"
            )
        gone = [
            group.units[np.argsort(own, kind="stable")[:count]]
            for group, own, count in zip(groups, worth, counts, strict=True)
        ]
        units = np.concatenate(gone)
        masks = jax.tree.unflatten(
            treedef, [_mask(ties, i, units) for i in range(len(ties.paths))]
        )
        dead = _dead(ties, params, masks)
        can = [dead.issuperset(own.tolist()) for own in gone]
        if all(can):
            return masks
        stay += [g.name for g, own in zip(groups, can, strict=True) if not own]
        groups = list(itertools.compress(groups, can))
        worth = list(itertools.compress(worth, can))
    raise ValueError(f"loss_or_apply: has no units that may go{_told(stay)}")


def _dead(ties: Ties, params: Params, masks: Masks) -> set[int]:
    """List the units that `swapjax.shrink` removes where masks are applied."""
    leaves = jax.tree.leaves(apply_masks(params, masks))
    pairs = zip(ties.leaves, leaves, strict=True)
    known = {number: leaf for number, leaf in pairs if number is not None}
    constants = find_constants(ties.program, known)
    return find_dead(ties, constants, find_folds(ties))


def _told(stay: Sequence[str]) -> str:
    """Name the groups that stay."""
    if not stay:
        return ""
    return f"; without weights they would not be zero where they are read: {some(stay)}"


def _budget(flops: float | None, size: float | None) -> tuple[str, float]:
    """Take the one budget that is given."""
    given = {k: v for k, v in (("flops", flops), ("size", size)) if v is not None}
    if len(given) != 1:
        got = " and ".join(f"{k}={v}" for k, v in given.items()) or "neither"
        raise ValueError(f"flops, size: give one of both, got {got}")
    ((name, value),) = given.items()
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise ValueError(f"{name} must be a fraction in (0, 1], got {value!r}")
    return name, float(value)


def _that_may_go(ties: Ties, params: Params, exclude: Rule) -> list[Group]:
    """List the groups of which no leaf is excluded."""
    leaves = jax.tree.leaves(params)
    free = set(match(ties.paths, leaves, [_ANY] * len(leaves), None, exclude))
    groups = [g for g in ties.groups if {m.leaf for m in g.members} <= free]
    if not groups:
        raise ValueError(
            "loss_or_apply: has no units that may go; its groups are "
            f"{some([str(group) for group in ties.groups]) or 'none'}"
        )
    return groups


def _terms(ties: Ties, params: Params, name: str) -> list[tuple[float, tuple]]:
    """List what is counted: products, or arrays."""
    if name == "flops":
        return [(product.times, product.axes) for product in ties.products]
    return [
        (leaf.dtype.itemsize, ties.axes(i))
        for i, leaf in enumerate(jax.tree.leaves(params))
        if hasattr(leaf, "dtype")
    ]


def _scores(
    params: Params, scores: Params | None, groups: Sequence[Group]
) -> list[np.ndarray]:
    """Score the units of each group."""
    if scores is not None:
        shapes = [np.shape(x) for x in jax.tree.leaves(params)]
        own = [np.shape(x) for x in jax.tree.leaves(scores)]
        if trees.paths(scores) != trees.paths(params) or own != shapes:
            raise ValueError("scores: must be a tree of the shapes of params")
    given, name = (params, "params") if scores is None else (scores, "scores")
    leaves = [np.asarray(x) for x in jax.tree.leaves(given)]
    trees.require_finite(trees.paths(given), jax.tree.leaves(given), name)
    found = []
    for group in groups:
        total = np.zeros(len(group))
        for member in group.members:
            array = leaves[member.leaf]
            # Norms and their statistics are no weights.
            if scores is not None or array.ndim > 1:
                along = _along(array, member.axis, square=scores is None)
                total += along[member.positions].sum(1)
        mean = total.mean()
        found.append(total / mean if scores is None and mean else total)
    return found


def _along(array: np.ndarray, axis: int, *, square: bool) -> np.ndarray:
    """Sum entries, or their squares, for each place of an axis, float64."""
    if array.dtype.kind != "f":  # bfloat16 and other guests of NumPy
        array = array.astype(np.float32)
    axes = list(range(array.ndim))
    factors: list[Any] = [array, axes] * (2 if square else 1)
    summed: np.ndarray = np.einsum(*factors, [axis], dtype=np.float64)
    return summed


def _mask(ties: Ties, leaf: int, units: np.ndarray) -> jax.Array:
    """Make the mask of a leaf, False where a unit that goes has an entry."""
    kept = [~np.isin(labels, units) for labels in ties.axes(leaf)]
    if all(own.all() for own in kept):
        return jnp.asarray(True)
    return jnp.asarray(functools.reduce(np.logical_and.outer, kept))
