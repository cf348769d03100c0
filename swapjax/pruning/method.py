"""The three small types of post-training pruning: problem, method, solution."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from swapjax.activations.layer import Layer
from swapjax.core.types import Leaves, Params
from swapjax.gradients.operator import GradientOperator
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "initial", "rows", "within", "layers", "params"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """What a stage hands to a method.

    Attributes:
        weights: the prunable leaves as they are now, perhaps already sparse.
        initial: the same before the first stage.
        rows: the gradient rows at the current weights; None for a method that does
            without.
        within: bool leaves outside of which nothing may be kept, or None.
        layers: each leaf as a matrix with the second moment of what it reads, at the
            current weights; None for a method that does without.
        params: the whole network as it is now; None for a method that does without.
        layout: where the prunable leaves lie among those of params; None for a method
            that does without.
    """

    weights: Leaves
    initial: Leaves
    rows: GradientOperator | None = None
    within: Leaves | None = None
    layers: tuple[Layer, ...] | None = None
    params: Params | None = None
    layout: Layout | None = None


class Solution(NamedTuple):
    """What a method makes of a problem.

    Attributes:
        weights: the leaves to use, zero off the support.
        masks: the support, bool leaves.
        objective: the value of what was minimised, one entry an iteration; the last
            is repeated where fewer were needed. NaN for a method that has none.
        iterations: how many there were.
        status: a `swapjax.Status`.
        details: what else a method has to tell, by name; scalars.
    """

    weights: Leaves
    masks: Leaves
    objective: jax.Array
    iterations: jax.Array
    status: jax.Array
    details: dict[str, jax.Array]


def rows_of(problem: Problem) -> GradientOperator:
    """The gradient rows of a problem.

    Raises:
        ValueError: if it has none.
    """
    if problem.rows is None:
        raise ValueError("problem: this method needs gradient rows, got None")
    return problem.rows


def layers_of(problem: Problem) -> tuple[Layer, ...]:
    """The layers of a problem.

    Raises:
        ValueError: if it has none.
    """
    if problem.layers is None:
        raise ValueError("problem: this method needs layers, got None")
    return problem.layers


def params_of(problem: Problem) -> Params:
    """The whole network of a problem.

    Raises:
        ValueError: if it is not there.
    """
    if problem.params is None:
        raise ValueError("problem: this method needs params, got None")
    return problem.params


def layout_of(problem: Problem) -> Layout:
    """Take where the prunable leaves of a problem's network lie.

    Raises:
        ValueError: if it is not there.
    """
    if problem.layout is None:
        raise ValueError("problem: this method needs a layout, got None")
    return problem.layout


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to prune: a pure function with a name and its settings.

    Two methods of the same name and settings are equal, so that compiled code is
    shared between them.

    Attributes:
        name: as on the command line.
        settings: pairs of hyper-parameter and value.
        solve: the function of a problem and a budget.
        needs_rows: whether it looks at gradients.
        needs_layers: whether it looks at what layers read.
        needs_params: whether it looks at the leaves that are not prunable.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]
    solve: Callable[[Problem, Budget], Solution] = dataclasses.field(compare=False)
    needs_rows: bool = True
    needs_layers: bool = False
    needs_params: bool = False

    def __call__(self, problem: Problem, budget: Budget) -> Solution:
        """Prune. Pure; may be traced."""
        return self.solve(problem, budget)

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings)
        return f"{self.name}({inner})"


def check_dampings(damping: float | tuple[float, ...]) -> tuple[float, ...]:
    """One or several dampings, as a tuple.

    Raises:
        ValueError: for none, other than numbers, and values below 0 or not finite.
    """
    try:
        dampings = tuple(float(d) for d in np.atleast_1d(np.asarray(damping)))
    except (TypeError, ValueError):
        raise ValueError(f"damping must be numbers, got {damping!r}") from None
    if not dampings or not all(math.isfinite(d) and d >= 0 for d in dampings):
        raise ValueError(f"damping must be 0 or more, got {damping}")
    return dampings
