"""Optimal brain surgery on each layer, from what the layer reads."""

import functools
from typing import Any, Literal

from swapjax.core.checks import require_count
from swapjax.pruning.damping import check_dampings
from swapjax.pruning.method import Method
from swapjax.pruning.solvers.layer_parts import Weigh, check_weigh
from swapjax.pruning.solvers.layerwise import Order, solve


def layerwise_obs(
    *,
    order: Order = "auto",
    damping: float = 0.01,
    block: int = 128,
    weigh: Weigh = "layer",
    reference: Literal["current", "initial"] = "current",
    refit: bool = True,
) -> Method:
    """Prune each layer so that its outputs stay where they are (layer-wise OBS).

    For networks too large for a model of the whole: a layer is described by the second
    moment H of what it reads alone, which one forward pass measures. Minimises the
    mean squared change of its outputs, ``sum_o (w_o - wbar_o)^T H (w_o - wbar_o)``.

    ============= ==================================================================
    order         which weights go
    ============= ==================================================================
    ``"greedy"``  Of every output one after the other, always the one that costs least
                  with the others re-fitted (Optimal Brain Compression, Frantar and
                  Alistarh, NeurIPS 2022, arXiv:2208.11580). O(outputs * inputs^3)
                  time.
    ``"columns"`` Input by input for all outputs at once, making up for each by those
                  that come after (SparseGPT, Frantar and Alistarh, ICML 2023,
                  arXiv:2301.00774). O(inputs^3 + inputs^2 * outputs) time.
    ``"auto"``    Greedy for layers up to ``outputs * inputs^3 = 3e10``, and columns
                  for larger ones.
    ============= ==================================================================

    Layers that share a budget compete by how fast their errors rise along the greedy
    path, or between fifteen sparsities that the column order is tried at.

    Args:
        order: as above.
        damping: added to the diagonal of H, in units of its mean. Where it leaves H
            singular it is raised tenfold until it does not; the status then says so
            and details say what was used.
        block: inputs that the column order chooses among at a time. How many entries
            a block keeps is settled before, by ``w^2 / [H^-1]_jj``.
        weigh: what the error of an output counts where outputs and layers compete for
            one budget: one over the mean square of what the layer gives (``"layer"``)
            or of the output (``"output"``), which makes errors relative: under batch
            norm the scale of a layer means nothing; the same for all (``"equal"``),
            which may empty a layer there; or the mean squared gradient of the loss in
            it (``"fisher"``), which takes gradients as well and helps or harms,
            depending on the network and the allocation.
        reference: wbar: the weights at the start of the stage, or of the run.
        refit: whether to solve for the best weights on the support that the column
            order leaves, as the greedy order always does: output by output up to
            ``outputs * inputs^3 = 3e10``, and by conjugate gradients for all outputs
            at once in larger layers.

    Returns:
        The method, for `swapjax.prune`. An N:M pattern is obeyed at every step where
        its groups lie along a layer's inputs; along its outputs it is settled before
        by the same scores. Its details are ``damping``, the largest used, in units of
        the mean of the diagonal of H; and ``greedy_layers``, how many layers took the
        greedy order.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    if order not in ("auto", "greedy", "columns"):
        raise ValueError(f"order must be 'auto', 'greedy' or 'columns', got {order!r}")
    dampings = check_dampings(damping)
    if len(dampings) > 1:
        raise ValueError(f"damping must be one number here, got {damping}")
    require_count("block", block)
    check_weigh(weigh)
    if reference not in ("current", "initial"):
        raise ValueError(f"reference must be 'current' or 'initial', got {reference!r}")
    settings: dict[str, Any] = {"order": order, "damping": dampings[0]}
    settings |= {"block": block, "weigh": weigh, "reference": reference, "refit": refit}
    return Method(
        name="layerwise-obs",
        settings=tuple(settings.items()),
        solve=functools.partial(solve, **settings),
        needs_rows=weigh == "fisher",
        needs_layers=True,
        # No label is looked at but by the judge, and many of a loss may be wrong.
        criterion="harm",
    )
