"""One stage of layer-wise OBS: a support for all layers, then weights for each."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.types import Leaves
from swapjax.pruning.method import Problem, Solution
from swapjax.pruning.solvers import (
    layer_cg,
    layer_quadratic,
    obc_order,
    sparsegpt_order,
)
from swapjax.pruning.solvers.candidates import conclude
from swapjax.pruning.solvers.layer_order import GREEDY_WORK, work
from swapjax.pruning.solvers.layer_parts import Part, Weigh, make_parts
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking

Order = Literal["auto", "greedy", "columns"]

# outputs * inputs^3 up to which every output is solved for by itself.
_EXACT_WORK = 3e10


def solve(
    problem: Problem,
    budget: Budget,
    *,
    order: Order,
    damping: float,
    block: int,
    weigh: Weigh,
    reference: str,
    refit: bool,
) -> Solution:
    """Prune layer by layer; the arguments are those of `layerwise_obs`, checked.

    Raises:
        ValueError: for a problem without layers, or without rows where they weigh.
    """
    wbar = problem.weights if reference == "current" else problem.initial
    parts = make_parts(problem, wbar, budget, damping, weigh)
    greedy = [
        order == "greedy" or (order == "auto" and work(part.layer) <= GREEDY_WORK)
        for part in parts
    ]
    masks = _supports(problem, budget, parts, greedy)
    masks, fitted, errors = zip(
        *(
            _fit(part, mask, leaf, None if is_greedy else block, refit)
            for part, mask, leaf, is_greedy in zip(
                parts, masks, wbar, greedy, strict=True
            )
        ),
        strict=True,
    )
    return conclude(
        problem,
        fitted,
        masks,
        objective=sum(errors[1:], start=errors[0]),
        iterations=1,
        raised=jnp.stack([part.system.raised for part in parts]).any(),
        details={
            "damping": jnp.stack([part.system.damping for part in parts]).max(),
            "greedy_layers": jnp.asarray(
                sum(
                    is_greedy * len(numbers)
                    for is_greedy, numbers in zip(
                        greedy, problem.stacking.numbers, strict=True
                    )
                )
            ),
        },
    )


def _supports(
    problem: Problem, budget: Budget, parts: list[Part], greedy: list[bool]
) -> Leaves:
    """Choose every support, before the column order chooses anew in its blocks."""
    if budget.units is not None:
        # Rises along a greedy path are those of weights that go one by one.
        alone = (
            part.layer.leaf(part.saliency(), w.shape)
            for part, w in zip(parts, problem.weights, strict=True)
        )
        return select(tuple(alone), budget, problem.within)
    stacking = budget.layers
    shapes = [w.shape for w in problem.weights]
    paths = {
        i: part.layer.leaf(_path(part), shapes[i])
        for i, part in enumerate(parts)
        if greedy[i]
    }
    # The rises along a greedy path and those of weights that go alone are not alike.
    # A group of layers competes by the first only if all of them are greedy.
    mixed = {
        budget.groups[n]
        for i, numbers in enumerate(stacking.numbers)
        for n in numbers
        if i not in paths
    }
    both = np.asarray([group in mixed for group in budget.groups])

    def merge(i: int, if_mixed: Callable[[], jax.Array], other: jax.Array) -> jax.Array:
        """Take one thing for the layers of a leaf in mixed groups, one for others."""
        here = both[list(stacking.numbers[i])]
        if not here.any():
            return other
        if here.all():
            return if_mixed()
        return jnp.where(stacking.spread(i, both, shapes[i]), if_mixed(), other)

    def saliency(i: int) -> jax.Array:
        return parts[i].layer.leaf(parts[i].saliency(), shapes[i])

    scores = tuple(
        merge(i, functools.partial(saliency, i), paths[i])
        if i in paths
        else saliency(i)
        for i in range(len(parts))
    )
    masks = select(scores, budget, problem.within)

    def along(i: int) -> jax.Array:
        """Cut the path of a leaf where its layers keep what they keep by then."""
        layers = len(stacking.numbers[i])
        one = Stacking((stacking.axes[i],), (tuple(range(layers)),))
        own = Budget(
            Segments.of_layers(one).count([[masks[i]]])[0],
            tuple(range(layers)),
            (0,) * layers,
            stacking=one,
        )
        within = None if problem.within is None else (problem.within[i],)
        return select((paths[i],), own, within)[0]

    return tuple(
        merge(i, functools.partial(along, i), mask) if i in paths else mask
        for i, mask in enumerate(masks)
    )


def _path(part: Part) -> jax.Array:
    return obc_order.order(
        part.system.hessian,
        part.weights,
        part.ranks == 0,
        part.factor,
        part.pattern,
        part.along,
    )


def _fit(
    part: Part,
    mask: jax.Array,
    leaf: jax.Array,
    block: int | None,
    refit: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find support and weights of a leaf, and the error without and with new values.

    In the column order by blocks, or in none on the support that is there.
    """
    support = part.layer.matrix(mask)
    fitted = cut = jnp.where(support, part.weights, 0)
    if block is not None:
        fitted, support = sparsegpt_order.sweep(
            part.system.root,
            part.weights,
            part.ranks,
            support,
            block=block,
            pattern=part.pattern,
            adapt=part.along,
        )
        cut = jnp.where(support, part.weights, 0)
    if block is None or refit:
        hessian = part.system.hessian
        if work(part.layer) <= _EXACT_WORK:
            fitted = layer_quadratic.refit(hessian, part.weights, support)
        else:
            fitted = layer_cg.refit(hessian, part.weights, support, fitted)
    return (
        part.layer.leaf(support, leaf.shape),
        part.layer.leaf(fitted.astype(leaf.dtype), leaf.shape),
        jnp.stack([part.error(w) for w in (cut, fitted)]),
    )
