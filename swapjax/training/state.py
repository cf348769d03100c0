"""The state of sparse training, and functions that read and check it."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import holes, trees
from swapjax.core.given_masks import take_masks
from swapjax.core.types import Masks, Params, Status
from swapjax.sparsity.allocation import some
from swapjax.training.admm_state import AdmmState


class SparseState(NamedTuple):
    """The state of `sparse`: arrays only, to be saved like that of any optimizer.

    Attributes:
        count: ``int32[]``, the updates so far.
        masks: with the tree of params.
        key: ``uint32``, the data of a PRNG key; zeros where there is none.
        inner: the state of the wrapped optimizer.
        extras: ``status``, ``int32[prunable leaves]``, the worst `swapjax.Status` that
            mask steps found in each leaf; ``last``, ``int32[]``, the update of the last
            mask step, -1 without any; ``first`` and ``every``, ``int32[]``, that of the
            first, and the updates from one to the next; ``waits``, ``bool[]``, whether
            one waits, as for gradients that are finite; ``within``, the masks that
            were given as such; ``dense``, with the tree of params, the dense weights of
            a straight-through rule, and scalars for leaves that are not prunable.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    masks: Masks
    key: jax.Array
    inner: Any
    extras: dict[str, Any]


State = SparseState | AdmmState


def masks_of(state: Any, params: Params | None = None) -> Masks:
    """Find the masks in the state of an optimizer.

    Args:
        state: that of `sparse` or `admm`, alone or anywhere in that of another
            transformation, or several, each for leaves of its own, as in
            `optax.partition`.
        params: whose tree to give them; needed only where the labels of
            `optax.partition`, or the mask of `optax.masked`, hold for more than one
            leaf, since a state does not know what is below.

    Returns:
        Masks in the tree of params that the optimizer has; the scalar True for what is
        not for `sparse` to prune, which without params may stand for several leaves.
        That of an ``nnx.Optimizer`` holds variables, whose arrays ``nnx.as_pure`` takes
        out. Those of an ensemble, as ``jax.vmap`` makes it, have its axis in front; a
        leaf that is never pruned is the scalar True there, too. For one member, index
        the state before.

    Raises:
        ValueError: for a state that has none, or several for one leaf, and params of
            another tree.
    """
    masks = _merged(find_states(state))
    return masks if params is None else take_masks(masks, params, "state.masks")


def last_mask_step(state: Any) -> int:
    """Return the update of the last mask step, from 1; -1 where masks never change."""
    return max(int(jnp.max(found.extras["last"])) for found in find_states(state))


def until_mask_step(state: Any) -> float:
    """Count the updates before the next mask step.

    For loops that choose between two programs on the host, the one without mask steps
    being faster (see `sparse`). It waits for the state: ask again only after as many
    updates and the mask step. Where a wrapper passes updates over, as
    `optax.MultiSteps` and `optax.apply_if_finite` do, it may be later, never sooner.

    Args:
        state: as `masks_of` takes it.

    Returns:
        0 if the next update is a mask step, or makes up for one; of several states and
        of members of an ensemble the least; ``math.inf`` where masks change no more.

    Example:
        >>> import functools, jax, jax.numpy as jnp, optax, swapjax
        >>> tx = swapjax.sparse(optax.adam(0.01), swapjax.gmp(), sparsity=0.5,
        ...                     schedule=swapjax.cubic(0, 40, every=10))
        >>> params = {"kernel": jnp.ones((4, 2))}
        >>> state = tx.init(params)
        >>> @functools.partial(jax.jit, static_argnames="mask_step")
        ... def step(params, state, mask_step):
        ...     updates, state = tx.update(params, state, params, mask_step=mask_step)
        ...     return optax.apply_updates(params, updates), state
        >>> left = swapjax.until_mask_step(state)
        >>> for _ in range(45):
        ...     params, state = step(params, state, mask_step=left == 0)
        ...     left = left - 1 if left else swapjax.until_mask_step(state)
        >>> left, swapjax.density(swapjax.masks_of(state))
        (inf, 0.5)
    """
    return min(_until(*member) for member in _mask_steps(state))


def mask_steps_every(state: Any) -> float:
    """Return the least number of updates from a mask step to the next.

    Args:
        state: as `masks_of` takes it.

    Returns:
        `math.inf` where there are no mask steps.
    """
    return min(
        every if last >= 0 else math.inf for *_, every, last, _ in _mask_steps(state)
    )


