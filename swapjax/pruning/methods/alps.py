"""ALPS: each layer's outputs kept, the support by ADMM, the weights by PCG."""

import functools
from typing import Any, Literal

from swapjax.core.checks import require_count, take_amount
from swapjax.pruning.damping import check_dampings
from swapjax.pruning.method import Method
from swapjax.pruning.solvers.alps import solve
from swapjax.pruning.solvers.layer_parts import Weigh, check_weigh


def alps(
    *,
    damping: float = 0.01,
    penalty: float = 0.1,
    steps: int = 300,
    weigh: Weigh = "layer",
    reference: Literal["current", "initial"] = "current",
) -> Method:
    """Prune layer by layer, the support of all weights at once, by ADMM (ALPS).

    Meng, Behdin, Wang and Mazumder, NeurIPS 2024, arXiv:2406.07831. Minimises what
    `layerwise_obs` does, the mean squared change of the outputs of each layer. Weights
    and a copy of them that keeps to the budget are drawn together by a penalty, which
    rises the faster the more of the support still moves, until nothing of it does. Then
    conjugate gradients find the best weights on it. One forward pass, one decomposition
    into eigenvectors a layer, and a few dozen products with it.

    Where layers compete for one budget, they do so throughout: what the copies keep is
    chosen among the entries of all layers.

    Args:
        damping: added to the diagonal of H, in units of its mean. Where it leaves H
            singular it is raised tenfold until it does not; the status then says so
            and details say what was used.
        penalty: rho at the beginning, beside a diagonal of H that is scaled to one. It
            rises by 30 %, 20 % or 10 % every three iterations, as at least a tenth, one
            in 200 or less of the entries that are kept have changed.
        steps: the most iterations.
        weigh: what the error of an output counts where outputs and layers compete for
            one budget, as in `layerwise_obs`.
        reference: wbar: the weights at the start of the stage, or of the run.

    Returns:
        The method, for `swapjax.prune`. Patterns of any kind are obeyed at every
        iteration. If the support that single saliencies choose, ``w^2 / [H^-1]_jj``,
        has less error once it is re-fitted, it is taken. Details are ``damping``, the
        largest used, in units of the mean of the diagonal of H; ``penalty``, rho at the
        end; and ``support_swaps``, the entries kept that saliency would not have.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    dampings = check_dampings(damping)
    if len(dampings) > 1:
        raise ValueError(f"damping must be one number here, got {damping}")
    penalty = take_amount("penalty", penalty, zero=False)
    require_count("steps", steps)
    check_weigh(weigh)
    if reference not in ("current", "initial"):
        raise ValueError(f"reference must be 'current' or 'initial', got {reference!r}")
    settings: dict[str, Any] = {"damping": dampings[0], "penalty": penalty}
    settings |= {"steps": steps, "weigh": weigh, "reference": reference}
    return Method(
        name="alps",
        settings=tuple(settings.items()),
        solve=functools.partial(solve, **settings),
        needs_rows=weigh == "fisher",
        needs_layers=True,
        # No label is looked at but by the judge, and many of a loss may be wrong.
        criterion="harm",
    )
