"""Methods that keep the largest of a score, weights as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves, Status
from swapjax.pruning.method import (
    Method,
    Problem,
    Solution,
    check_leaves,
    identity_of,
    pairs_of,
)
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks


def by_score(
    name: str,
    score: Callable[[Problem], Sequence[jax.Array]],
    *,
    settings: tuple[tuple[str, Any], ...] = (),
    needs_rows: bool = True,
    needs_layers: bool = False,
    needs_params: bool = False,
    needs_shapes: bool = True,
) -> Method:
    """Make a method of a criterion: the largest scores stay, weights as they are.

    Args:
        name: of the method.
        score: a function of a `Problem` that is traced once: one array of floats for
            each of ``problem.weights``, of its shape; large means keep. Scores compete
            as the plan says: over all leaves, within a leaf, within a pattern.
        settings: pairs of hyper-parameter and value that the score depends on. Methods
            of one name, the same settings and the same code share what is compiled;
            without settings they do so only if score is the same function.
        needs_rows: whether score looks at ``problem.rows``, the gradients.
        needs_layers: whether it looks at ``problem.layers``, what layers read.
        needs_params: whether it looks at ``problem.params``, the whole network.
        needs_shapes: whether it looks at shapes or number of weights; see `Method`.

    Returns:
        The method, for `swapjax.prune`. Its status says so where scores are not finite.

    Raises:
        ValueError: for a name that is no text, a score that is no function, and
            settings that are no pairs or have no hash; when called, for scores that
            do not belong to the weights.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> from swapjax.pruning import by_score
        >>> def root(problem):
        ...     squares = problem.rows.mean_squares()
        ...     return [abs(w) * f**0.5 for w, f in zip(problem.weights, squares)]
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}
        >>> x = jax.random.normal(jax.random.key(1), (50, 8))
        >>> pruned = swapjax.prune(
        ...     lambda p, x: jnp.mean((x @ p["kernel"] - 1) ** 2), params, x,
        ...     sparsity=0.5, method=by_score("root", root), samples=50,
        ...     key=jax.random.key(2))
        >>> int(jnp.sum(pruned.masks["kernel"]))
        12
    """
    if not callable(score):
        raise ValueError(f"score must be a function of a problem, got {score!r}")
    settings = pairs_of(settings)

    def solve(problem: Problem, budget: Budget) -> Solution:
        try:
            found = _check_scores(name, score(problem), problem)
        except AttributeError as e:
            hint = "needs_rows, needs_layers and needs_params say what a problem holds"
            raise ValueError(f"score of {name}: {e}; {hint}") from e
        mask = select(found, budget, problem.within)
        finite = jnp.stack([jnp.all(jnp.isfinite(f)) for f in found]).all()
        status = jnp.where(finite, Status.CONVERGED, Status.NOT_FINITE)
        return Solution(
            apply_masks(problem.weights, mask), mask, objective=None, details={},
            iterations=jnp.zeros((), jnp.int32), status=status.astype(jnp.int32),
        )  # fmt: skip

    identity = identity_of(score, settings)
    try:
        hash(identity)
    except TypeError:
        raise ValueError(f"score must have a hash, got {score!r}") from None
    needs = needs_rows, needs_layers, needs_params
    return Method(name, settings, solve, *needs, identity, needs_shapes)


def _check_scores(name: str, found: Any, problem: Problem) -> Leaves:
    """Take what a score returned for leaves.

    Raises:
        ValueError: for another number of leaves, other shapes, and other than floats.
    """
    weights = problem.weights
    if not isinstance(found, Sequence) or len(found) != len(weights):
        got = f"{len(found)} of them" if isinstance(found, Sequence) else repr(found)
        raise ValueError(
            f"score of {name}: must return one array for each of the {len(weights)} "
            f"prunable leaves, got {got}"
        )
    check_leaves(f"score of {name}", found, problem, jnp.floating, "floats")
    return tuple(found)