def _mask_steps(state: Any) -> Iterator[tuple[int, ...]]:
    """Tell of each state and member its count, first, every, last, and waits."""
    names = ("first", "every", "last", "waits")
    found = [(s.count, *(s.extras[name] for name in names)) for s in find_states(state)]
    for of_state in jax.device_get(found):
        for member in zip(*map(np.ravel, of_state), strict=True):
            yield tuple(map(int, member))


def _until(count: int, first: int, every: int, last: int, waits: int) -> float:
    if waits:
        return 0
    t = count + 1
    due = first if t <= first else t + (first - t) % every
    return due - t if due <= last else math.inf


def has_masks(state: Any) -> bool:
    """Return whether the state of an optimizer has masks in it."""
    return bool(_all(state))


def is_sparse(state: Any) -> bool:
    """Return whether the state has masks that hold params at zero while they train.

    Those of `swapjax.admm` do not: they are for the cut that follows.
    """
    return any(isinstance(found, SparseState) for found in _all(state))


def has_admm(state: Any) -> bool:
    """Return whether the state is drawn to a sparse copy, in part at least."""
    return any(isinstance(found, AdmmState) for found in _all(state))


def check_state(state: Any, params: Params | None = None) -> None:
    """Raise if a mask step of a training run met invalid weights or gradients.

    Nothing can be raised under jit: call this outside of it, now and then and after
    training. It waits for the arrays of the state.

    Args:
        state: as `masks_of` takes it.
        params: to check that they are zero outside of the masks now, too.

    Raises:
        ValueError: for entries that are not finite, params that were not zero outside
            of the masks, gradients that were zero there, and masks of a rule that keep
            more entries in all than its budget or some outside of `within`, naming
            leaves; and for params of another tree. Fewer entries than the budget are no
            error: there may be no room.
    """
    states = find_states(state)
    faults: dict[str, list[str]] = {}
    for found in states:
        masks = _masks(found)
        named = zip(trees.paths(masks), jax.tree.leaves(masks), strict=True)
        prunable = [path for path, leaf in named if jnp.ndim(leaf)]
        # The worst of all members, where there are several.
        status = np.asarray(found.extras["status"]).reshape(-1, len(prunable))
        for path, code in zip(prunable, status.max(axis=0).tolist(), strict=True):
            if code != Status.CONVERGED:
                faults.setdefault(Status(code).sentence, []).append(path or "the array")
    if params is not None:
        masks = take_masks(_merged(states), params, "state.masks")
        leaves = zip(
            trees.paths(params),
            jax.tree.leaves(masks),
            jax.tree.leaves(params),
            strict=True,
        )
        sentence = Status.NOT_MASKED.sentence
        for path, mask, leaf in leaves:
            if jnp.ndim(mask) and jnp.any(~mask & (leaf != 0)):
                faults.setdefault(sentence, []).append(path or "the array")
    if faults:
        told = [f"{some(list(dict.fromkeys(p)))}: {s}" for s, p in faults.items()]
        raise ValueError(f"state: {' '.join(told)}")


def find_states(state: Any) -> list[State]:
    """Find the states of `sparse` and `admm` in that of an optimizer.

    Raises:
        ValueError: for none, and for several that prune one leaf.
    """
    found = _all(state)
    if not found:
        raise ValueError("state: one state of sparse or admm wanted, found 0")
    owners: dict[str, int] = {}
    for masks in map(_masks, found):
        for path, leaf in zip(trees.paths(masks), jax.tree.leaves(masks), strict=True):
            if jnp.ndim(leaf):
                owners[path] = owners.get(path, 0) + 1
    shared = [path for path, count in owners.items() if count > 1]
    if shared:
        raise ValueError(
            "state: one state of sparse or admm wanted for each leaf, found "
            f"{owners[shared[0]]} for {shared[0] or 'the array'}"
        )
    return found


def _all(state: Any) -> list[State]:
    is_ours = lambda x: isinstance(x, State)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]
    return [y for x in found for y in (x, *_all(x.inner))]


def _masks(found: State) -> Masks:
    """Take the masks of a state; scalars for what no member of an ensemble prunes."""
    members = jnp.ndim(found.count)
    if not members:
        return found.masks
    return jax.tree.map(
        lambda m: jnp.asarray(True) if jnp.ndim(m) == members else m, found.masks
    )


def _merged(states: list[State]) -> Masks:
    """Lay the masks of several states over each other, without holes."""
    masks = functools.reduce(holes.merge, map(_masks, states))
    return holes.fill(masks, jnp.asarray(True))
