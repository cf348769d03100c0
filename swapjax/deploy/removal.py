"""Take dead units out of arrays, and put the constants they added elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from swapjax.deploy.constants import Constants
from swapjax.deploy.dead import dead_units
from swapjax.deploy.folds import Fold, constant_terms, lost
from swapjax.deploy.layers import Choice, choose
from swapjax.deploy.rebuild import Smaller, taken
from swapjax.roles.ties import Ties


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """Arrays without dead units.

    Attributes:
        dead: the numbers of the units.
        smaller: the program without them.
        leaves: of params, smaller.
        folded: paths of leaves that took constants over.
        layers: what each layer of a stack loses by itself.
    """

    dead: set[int]
    smaller: Smaller
    leaves: list[Any]
    folded: tuple[str, ...]
    layers: tuple[Choice, ...]

    def kept(self, ties: Ties) -> dict[str, tuple[np.ndarray, ...]]:
        """List the places that stay along the axes of leaves that became smaller."""
        own = _places(self.layers)
        found = {}
        for leaf, (path, shape) in enumerate(zip(ties.paths, ties.shapes, strict=True)):
            number = ties.leaves[leaf]
            if number is not None and self.smaller.shape(number) != shape:
                found[path] = tuple(
                    own.get((leaf, axis), kept)
                    for axis, kept in enumerate(self.smaller.kept(number))
                )
        return found


def find_dead(ties: Ties, constants: Constants, folds: Mapping[int, Fold]) -> set[int]:
    """Find dead units, those among them whose constants other leaves take over.

    Args:
        ties: of the function.
        constants: what is known with its params.
        folds: leaves that may take constants over.
    """
    live = dict(constants.live)
    for made, fold in folds.items():
        operands = constants.operands[made]
        for which, operand in enumerate(operands):
            if operands[1 - which].is_whole:  # weights, not other data
                live[made, which] = ~constant_terms(fold.step, which, operand)
    return dead_units(ties, live)


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
    dead = find_dead(ties, constants, folds)
    layers = tuple(choose(ties, constants, dead))
    dead = dead.union(*(choice.gone for choice in layers))
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
    own, cuts = _places(layers), []
    for number, (value, leaf) in enumerate(zip(ties.leaves, changed, strict=True)):
        if value is None or smaller.shape(value) == np.shape(leaf):
            cuts.append(leaf)
            continue
        kept = smaller.kept(value)
        places = [own.get((number, axis), x) for axis, x in enumerate(kept)]
        # On the host, where nothing is compiled for each shape.
        cuts.append(jnp.asarray(taken(np.asarray(leaf), places)))
    return Removal(dead, smaller, cuts, tuple(folded), layers)


def _places(layers: Sequence[Choice]) -> dict[tuple[int, int], np.ndarray]:
    """List what layers keep that choose for themselves, by leaf and axis."""
    return {
        where: places
        for choice in layers
        if choice.gone
        for where, places in choice.places().items()
    }
