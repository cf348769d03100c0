"""Which units are dead: whatever they do, nothing comes of it."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from swapjax.deploy.constants import Live
from swapjax.roles.ties import Ties
from swapjax.roles.ties.state import Site


def dead_units(ties: Ties, live: Live) -> set[int]:
    """Find units whose terms are zero in every sum that reads them.

    Terms that only go to dead units do not count, so that what is dead is found from
    the last layers to the first. Of each axis one place stays at least.

    Args:
        ties: of a function.
        live: which terms of its sums may not be zero.
    """
    steps: dict[int, list[Site]] = defaultdict(list)
    for site in ties.sites:
        steps[site.step.makes[0]].append(site)
    candidates = {int(unit) for group in ties.groups for unit in group.units}
    dead: set[int] = set()
    while True:
        found = candidates - used_units(steps.values(), ties, live, dead)
        if found == dead:
            return _some_left(ties, dead)
        dead = found


def used_units(
    steps: Iterable[list[Site]], ties: Ties, live: Live, dead: set[int]
) -> set[int]:
    """List the units that any of some steps reads in earnest.

    Args:
        steps: the sums of each.
        ties: of the function.
        live: which terms may not be zero.
        dead: units that do not count.
    """
    used: set[int] = set()
    for sites in steps:
        used |= _used(sites, ties, live, dead)
    return used


def _used(sites: list[Site], ties: Ties, live: Live, dead: set[int]) -> set[int]:
    """List the units that a step reads in earnest."""
    gone = np.asarray(sorted(dead), np.int64)
    terms = []
    for site in sites:
        number = site.step.reads[site.which]
        axes = ties.labels[number]
        where = live[site.step.makes[0], site.which]
        terms.append([_places(where, axes, axis, gone) for axis in site.axes])
    used: set[int] = set()
    for k in range(len(sites[0].axes)):
        both = np.logical_and.reduce([term[k] for term in terms])
        for site in sites:
            labels = ties.labels[site.step.reads[site.which]][site.axes[k]]
            used.update(np.unique(labels[both]).tolist())
    return used


def _places(
    live: np.ndarray, axes: tuple[np.ndarray, ...], axis: int, gone: np.ndarray
) -> np.ndarray:
    """Mark the places along an axis where an operand is not all zero.

    Args:
        live: where it may not be zero.
        axes: the units of its places.
        axis: which.
        gone: units that do not count.
    """
    for i, labels in enumerate(axes):
        if i != axis and live.shape[i] == len(labels) > 1 and len(gone):
            stay = ~np.isin(labels, gone)
            if not stay.all():
                live = np.compress(stay, live, axis=i)
    found = live.any(axis=tuple(i for i in range(live.ndim) if i != axis))
    return np.broadcast_to(found, axes[axis].shape)


def _some_left(ties: Ties, dead: set[int]) -> set[int]:
    """Keep one unit of each axis that would be empty."""
    dead, known = set(dead), set()
    for axes in ties.labels.values():
        for labels in axes:
            if id(labels) in known or not len(labels):
                continue
            known.add(id(labels))
            if all(int(unit) in dead for unit in np.unique(labels)):
                dead.discard(int(labels.min()))
    return dead
