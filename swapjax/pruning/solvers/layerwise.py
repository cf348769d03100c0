"""One stage of layer-wise OBS: a support for all layers, then weights for each."""

import collections
from typing import Literal

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.pruning.method import Problem, Solution
from swapjax.pruning.solvers import (
    layer_cg,
    layer_curves,
    layer_quadratic,
)
from swapjax.pruning.solvers.candidates import conclude
from swapjax.pruning.solvers.layer_order import GREEDY_WORK, work
from swapjax.pruning.solvers.layer_parts import Part, Weigh, make_parts
from swapjax.sparsity.budget import Budget, select

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
    masks = _supports(problem, budget, parts, greedy, block)
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
    problem: Problem,
    budget: Budget,
    parts: list[Part],
    greedy: list[bool],
    block: int,
) -> Leaves:
    """Choose every support, before the column order chooses anew in its blocks."""
    if budget.units is not None:
        # Rises along a greedy path are those of weights that go one by one.
        alone = (
            part.layer.leaf(part.saliency(), w.shape)
            for part, w in zip(parts, problem.weights, strict=True)
        )
        return select(tuple(alone), budget, problem.within)
    sharing = collections.Counter(budget.groups)

    def score(i: int) -> jax.Array:
        if greedy[i]:
            return parts[i].path()
        groups = {budget.groups[n] for n in budget.layers.numbers[i]}
        if budget.pattern(i) is None and any(sharing[group] > 1 for group in groups):
            return layer_curves.scores(parts[i], block)
        return parts[i].saliency()

    scores = (
        part.layer.leaf(score(i), w.shape)
        for i, (part, w) in enumerate(zip(parts, problem.weights, strict=True))
    )
    return select(tuple(scores), budget, problem.within)


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
        fitted, support = part.sweep(support, block)
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
