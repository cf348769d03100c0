"""Either a sparsity or a plan: what functions take that prune."""

from fractions import Fraction
from typing import Any

from swapjax.core.types import LossFn, Params
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.leaf_rules import exact_sparsity
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planning import plan
from swapjax.sparsity.unit_patterns import UnitPattern


def require_one(sparsity: float | Fraction | None, given: Plan | None) -> None:
    """Raise unless either a sparsity or a plan is given, before there are params.

    Args:
        sparsity: of all prunable leaves, or None.
        given: a plan, or None.

    Raises:
        ValueError: for both or neither, for a sparsity that is not a number in [0, 1),
            and for a plan that `plan` has not made.
    """
    if isinstance(sparsity, Plan):
        raise ValueError("sparsity: got a Plan; hand it over as plan=")
    if isinstance(sparsity, NM | UnitPattern):
        raise ValueError(
            f"sparsity must be a number in [0, 1), got {sparsity!r}; hand a pattern to "
            "swapjax.plan(params, pattern=...) and its plan to plan="
        )
    if given is not None and not isinstance(given, Plan):
        raise ValueError(f"plan must be what swapjax.plan makes, got {given!r}")
    if (sparsity is None) == (given is None):
        got = "neither" if given is None else f"sparsity={sparsity} and a plan"
        raise ValueError(f"sparsity or plan: give one of the two, got {got}")
    if sparsity is not None:
        exact_sparsity(sparsity, "sparsity")


def planned(
    params: Params,
    sparsity: float | Fraction | None,
    given: Plan | None,
    allocation: Allocation = "global",
    loss_fn: LossFn | None = None,
    batch: Any = None,
) -> Plan:
    """Take the plan that was given, or make one for a sparsity.

    Args:
        params: what to prune, of the paths that the plan was made for.
        sparsity: of all prunable leaves; None where a plan is given.
        given: a plan, which is laid onto params; None where a sparsity is given.
        allocation: for a sparsity, as `plan` takes it.
        loss_fn: for a sparsity, that tells roles; None for those that names tell.
        batch: that loss_fn takes, or its shapes and dtypes.

    Raises:
        ValueError: as `require_one` and `plan` do.
    """
    require_one(sparsity, given)
    if given is not None:
        return given.onto(params)
    return plan(params, sparsity, allocation=allocation, loss_fn=loss_fn, batch=batch)
