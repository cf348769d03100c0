"""What it costs to prune one layer alone: a table, and the allocation it asks for."""

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from swapjax.sparsity.allocation import some
from swapjax.sparsity.leaf_rules import exact_sparsity


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The losses with one layer pruned alone, from `swapjax.sensitivity`.

    Attributes:
        layers: the names of the layers.
        sizes: the entries of each.
        levels: the sparsities that each was pruned to.
        loss: with no layer pruned.
        losses: of each layer those at each level.
        method: what pruned.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    levels: tuple[float, ...]
    loss: float
    losses: tuple[tuple[float, ...], ...]
    method: str

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """The table, a row for each layer and level, with the increase of the loss."""
        return tuple(
            {
                "layer": name,
                "size": size,
                "sparsity": level,
                "loss": loss,
                "increase": loss - self.loss,
            }
            for name, size, losses in zip(
                self.layers, self.sizes, self.losses, strict=True
            )
            for level, loss in zip(self.levels, losses, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Turn into what JSON takes."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Tabulate how much the loss rises, layer by layer."""
        width = max(len("layer"), *map(len, self.layers))
        lines = [
            f"{self.method}: by how much the loss rises from {self.loss:.4g} with one "
            "layer pruned alone",
            f"{'layer':{width}} {'entries':>12}"
            + "".join(f"{level:>10g}" for level in self.levels),
        ]
        for name, size, losses in zip(
            self.layers, self.sizes, self.losses, strict=True
        ):
            rises = "".join(f"{loss - self.loss:>10.2g}" for loss in losses)
            lines.append(f"{name:{width}} {size:>12,}{rises}")
        return "\n".join(lines)

    def allocate(self, sparsity: float) -> dict[str, float]:
        """Choose the sparsity of each layer so that the losses rise least in all.

        As if what layers cost added up, and between two levels a loss went along a
        line; where a lower level costs more than the line from one below it to one
        above, along that one. The best under these two assumptions: entries go where
        the next costs least.

        Args:
            sparsity: of all layers together.

        Returns:
            The sparsity of each layer by its name, for
            ``swapjax.plan(allocation=...)``, which meets the whole exactly.

        Raises:
            ValueError: for a sparsity that these levels do not reach.
        """
        exact = exact_sparsity(sparsity, "sparsity")
        left = exact * sum(self.sizes)
        steps = [
            (slope, i, size)
            for i in range(len(self.layers))
            for slope, size in self._steps(i)
        ]
        most = sum((size for *_, size in steps), Fraction(0))
        if left > most:
            raise ValueError(
                f"sparsity: the levels of this scan, up to {max(self.levels):g}, reach "
                f"{float(most / sum(self.sizes)):g} of all, got {sparsity}; scan with "
                "higher levels"
            )
        gone = [Fraction(0)] * len(self.layers)
        for _, i, size in sorted(steps, key=lambda step: step[:2]):
            taken = min(size, left)
            gone[i] += taken
            left -= taken
        return {
            name: float(part / size) if size else 0.0
            for name, part, size in zip(self.layers, gone, self.sizes, strict=True)
        }

    def _steps(self, layer: int) -> list[tuple[float, Fraction]]:
        """Cut the way of a layer to its highest level where its slope changes.

        Returns:
            What an entry costs on each part, rising, and how many there are of it.
        """
        size = self.sizes[layer]
        points = [(Fraction(0), 0.0)]
        for level, loss in sorted(zip(self.levels, self.losses[layer], strict=True)):
            if math.isfinite(loss) and size:
                gone = exact_sparsity(level, "levels") * size
                points.append((gone, loss - self.loss))
        # The lower convex hull.
        hull: list[tuple[Fraction, float]] = []
        for point in points:
            while len(hull) > 1 and _slope(hull[-1], point) <= _slope(*hull[-2:]):
                hull.pop()
            hull.append(point)
        return [(_slope(a, b), b[0] - a[0]) for a, b in itertools.pairwise(hull)]


def _slope(a: tuple[Fraction, float], b: tuple[Fraction, float]) -> float:
    return (b[1] - a[1]) / float(b[0] - a[0])


def take_levels(levels: Any) -> tuple[float, ...]:
    """Take the sparsities of a scan.

    Raises:
        ValueError: for none, some twice, and those outside of (0, 1).
    """
    try:
        found = tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        raise ValueError(
            f"levels must be several sparsities in (0, 1), got {levels!r}"
        ) from None
    good = found and all(0 < level < 1 for level in found)
    if not good or len(set(found)) < len(found):
        told = some([f"{level:g}" for level in found]) or "none"
        raise ValueError(f"levels must be different sparsities in (0, 1), got {told}")
    return tuple(np.sort(found).tolist())
