"""The state of sparse training: what is in it, and what can be read off it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax import trees
from swapjax.training.rules import Rule
from swapjax.types import Leaves, Masks, Status


class SparseState(NamedTuple):
    """What `sparse` keeps, arrays only; save it like any state of an optimizer.

    Attributes:
        count: ``int32[]``, the updates so far.
        masks: with the tree of params.
        key: ``uint32``, the data of a PRNG key.
        inner: the state of the optimizer that is wrapped.
        extras: ``status``, ``int32[prunable leaves]``, the worst `swapjax.Status` that
            a mask step met in each; ``within``, masks, where these must stay in
            others; ``dense``, with the tree of params, the dense weights of a rule that
            has them, and scalars for leaves that are not prunable.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    masks: Masks
    key: jax.Array
    inner: Any
    extras: dict[str, Any]


def masks_of(state: Any) -> Masks:
    """The masks in the state of an optimizer.

    Args:
        state: that of `sparse`, alone or anywhere in that of another transformation.

    Returns:
        Masks in the tree of params that the optimizer has. That of an ``nnx.Optimizer``
        holds variables, whose arrays ``nnx.as_pure`` takes out.

    Raises:
        ValueError: for a state that has none, or several.
    """
    return _find(state).masks


def is_sparse(state: Any) -> bool:
    """Whether the state of an optimizer has masks in it."""
    return bool(_all(state))


def check_state(state: Any) -> None:
    """Raise if the mask steps of a training run met what they cannot work with.

    Inside of jit nothing can be raised; call this now and then, and at the end. It
    reads values.

    Args:
        state: as `masks_of` takes it.

    Raises:
        ValueError: for entries that are not finite, params that were not zero outside
            of the masks, and gradients that were zero there, naming leaves.
    """
    found = _find(state)
    named = zip(trees.paths(found.masks), jax.tree.leaves(found.masks), strict=True)
    prunable = [path for path, leaf in named if jnp.ndim(leaf)]
    faults = [
        f"{path or 'the array'}: {Status(code).sentence}"
        for path, code in zip(prunable, found.extras["status"].tolist(), strict=True)
        if code != Status.CONVERGED
    ]
    if faults:
        raise ValueError(f"state: {' '.join(faults)}")


def _find(state: Any) -> SparseState:
    found = _all(state)
    if len(found) != 1:
        raise ValueError(
            f"state: one state of swapjax.sparse wanted, found {len(found)}"
        )
    return found[0]


def _all(state: Any) -> list[SparseState]:
    is_ours = lambda x: isinstance(x, SparseState)  # noqa: E731
    return [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]


def examine(
    rule: Rule,
    t: jax.Array,
    masks: Leaves,
    weights: Leaves,
    moved: Leaves,
    slopes: Leaves,
) -> jax.Array:
    """What is wrong with each leaf at a mask step, a `Status` as ``int32[leaves]``.

    Args:
        rule: what happens at it.
        t: the number of the update, from 1.
        masks: before it, as all that follows, leaves.
        weights: before the update.
        moved: after it.
        slopes: gradients before it.
    """

    def each(holds: Callable, *trees: Leaves) -> jax.Array:
        return jnp.stack([jnp.any(holds(*leaf)) for leaf in zip(*trees, strict=True)])

    outside = each(lambda m, w: ~m & (w != 0), masks, weights) & (t > 1)
    broken = each(lambda w, g: ~jnp.isfinite(w) | ~jnp.isfinite(g), moved, slopes)
    blind = jnp.zeros_like(outside)
    if rule.grows == "gradient":
        # One leaf may have no use for what it lacks; all of them together have.
        hidden = each(lambda m: ~m, masks).any()
        hidden &= ~each(lambda m, g: ~m & (g != 0), masks, slopes).any()
        blind |= hidden & each(lambda m, g: m & (g != 0), masks, slopes)
    return jnp.select(
        [broken, outside, blind],
        [Status.NOT_FINITE, Status.NOT_MASKED, Status.BLIND_GROWTH],
        Status.CONVERGED,
    ).astype(jnp.int32)
