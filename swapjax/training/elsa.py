"""ADMM whose projection goes by what Adam knows of the curvature."""

import optax

from swapjax.sparsity.plan import Plan
from swapjax.training.admm_step import Penalty, transformation


def elsa(
    optimizer: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    steps: int,
    penalty: Penalty | None = None,
    every: int = 32,
) -> optax.GradientTransformationExtraArgs:
    """Do as `admm` does, and weigh what the sparse copy loses by Adam's second moment.

    ELSA (Lee et al., ICLR 2026, arXiv:2510.01650): z minimises
    ``sum_q v_q (x_q + u_q - z_q)^2`` under the plan, v being the running mean of
    squared gradients that Adam keeps, the diagonal of an empirical Fisher matrix. So
    the entries with the largest ``sqrt(v) |x + u|`` stay, in the cut as well. As in the
    authors' code v is that of the gradient with the penalty.

    The first z, before there are gradients, goes by magnitude.

    Args:
        optimizer: with Adam, or another that keeps one such mean as ``nu``.
        sparsity: as `admm` takes it, like all that follows.
        plan: instead of a sparsity.
        steps: updates in all.
        penalty: the same at all updates, as the authors' 0.01 in 4,096 steps of Adam at
            2e-4; or a schedule. By default 78 / steps. One that rises while rates fall
            comes too late for Adam, whose steps do not grow with it.
        every: updates from one change of z and u to the next.

    Returns:
        A transformation like that of `admm`. ``init`` raises ValueError for an
        optimizer that keeps no second moment, or several.

    Raises:
        ValueError: as `admm` does.

    Example:
        >>> import optax, swapjax
        >>> tx = swapjax.elsa(optax.adamw(1e-3), sparsity=0.9, steps=1000)
    """
    return transformation(optimizer, sparsity, plan, steps, penalty, every, weighs=True)
