"""What a network costs as units of its groups go, and which go first."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from swapjax.roles.ties import Group
from swapjax.roles.ties.union import Labels

_CLOSE = 0.99  # of the budget: nearer than that is not looked for


@dataclasses.dataclass(frozen=True)
class Costs:
    """A sum of products, one factor an axis.

    Attributes:
        weights: float64[terms].
        sides: float64[terms, axes], the places along each axis; 1 where there is none.
        places: float64[terms, axes, groups], the places of one unit of a group.
    """

    weights: np.ndarray
    sides: np.ndarray
    places: np.ndarray

    @classmethod
    def of(
        cls, terms: Sequence[tuple[float, tuple[Labels, ...]]], groups: Sequence[Group]
    ) -> "Costs":
        """Take costs apart.

        Args:
            terms: a weight, and the unit of each place along each axis.
            groups: of units.
        """
        owners = np.zeros(max((g.units.max() for g in groups), default=0) + 1, int)
        for number, group in enumerate(groups, 1):
            owners[group.units] = number
        most = max((len(axes) for _, axes in terms), default=0)
        sides = np.ones((len(terms), most))
        places = np.zeros((len(terms), most, len(groups)))
        lengths = np.array([len(group) for group in groups])
        for i, (_, axes) in enumerate(terms):
            for j, labels in enumerate(axes):
                own = np.where(labels < len(owners), labels, 0)
                counts = np.bincount(owners[own], minlength=len(groups) + 1)
                sides[i, j], places[i, j] = len(labels), counts[1:] / lengths
        return cls(np.array([weight for weight, _ in terms], float), sides, places)

    def without(self, counts: np.ndarray) -> float:
        """Tell the cost where so many units of each group are gone, [groups]."""
        left = self.sides - self.places @ counts
        return float(self.weights @ np.maximum(left, 0).prod(1))

    def savings(self) -> np.ndarray:
        """Tell what the first unit of each group saves, float64[groups]."""
        left = self.sides[:, :, None] - self.places
        whole = self.sides.prod(1)[:, None]
        return self.weights @ (whole - left.prod(1))


def choose(
    costs: Costs,
    scores: Sequence[np.ndarray],
    least: int,
    budget: float,
    *,
    for_savings: bool,
) -> np.ndarray | None:
    """Choose how many units of each group go.

    Units go in the order of their scores, or of these for what is saved, until the
    budget is met, and come back where they still fit, the last first. Where the last
    unit was so large that much of the budget is not used, others of higher scores go in
    its place.

    Args:
        costs: of the network.
        scores: of the units of each group, float64[units].
        least: units that each group keeps.
        budget: what the network may cost.
        for_savings: whether scores are divided by what the first unit of the group
            saves.

    Returns:
        Counts, int[groups]; None where the budget is out of reach.
    """
    savings = costs.savings()
    values, owners = [], []
    for number, own in enumerate(scores):
        few = np.sort(own)[: max(0, len(own) - least)]
        if savings[number] > 0:
            values.append(few / savings[number] if for_savings else few)
            owners.append(np.full(len(few), number))
    if not values:
        return None
    value, owner = np.concatenate(values), np.concatenate(owners)
    order = owner[np.argsort(value, kind="stable")]
    best = None
    while costs.without(_counts(order, scores)) <= budget:
        count = _shortest(order, scores, costs, budget)
        counts = _taken_back(order[:count], scores, costs, budget)
        if best is None or costs.without(counts) > costs.without(best):
            best = counts
        if not count or costs.without(best) >= _CLOSE * budget:
            break
        # The last unit is too large: on with those of other groups.
        head, tail = order[: count - 1], order[count - 1 :]
        order = np.concatenate([head, tail[tail != tail[0]]])
    return best


def _counts(order: np.ndarray, scores: Sequence[np.ndarray]) -> np.ndarray:
    """Count the units of each group."""
    return np.bincount(order, minlength=len(scores))


def _shortest(
    order: np.ndarray, scores: Sequence[np.ndarray], costs: Costs, budget: float
) -> int:
    """Find how many of some units must go, in their order, by bisection."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if costs.without(_counts(order[:middle], scores)) > budget:
            low = middle + 1
        else:
            high = middle
    return low


def _taken_back(
    order: np.ndarray, scores: Sequence[np.ndarray], costs: Costs, budget: float
) -> np.ndarray:
    """Take units back where they fit, of the groups that came last first."""
    counts = _counts(order, scores)
    for number in dict.fromkeys(order[::-1].tolist()):
        while counts[number]:
            counts[number] -= 1
            if costs.without(counts) > budget:
                counts[number] += 1
                break
    return counts
