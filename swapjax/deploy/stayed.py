"""Why places that are zero in a leaf stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from swapjax.deploy.constants import Constants
from swapjax.deploy.layers import Choice
from swapjax.roles.ties import Ties

_TIED = "is tied to what is not zero"
_BECOMES = "is not zero where it is read, as after a norm has subtracted a mean"
_CONSTANT = "is a constant other than zero, which no bias that follows can take over"
_LAST = "is the last that is left along its axis"


def why_stayed(
    ties: Ties, leaves: Sequence[Any], constants: Constants, dead: set[int]
) -> dict[str, str]:
    """Tell why what is zero along all other axes of a leaf was not removed.

    Args:
        ties: of the function.
        leaves: of params.
        constants: what is known with these.
        dead: units that are removed.

    Returns:
        Reasons after "it", by leaf, as in ``"conv/kernel[axis 3]"``.
    """
    level, filled = _level_units(ties, constants), _filled_units(ties, leaves)
    found = {}
    for leaf, (path, array) in enumerate(zip(ties.paths, leaves, strict=True)):
        axes = ties.axes(leaf)
        if len(axes) < 2:
            continue
        live = np.asarray(array) != 0
        if not live.any():
            continue
        for axis, labels in enumerate(axes):
            empty = ~live.any(axis=tuple(i for i in range(len(axes)) if i != axis))
            left = [int(u) for u in labels[empty] if int(u) not in dead]
            if not left:
                continue
            why = dict.fromkeys(
                _LAST
                if all(int(u) in dead or u == unit for u in labels)
                else _CONSTANT
                if unit in level
                else _TIED
                if unit in filled
                else _BECOMES
                for unit in dict.fromkeys(left)
                if unit
            )
            if 0 in left:
                why.update(dict.fromkeys(ties.reasons(leaf, axis)))
            found[f"{path}[axis {axis}]"] = (
                f"{len(left)} of {len(labels)} are zero and stay: each "
                f"{', or '.join(why)}"
            )
    return found


def _filled_units(ties: Ties, leaves: Sequence[Any]) -> set[int]:
    """List units that have entries other than zero in some leaf."""
    found: set[int] = set()
    for leaf, array in enumerate(leaves):
        axes = ties.axes(leaf)
        live = np.asarray(array) != 0 if axes else np.zeros(())
        for axis, labels in enumerate(axes):
            others = tuple(i for i in range(len(axes)) if i != axis)
            found.update(np.unique(labels[live.any(axis=others)]).tolist())
    return found


def uneven(layers: Sequence[Choice]) -> dict[str, str]:
    """Tell where layers of a stack have more dead units than others, by group."""
    return {
        choice.group.name: (
            f"from {min(choice.counts)} to {max(choice.counts)} of {len(choice.group)} "
            "are dead in each layer, and all layers of a stack keep as many"
        )
        for choice in layers
        if min(choice.counts) < max(choice.counts)
    }


def _level_units(ties: Ties, constants: Constants) -> set[int]:
    """List units that are constants, not all of them zero, where a sum reads them."""
    found: set[int] = set()
    for site in ties.sites:
        operand = constants.operands[site.step.makes[0]][site.which]
        for axis in site.axes:
            labels = ties.labels[site.step.reads[site.which]][axis]
            others = tuple(i for i in range(operand.known.ndim) if i != axis)
            told = operand.known.all(axis=others) & (operand.value != 0).any(
                axis=others
            )
            if len(told) == len(labels) and not operand.is_whole:
                found.update(map(int, np.unique(labels[told])))
    return found
