"""Either a sparsity or a plan: what functions take that prune."""

import warnings
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.types import LossFn, Params
from swapjax.roles.find import BY_HAND, find_roles
from swapjax.roles.program import trace_roles
from swapjax.roles.program.uses import SOURCE
from swapjax.sparsity.allocation import Allocation, some
from swapjax.sparsity.leaf_rules import exact_sparsity
from swapjax.sparsity.output_heads import is_of_head
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planning import plan
from swapjax.sparsity.unit_patterns import UnitPattern

_SURE = (BY_HAND, SOURCE)  # what tells roles without a guess


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
        loss_fn: whose program tells roles; None for those that names tell.
        batch: that loss_fn takes, or its shapes and dtypes.

    Raises:
        ValueError: as `require_one` and `plan` do, and for a plan that names misled, as
            the program of the loss tells.

    Warns of a leaf with the name of a matrix that its program does not make one.
    """
    require_one(sparsity, given)
    if given is not None:
        laid = given.onto(params)
        if loss_fn is not None:
            _require_told_rightly(laid, params, loss_fn, batch)
        return laid
    made = plan(params, sparsity, allocation=allocation, loss_fn=loss_fn, batch=batch)
    if loss_fn is not None:
        _warn_of_lost(made, params)
    return made


def _warn_of_lost(made: Plan, params: Params) -> None:
    """Warn of leaves that are left out, though their names are those of matrices.

    The program may be one that is not followed, and the sparsity is that of the others.
    """
    leaves = jax.tree.leaves(params)
    told = zip(trees.paths(params), leaves, find_roles(params), strict=True)
    matrices = {path for path, leaf, role in told if role.axes and np.size(leaf)}
    lost = [
        f"{path}, which {why}"
        for path, why in made.left_out
        if path in matrices and not is_of_head(why)
    ]
    if lost:
        # At whoever calls prune, which has this from where it places its arguments.
        warnings.warn(
            f"params: not pruned, though called as matrices are: {some(lost)}; to "
            "prune them as well, hand over swapjax.plan(..., include=..., axes=...)",
            stacklevel=5,
        )


def _require_told_rightly(
    given: Plan, params: Params, loss_fn: LossFn, batch: Any
) -> None:
    """Raise for a plan that was made by names, where the program tells otherwise.

    What counts are the axes of layers, and those of inputs where patterns lie on them.
    """
    layout = given.layout
    if layout.treedef != jax.tree.structure(params):
        return  # which raises where the plan is used
    named = [i for i, role in enumerate(layout.roles) if role.reason not in _SURE]
    told = trace_roles(loss_fn, params, batch) if named else ()
    for i in named:
        path, role = layout.paths[i], layout.roles[i]
        traced = told[layout.positions[i]]
        if traced.kind != "matrix":
            continue
        pattern = given.patterns[i]
        wrong = role.stack != traced.stack or (
            pattern is not None and pattern.is_told and role.inputs != traced.inputs
        )
        if wrong:
            raise ValueError(
                f"plan: takes the axes of {path} for {role.axes or 'unknown'}, by its "
                f"name, where the program of loss_fn has {traced.axes}; make the plan "
                "with loss_fn= and batch=, or with axes="
            )
