"""Units of stacked layers: each layer loses its own, and all as many."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from swapjax.deploy.constants import Constants
from swapjax.deploy.dead import used_units
from swapjax.roles.ties import Group, Ties
from swapjax.roles.ties.state import Site


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What the layers of a stack lose of a group.

    Attributes:
        group: of units.
        gone: numbers of units, as many as each layer loses; which does not matter.
        kept: int [layers, units], the positions in the group of those that each layer
            keeps.
        counts: how many are dead in each layer.
    """

    group: Group
    gone: frozenset[int]
    kept: np.ndarray
    counts: tuple[int, ...]

    def places(self) -> Mapping[tuple[int, int], np.ndarray]:
        """List the places that each layer keeps, int [layers, places].

        By leaf and axis.
        """
        stay = [i for i, u in enumerate(self.group.units) if int(u) not in self.gone]
        found = {}
        for member in self.group.members:
            # In the order that the places of those have which stay by name.
            order = np.argsort(member.positions[stay].reshape(-1), kind="stable")
            own = member.positions[self.kept].reshape(len(self.kept), -1)
            found[member.leaf, member.axis] = own[:, order]
        return found


def choose(ties: Ties, constants: Constants, dead: set[int]) -> list[Choice]:
    """Choose what each layer of a stack loses, where more is dead than in all alike.

    Args:
        ties: of the function.
        constants: what is known.
        dead: units that are dead in all layers.
    """
    steps: dict[int, list[Site]] = defaultdict(list)
    for site in ties.sites:
        steps[site.step.makes[0]].append(site)
    found = []
    for group in ties.groups:
        own = set(map(int, group.units))
        there = [sites for sites in steps.values() if _reads(sites, ties, own)]
        told = [constants.each.get((s[0].step.makes[0], 0), {}) for s in there]
        if group.layers < 2 or any(len(each) != group.layers for each in told):
            continue
        rows = []
        for layer in range(group.layers):
            live = {
                key: layers[layer]
                for key, layers in constants.each.items()
                if len(layers) == group.layers
            }
            used = used_units(there, ties, live, dead - own)
            rows.append([int(unit) not in used for unit in group.units])
        empty = np.asarray(rows)
        counts = tuple(int(n) for n in empty.sum(axis=1))
        least = min(*counts, len(group) - 1)
        alike = [int(u) for u in group.units if int(u) in dead]
        if least <= len(alike):
            if max(counts) > len(alike):
                found.append(Choice(group, frozenset(), np.zeros((0, 0), int), counts))
            continue
        others = [int(u) for u in group.units if int(u) not in dead]
        gone = frozenset([*alike, *others][:least])
        # Stable, so that what stays is in order.
        order = np.argsort(~empty, axis=1, kind="stable")
        kept = np.sort(order[:, least:], axis=1)
        found.append(Choice(group, gone, kept, counts))
    return found


def _reads(sites: list[Site], ties: Ties, units: set[int]) -> bool:
    """Tell whether a step sums over any of some units."""
    return any(
        not units.isdisjoint(ties.labels[site.step.reads[site.which]][axis].tolist())
        for site in sites
        for axis in site.axes
    )
