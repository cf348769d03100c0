"""One stage of ALPS: a support for all layers by ADMM, then weights for each."""

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.pruning.method import Problem, Solution
from swapjax.pruning.solvers import alps_support, layer_cg
from swapjax.pruning.solvers.candidates import conclude, count_new
from swapjax.pruning.solvers.layer_parts import Part, Weigh, make_parts
from swapjax.sparsity.budget import Budget, select


def solve(
    problem: Problem,
    budget: Budget,
    *,
    damping: float,
    penalty: float,
    steps: int,
    weigh: Weigh,
    reference: str,
) -> Solution:
    """Prune by ALPS; the arguments are those of `alps`, checked.

    Raises:
        ValueError: for a problem without layers, or without rows where they weigh.
    """
    wbar = problem.weights if reference == "current" else problem.initial
    shapes = [w.shape for w in wbar]
    parts = make_parts(problem, wbar, budget, damping, weigh)
    saliencies = tuple(
        part.layer.leaf(part.saliency(), shape)
        for part, shape in zip(parts, shapes, strict=True)
    )
    first = select(saliencies, budget, problem.within)
    found = alps_support.search(
        parts, shapes, budget, problem.within, penalty=penalty, steps=steps
    )
    cut = tuple(
        jnp.where(part.layer.matrix(mask), part.weights, 0)
        for part, mask in zip(parts, first, strict=True)
    )
    plain, fitted = _refit(parts, (first, found.masks), (cut, found.weights))
    better = _weighed_error(parts, fitted) <= _weighed_error(parts, plain)
    masks, fitted = (
        tuple(jnp.where(better, a, b) for a, b in zip(*pair, strict=True))
        for pair in ((found.masks, first), (fitted, plain))
    )
    return conclude(
        problem,
        tuple(
            part.layer.leaf(w.astype(leaf.dtype), leaf.shape)
            for part, w, leaf in zip(parts, fitted, wbar, strict=True)
        ),
        masks,
        objective=jnp.stack([_error(parts, w) for w in (cut, fitted)]),
        iterations=found.iterations,
        raised=jnp.stack([part.system.raised for part in parts]).any(),
        details={
            "damping": jnp.stack([part.system.damping for part in parts]).max(),
            "penalty": found.penalty,
            "support_swaps": count_new(masks, first),
        },
    )


def _refit(
    parts: list[Part], masks: tuple[Leaves, Leaves], starts: tuple[Leaves, Leaves]
) -> tuple[Leaves, Leaves]:
    """Find the best weights on two supports, one after the other by one program."""

    def one(part: Part, masks: Leaves, starts: Leaves) -> jax.Array:
        def solve(given: tuple[jax.Array, jax.Array]) -> jax.Array:
            support = part.layer.matrix(given[0])
            return layer_cg.refit(part.system.hessian, part.weights, support, given[1])

        return jax.lax.map(solve, (jnp.stack(masks), jnp.stack(starts)))

    found = [
        one(part, two, given)
        for part, two, given in zip(
            parts, zip(*masks, strict=True), zip(*starts, strict=True), strict=True
        )
    ]
    return tuple(w[0] for w in found), tuple(w[1] for w in found)


def _error(parts: list[Part], weights: Leaves) -> jax.Array:
    errors = [part.error(w) for part, w in zip(parts, weights, strict=True)]
    return sum(errors[1:], start=errors[0])


def _weighed_error(parts: list[Part], weights: Leaves) -> jax.Array:
    """Evaluate the error that outputs and layers compete by."""
    errors = (
        jnp.sum(part.weighed_errors(w)) for part, w in zip(parts, weights, strict=True)
    )
    return sum(errors, start=jnp.zeros(()))
