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
    layer_parts,
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
    masks, fitted, errors = _fit(parts, masks, wbar, greedy, block, refit)
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
    paths = layer_parts.paths(parts, greedy)

    def score(i: int) -> jax.Array:
        if greedy[i]:
            return paths[i]
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
    parts: list[Part],
    masks: Leaves,
    wbar: Leaves,
    greedy: list[bool],
    block: int,
    refit: bool,
) -> tuple[Leaves, Leaves, list[jax.Array]]:
    """Find support and weights of leaves, and the errors without and with new values.

    In the column order by blocks, or in none on the support that is there.
    """
    supports, fitted = [], []
    for part, mask, is_greedy in zip(parts, masks, greedy, strict=True):
        support = part.layer.matrix(mask)
        swept = jnp.where(support, part.weights, 0)
        if not is_greedy:
            swept, support = part.sweep(support, block)
        supports.append(support)
        fitted.append(swept)
    cuts = [
        jnp.where(support, part.weights, 0)
        for part, support in zip(parts, supports, strict=True)
    ]
    again = [i for i, is_greedy in enumerate(greedy) if is_greedy or refit]
    exact = [i for i in again if work(parts[i].layer) <= _EXACT_WORK]
    solved = layer_quadratic.refit(
        [parts[i].system.hessian for i in exact],
        [parts[i].weights for i in exact],
        [supports[i] for i in exact],
    )
    for i, weights in zip(exact, solved, strict=True):
        fitted[i] = weights
    for i in (i for i in again if i not in exact):
        part = parts[i]
        fitted[i] = layer_cg.refit(
            part.system.hessian, part.weights, supports[i], fitted[i]
        )
    return (
        tuple(
            part.layer.leaf(support, leaf.shape)
            for part, support, leaf in zip(parts, supports, wbar, strict=True)
        ),
        tuple(
            part.layer.leaf(w.astype(leaf.dtype), leaf.shape)
            for part, w, leaf in zip(parts, fitted, wbar, strict=True)
        ),
        [
            jnp.stack([part.error(cut), part.error(w)])
            for part, cut, w in zip(parts, cuts, fitted, strict=True)
        ],
    )
