"""The three small types of pruning: problem, method, solution.

A method of one's own is `by_score` of a criterion, or a `Method` of a function that
makes a solution of a problem.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.core.configuration import lenient
from swapjax.core.types import Leaves, Params
from swapjax.gradients.harm import Mark, harm
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.operator import GradientOperator
from swapjax.gradients.unit import in_unit
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.stacking import Stacking

Criterion = Literal["loss", "harm"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_Part = TypeVar("_Part")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "weights",
        "initial",
        "rows",
        "within",
        "layers",
        "params",
        "validation",
        "mark",
    ],
    meta_fields=["layout", "has_criterion"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """What a stage hands to a method.

    Attributes:
        weights: the prunable leaves as they are now, perhaps already sparse.
        initial: the same before the first stage.
        rows: the gradient rows at the current weights; None for a method that does
            without. A method sees them divided by their unit, the root mean square of
            their norms, so that the scale of the loss leaves it alone.
        within: bool leaves outside of which nothing may be kept, or None.
        layers: each leaf as a matrix with the second moment of what it reads, at the
            current weights; None for a method that does without. Of a method that needs
            some alone, None for leaves that could not be followed.
        params: the whole network as it is now; None for a method that does without.
        layout: the paths, shapes and places of the prunable leaves in params; None for
            a problem that was made by hand.
        validation: what judges; None for the loss of the examples of the rows.
        has_criterion: whether that measures something else than the loss.
        mark: what harm is measured against, see `loss`; None for the mean loss.
    """

    weights: Leaves
    initial: Leaves
    rows: GradientOperator | None = None
    within: Leaves | None = None
    layers: tuple[Layer | None, ...] | None = None
    params: Params | None = None
    layout: Layout | None = None
    validation: MatrixFreeRows | None = None
    has_criterion: bool = False
    mark: Mark | None = None

    def loss(self, leaves: Leaves) -> jax.Array:
        """Measure other weights by what a method may choose by; less is better.

        The mean loss of the examples that are there to judge, or of those of the rows;
        or another criterion, as `swapjax.gradients.harm` is one.

        Raises:
            ValueError: for a problem without either.
        """
        if self.validation is None:
            return rows_of(self).loss(leaves)
        if self.mark is None:
            return self.validation.loss(leaves)
        return harm(self.validation, leaves, self.mark)

    @property
    def stacking(self) -> Stacking:
        """The layers of each prunable leaf."""
        if self.layout is None:
            return Stacking.none(len(self.weights))
        return self.layout.stacking


class Solution(NamedTuple):
    """What a method makes of a problem.

    Attributes:
        weights: the leaves to use, zero off the support.
        masks: the support, bool leaves.
        objective: the value of what was minimised, one entry an iteration; the last
            is repeated where fewer were needed. None for a method that has none.
        iterations: how many there were.
        status: a `swapjax.Status`.
        details: what else a method has to tell, by name; scalars.
    """

    weights: Leaves
    masks: Leaves
    objective: jax.Array | None
    iterations: jax.Array
    status: jax.Array
    details: dict[str, jax.Array]


def rows_of(problem: Problem) -> GradientOperator:
    """Take the gradient rows of a problem.

    Raises:
        ValueError: if it has none.
    """
    return _need(problem.rows, "gradient rows")


def layers_of(problem: Problem) -> tuple[Layer, ...]:
    """Take the layers of a problem, of all leaves.

    Raises:
        ValueError: if it has none.
    """
    layers = some_layers_of(problem)
    if any(layer is None for layer in layers):
        raise ValueError("problem: this method needs the layers of all leaves")
    return cast("tuple[Layer, ...]", layers)


def some_layers_of(problem: Problem) -> tuple[Layer | None, ...]:
    """Take the layers of a problem, None for leaves that could not be followed.

    Raises:
        ValueError: if it has none.
    """
    return _need(problem.layers, "layers")


def params_of(problem: Problem) -> Params:
    """Take the whole network of a problem.

    Raises:
        ValueError: if it is not there.
    """
    return _need(problem.params, "params")


def layout_of(problem: Problem) -> Layout:
    """Take where the prunable leaves of a problem's network lie.

    Raises:
        ValueError: if it is not there.
    """
    return _need(problem.layout, "a layout")


def _need(part: _Part | None, what: str) -> _Part:
    """Take a part of a problem that a method cannot do without."""
    if part is None:
        raise ValueError(f"problem: this method needs {what}, got None")
    return part


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to prune: a pure function with a name and its settings.

    Two methods of the same name, settings and code are equal, so that compiled code is
    shared between them.

    Attributes:
        name: as on the command line.
        settings: pairs of hyper-parameter and value.
        solve: a pure function of a problem and a budget.
        needs_rows: whether it looks at gradients.
        needs_layers: whether it looks at what layers read; ``"some"`` if it takes None
            for leaves that enter no product that can be followed.
        needs_params: whether it looks at the leaves that are not prunable.
        identity: what else two equal methods must share: by default the code of solve
            if there are settings, which then tell all that it closes over, and
            otherwise solve itself.
        criterion: what its re-fits are judged by, unless `prune` is told: the
            ``"loss"``, or the ``"harm"``, see `swapjax.gradients.harm`.
        needs_shapes: whether it looks at the shapes of the leaves, or at their number.
            Without, it may get all as one vector, which compiles several times as fast.

    Raises:
        ValueError: for a name that is no text, a solve that is no function, settings
            that are no pairs or have no hash, and another criterion; when called, for
            what is no solution of the problem.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]
    solve: Callable[[Problem, Budget], Solution] = dataclasses.field(compare=False)
    needs_rows: bool = True
    needs_layers: bool | Literal["some"] = False
    needs_params: bool = False
    identity: Hashable = None
    needs_shapes: bool = True
    criterion: Criterion = "loss"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be text, got {self.name!r}")
        if not callable(self.solve):
            raise ValueError(
                f"solve must be a function of a problem and a budget, got "
                f"{self.solve!r}"
            )
        if self.criterion not in CRITERIA:
            raise ValueError(
                f"criterion must be 'loss' or 'harm', got {self.criterion!r}"
            )
        object.__setattr__(self, "settings", pairs_of(self.settings))
        if self.identity is None:
            identity = identity_of(self.solve, self.settings)
            object.__setattr__(self, "identity", identity)

    def __call__(self, problem: Problem, budget: Budget) -> Solution:
        """Prune. Pure; may be traced.

        Rows that are not in their unit yet are divided first, at the cost of a copy.
        """
        with lenient():
            if problem.rows is not None:
                problem = dataclasses.replace(problem, rows=in_unit(problem.rows))
            return _check_solution(self.name, self.solve(problem, budget), problem)

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings)
        return f"{self.name}({inner})"


def identity_of(function: Callable, settings: tuple) -> Hashable:
    """Find what two functions of equal methods share.

    A function made anew by the same lines is the same, if settings tell what it closes
    over. Other lines are another method: one is free to write them again.
    """
    while settings and isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__code__", function) if settings else function


def pairs_of(settings: Any) -> tuple[tuple[str, Any], ...]:
    """Check settings.

    Raises:
        ValueError: for other than pairs that have a hash.
    """
    try:
        if any(isinstance(pair, str) for pair in settings):
            raise ValueError
        settings = tuple((name, value) for name, value in settings)
        hash(settings)
    except (TypeError, ValueError):
        raise ValueError(
            f"settings must be pairs of a name and a value with a hash, got {settings}"
        ) from None
    return settings


def _check_solution(name: str, found: Any, problem: Problem) -> Solution:
    """Take what a method returned for a solution of the problem.

    Raises:
        ValueError: for anything else, and weights or masks of other leaves.
    """
    if not isinstance(found, Solution):
        raise ValueError(f"method {name}: must return a Solution, got {found!r}")
    wanted = (("weights", jnp.floating, "floats"), ("masks", jnp.bool_, "bools"))
    for what, kind, of in wanted:
        leaves = getattr(found, what)
        if not isinstance(leaves, Sequence) or len(leaves) != len(problem.weights):
            raise ValueError(
                f"method {name}: must return {what} of the {len(problem.weights)} "
                f"prunable leaves, got {leaves!r}"
            )
        check_leaves(f"{what} of method {name}", leaves, problem, kind, of)
    return found


def check_leaves(
    what: str, leaves: Sequence, problem: Problem, kind: Any, of: str
) -> None:
    """Raise unless arrays have the shapes of the weights, and a kind of entries.

    Raises:
        ValueError: naming the first that has not.
    """
    for i, (leaf, w) in enumerate(zip(leaves, problem.weights, strict=True)):
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if shape == w.shape and dtype is not None and jnp.issubdtype(dtype, kind):
            continue
        path = f"leaf {i}" if problem.layout is None else problem.layout.paths[i]
        got = repr(leaf) if dtype is None else f"{dtype} of shape {shape}"
        raise ValueError(f"{what}: {path} must be {of} of shape {w.shape}, got {got}")
