"""Take dead units out of arrays, and put the constants they added elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from swapjax.deploy.constants import Constants
from swapjax.deploy.dead import dead_units
from swapjax.deploy.folds import Fold, constant_terms, lost
from swapjax.deploy.rebuild import Smaller, cut
from swapjax.roles.ties import Ties


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """Arrays without dead units.

    Attributes:
        dead: the numbers of the units.
        smaller: the program without them.
        leaves: of params, smaller.
        folded: paths of leaves that took constants over.
    """

    dead: set[int]
    smaller: Smaller
    leaves: list[Any]
    folded: tuple[str, ...]

    def kept(self, ties: Ties) -> dict[str, tuple[np.ndarray, ...]]:
        """List the places that stay along the axes of leaves that became smaller."""
        found = {}
        for path, shape, number in zip(
            ties.paths, ties.shapes, ties.leaves, strict=True
        ):
            if number is not None and self.smaller.shape(number) != shape:
                found[path] = self.smaller.kept(number)
        return found


def remove(
    ties: Ties,
    leaves: Sequence[Any],
    constants: Constants,
    folds: Mapping[int, Fold],
) -> Removal:
    """Find dead units and take them out.

    Args:
        ties: of the function.
        leaves: of params.
        constants: what is known with these.
        folds: leaves that may take constants over.
    """
    live = dict(constants.live)
    for made, fold in folds.items():
        for which, operand in enumerate(constants.operands[made]):
            live[made, which] = ~constant_terms(fold.step, which, operand)
    dead = dead_units(ties, live)
    flags = np.zeros(ties.highest + 1, bool)
    flags[list(dead)] = True
    changed, folded = list(leaves), []
    for made, fold in folds.items() if dead else ():
        more = lost(fold, ties, constants.operands[made], flags)
        if more.any():
            leaf = np.asarray(changed[fold.leaf])
            changed[fold.leaf] = leaf + (fold.sign * more).astype(leaf.dtype)
            folded.append(ties.paths[fold.leaf])
    smaller = Smaller(ties.program, ties.labels, flags)
    # On the host, where nothing is compiled for each shape.
    cuts = [
        leaf
        if number is None
        else jnp.asarray(cut(np.asarray(leaf), smaller.kept(number)))
        for number, leaf in zip(ties.leaves, changed, strict=True)
    ]
    return Removal(dead, smaller, cuts, tuple(folded))
