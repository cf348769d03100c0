"""Methods that rank entries and keep the best as they are."""

from collections.abc import Callable

import jax.numpy as jnp

from swapjax import scores
from swapjax.masks import apply_masks
from swapjax.oneshot.problem import Method, Problem, Solution, rows_of
from swapjax.selection import Budget, select
from swapjax.types import Leaves, Status


def magnitude() -> Method:
    """Keep the largest weights as they are: the control of every comparison.

    Takes O(p) time and no gradients.
    """
    return _ranked("magnitude", lambda p: scores.magnitude(p.weights), needs_rows=False)


def saliency() -> Method:
    """Keep the entries with the largest ``|w g|``, g the gradient of the mean loss.

    The first-order term of the loss (Mozer and Smolensky, NIPS 1988; SNIP, ICLR 2019,
    scores untrained networks so). In a trained network g is mostly the noise of the
    examples drawn. Takes one reverse pass, and O(p) memory with matrix-free rows.
    """

    def score(problem: Problem) -> Leaves:
        rows = rows_of(problem)
        return scores.saliency(
            problem.weights, rows.pull_back(jnp.full(rows.n, 1 / rows.n))
        )

    return _ranked("saliency", score)


def obd() -> Method:
    """Keep the entries with the largest ``w^2 F_qq``, F the empirical Fisher.

    Optimal Brain Damage (LeCun et al., NIPS 1989) with the diagonal of the Fisher for
    that of the Hessian. Weights are kept as they are. Takes O(n p) time, and O(p)
    memory with matrix-free rows.
    """

    def score(problem: Problem) -> Leaves:
        squares = rows_of(problem).mean_squares()
        return scores.fisher_diagonal(problem.weights, squares)

    return _ranked("obd", score)


def keep(problem: Problem, mask: Leaves) -> Solution:
    """The weights on a support as they are, as a solution."""
    return Solution(
        weights=apply_masks(problem.weights, mask),
        masks=mask,
        objective=jnp.full(1, jnp.nan),
        iterations=jnp.zeros((), jnp.int32),
        status=jnp.asarray(Status.CONVERGED, jnp.int32),
        details={},
    )


def _ranked(
    name: str, score: Callable[[Problem], Leaves], *, needs_rows: bool = True
) -> Method:
    def solve(problem: Problem, budget: Budget) -> Solution:
        ranked = score(problem)
        solution = keep(problem, select(ranked, budget, problem.within))
        finite = jnp.stack([jnp.all(jnp.isfinite(r)) for r in ranked]).all()
        status = jnp.where(finite, solution.status, Status.NOT_FINITE)
        return solution._replace(status=status.astype(jnp.int32))

    return Method(name, (), solve, needs_rows=needs_rows)
