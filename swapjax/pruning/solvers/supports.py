"""The supports that a regression tries, each by its rule."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.method import Problem
from swapjax.pruning.solvers import layer_order
from swapjax.pruning.solvers.candidates import stack
from swapjax.pruning.solvers.hard_thresholding import iht
from swapjax.pruning.solvers.settings import Held
from swapjax.pruning.solvers.targets import State, Target
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select

Support = Literal["magnitude", "obd", "kfac", "obs", "layerwise", "iht"]

_PLAIN: tuple[Support, ...] = ("magnitude", "obd")
_HELD: tuple[Support, ...] = ("magnitude", "obs", "layerwise")


def check_support(
    support: Support | tuple[Support, ...] | None, held: bool
) -> tuple[Support, ...]:
    """Check rules, and name those that are tried by default.

    Args:
        support: one or several; None for the default.
        held: whether what layers read is known.

    Raises:
        ValueError: for none, and for others.
    """
    if support is None:
        return _HELD if held else _PLAIN
    rules = (support,) if isinstance(support, str) else tuple(support)
    known = {"magnitude", "obd", "iht"}
    if held:
        known |= {"kfac", *get_args(layer_order.Rule)}
    if not rules or set(rules) - known:
        raise ValueError(
            "support must be of 'magnitude', 'obd' and 'iht', and 'kfac', 'obs' and "
            f"'layerwise' with ridge='kfac', one or several, got {support!r}"
        )
    return rules


def choose(
    problem: Problem,
    rows: GradientOperator,
    budget: Budget,
    rules: tuple[Support, ...],
    held: Held | None,
    *,
    wbar: Leaves,
    y: jax.Array,
    target: Target,
    state: State,
    damping: float,
    iterations: int,
    tolerance: float,
) -> tuple[Leaves, jax.Array]:
    """Choose a support by each of some rules.

    Args:
        problem: of the stage.
        rows: the operator G.
        budget: what is kept.
        rules: checked.
        held: T, where a rule asks for it.
        wbar: the reference, for ``"iht"`` as all that follows.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        state: as the target prepared it for y.
        damping: lambda.
        iterations: the most steps.
        tolerance: the relative change of the objective at which it stops.

    Returns:
        The supports, stacked, and how many entries iht exchanged of each.
    """
    asked = [rule for rule in get_args(layer_order.Rule) if rule in rules]
    ordered: dict[Support, Leaves] = {}
    if asked:
        assert held is not None
        of = held.kronecker, problem.weights, problem.within, budget
        ordered = dict(zip(asked, layer_order.scores(*of, asked), strict=True))

    def one(rule: Support) -> tuple[Leaves, jax.Array]:
        known = rule in ordered
        ranks = ordered[rule] if known else _rank(problem, rows, rule, held)
        mask = select(ranks, budget, problem.within)
        if rule != "iht":
            return mask, jnp.zeros((), jnp.int32)
        path = iht(
            rows, mask, problem.weights, wbar, y, target, state, budget,
            damping=jnp.asarray(damping, y.dtype), iterations=iterations,
            tolerance=tolerance, within=problem.within,
        )  # fmt: skip
        return path.support, path.swaps

    found: tuple[Leaves, jax.Array] = stack([one(rule) for rule in rules])
    return found


def _rank(
    problem: Problem, rows: GradientOperator, rule: Support, held: Held | None
) -> Leaves:
    if rule == "kfac":
        assert held is not None
        return scores.fisher_diagonal(problem.weights, held.kronecker.diagonal())
    if rule == "obd":
        return scores.fisher_diagonal(problem.weights, rows.mean_squares())
    return scores.magnitude(problem.weights)
