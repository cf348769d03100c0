"""A method run on a problem: compiled once, and its solution checked."""

import jax

from swapjax.core import counts
from swapjax.core.compiled import Compiled
from swapjax.core.types import Leaves
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.sparsity.budget import Budget


def solve(
    method: Method, problem: Problem, budget: Budget, functions: tuple = ()
) -> Solution:
    """Prune, compiled.

    Args:
        method: how.
        problem: what.
        budget: how far.
        functions: that the rows of the problem depend on.
    """
    owners = (*_owners(method), *functions)
    return _solve((method,), problem, budget, owners=owners)


def _owners(method: Method) -> tuple:
    """Tell what compiled code of a method depends on, functions among it."""
    names = tuple(name for name, _ in method.settings)
    values = (getattr(v, "function", v) for _, v in method.settings)
    needs = method.needs_rows, method.needs_layers, method.needs_params
    return method.name, names, *values, needs, method.needs_shapes, method.identity


@Compiled
def _solve(method: Method, problem: Problem, budget: Budget) -> Solution:
    """Prune; one program serves all stages, and all methods of the same settings."""
    return method(problem, budget)


def check_support(method: Method, solution: Solution, budget: Budget) -> None:
    """Raise for a solution that keeps more than the budget, or weights off its support.

    Raises:
        ValueError: naming the method.
    """
    parts = _count(solution.masks, solution.weights)
    kept, loose = (sum(map(counts.total, part)) for part in parts)
    wanted = counts.total(budget.keep)
    if kept > wanted:
        raise ValueError(
            f"method {method.name}: keeps {kept:,} entries, more than the {wanted:,} "
            "of its budget; choose them with swapjax.select"
        )
    if loose:
        raise ValueError(
            f"method {method.name}: {loose:,} weights are not zero where masks are "
            "False"
        )


@jax.jit
def _count(masks: Leaves, weights: Leaves) -> tuple[Leaves, Leaves]:
    """Count the entries that are kept, and the weights besides that are not zero.

    In parts: those of all leaves together may be more than an int32 holds.
    """
    pairs = zip(masks, weights, strict=True)
    loose = tuple(counts.partial_counts(~m & (w != 0)) for m, w in pairs)
    return tuple(map(counts.partial_counts, masks)), loose
