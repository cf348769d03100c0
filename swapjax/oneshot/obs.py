"""The layer-wise methods: optimal brain surgery on each layer, and Wanda."""

import functools
import math
from typing import Any, Literal

from swapjax import scores
from swapjax.oneshot.layerwise import Order, Weigh, solve
from swapjax.oneshot.problem import Method, Problem, Solution, layers_of
from swapjax.oneshot.scored import keep
from swapjax.selection import Budget, select


def layerwise_obs(
    *,
    order: Order = "auto",
    damping: float = 0.01,
    block: int = 128,
    weigh: Weigh = "equal",
    reference: Literal["current", "initial"] = "current",
    refit: bool | None = None,
) -> Method:
    """Prune each layer so that its outputs stay where they are (layer-wise OBS).

    For networks too large for a model of the whole: a layer is described by the second
    moment H of what it reads alone, which one forward pass measures. Minimises the
    mean squared change of its outputs, ``sum_o (w_o - wbar_o)^T H (w_o - wbar_o)``.

    ============= ==================================================================
    order         which weights go
    ============= ==================================================================
    ``"greedy"``  Of every output one after the other, always the one that costs least
                  with the others re-fitted (Optimal Brain Compression,
                  arXiv:2208.11580). O(outputs * inputs^3) time.
    ``"columns"`` Input by input for all outputs at once, making up for each by those
                  that come after (SparseGPT, arXiv:2301.00774). O(inputs^3 +
                  inputs^2 * outputs) time.
    ``"auto"``    Greedy for layers up to ``outputs * inputs^3 = 3e10``, some ten
                  seconds on one core, and columns for larger ones.
    ============= ==================================================================

    Args:
        order: as above.
        damping: added to the diagonal of H, in units of its mean. Where it leaves H
            singular it is raised tenfold until it does not; the status then says so
            and details say what was used.
        block: inputs that the column order chooses among at a time. How many entries
            a block keeps is settled before, by ``w^2 / [H^-1]_jj``.
        weigh: what the error of an output counts where outputs and layers compete for
            one budget: the same for all, or the mean squared gradient of the loss in
            it (``"fisher"``), which takes gradients as well.
        reference: wbar: the weights at the start of the stage, or of the run.
        refit: whether to solve for the best weights on the support that the column
            order leaves. By default up to ``outputs * inputs^3 = 3e11``. The greedy
            order always does.

    Returns:
        The method, for `swapjax.prune`. An N:M pattern is obeyed at every step where
        its groups lie along a layer's inputs; along its outputs it is settled before
        by the same scores.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    if order not in ("auto", "greedy", "columns"):
        raise ValueError(f"order must be 'auto', 'greedy' or 'columns', got {order!r}")
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be 0 or more, got {damping}")
    if block < 1:
        raise ValueError(f"block must be 1 or more, got {block}")
    if weigh not in ("equal", "fisher"):
        raise ValueError(f"weigh must be 'equal' or 'fisher', got {weigh!r}")
    if reference not in ("current", "initial"):
        raise ValueError(f"reference must be 'current' or 'initial', got {reference!r}")
    settings: dict[str, Any] = {"order": order, "damping": float(damping)}
    settings |= {"block": block, "weigh": weigh, "reference": reference, "refit": refit}
    return Method(
        name="layerwise-obs",
        settings=tuple(settings.items()),
        solve=functools.partial(solve, **settings),
        needs_rows=weigh == "fisher",
        needs_layers=True,
    )


def wanda(*, per_output: bool = False) -> Method:
    """Keep what is large times how much it reads; kept weights stay as they are.

    Scores ``|w_ij| sqrt(H_ii)`` with H the second moment of what the layer reads
    (arXiv:2306.11695). One forward pass, no gradients and nothing to solve.

    Args:
        per_output: whether each output keeps the same share of its weights, as in the
            paper. By default outputs compete, and layers too where the plan lets them.

    Returns:
        The method, for `swapjax.prune`.
    """

    def solve(problem: Problem, budget: Budget) -> Solution:
        layers = layers_of(problem)
        ranked = scores.wanda(problem.weights, layers, per_output=per_output)
        return keep(problem, select(ranked, budget, problem.within))

    return Method(
        "wanda", (("per_output", per_output),), solve, False, needs_layers=True
    )
