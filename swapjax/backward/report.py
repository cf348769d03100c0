"""What pruning the way back does in a step: zeros, multiplications and noise."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from swapjax.backward.cost import layers_of, mac_ratio
from swapjax.backward.passing import (
    Pruned,
    Settings,
    back_propagate,
    find_placed,
    settings_of,
    unpruned,
)
from swapjax.backward.state import BackwardState, fractions_of_zeros
from swapjax.backward.thresholds import expected_zeros
from swapjax.core import trees
from swapjax.core.compiled import Compiled
from swapjax.core.objective import Objective
from swapjax.core.types import Params


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """A layer on the way back.

    Attributes:
        name: the path of its leaf.
        macs: multiplications of its two products on the way back, all of them.
        zeros_before: fraction of zeros of dY where nothing is pruned.
        zeros_after: the same where gradients are pruned, here and behind.
    """

    name: str
    macs: int
    zeros_before: float
    zeros_after: float


@dataclasses.dataclass(frozen=True)
class SiteZeros:
    """A site of pruning.

    Attributes:
        name: of the site.
        rate: P of this step.
        zeros_before: fraction of zeros that come to it.
        zeros_after: of those that leave it.
        expected: what leaves it if a normal gradient without zeros comes, z(P). That
            is so at the last site on the way forward alone: to those before it comes
            what was pruned already.
    """

    name: str
    rate: float
    zeros_before: float
    zeros_after: float
    expected: float


@dataclasses.dataclass(frozen=True)
class BackwardCost:
    """What the way back of one step costs.

    Attributes:
        layers: all products of weights with data, in the order of the program.
        sites: where gradients are pruned.
    """

    layers: tuple[LayerCost, ...]
    sites: tuple[SiteZeros, ...]

    @property
    def natural_ratio(self) -> float:
        """Multiplications that zeros leave where nothing is pruned, of all."""
        return self._ratio([layer.zeros_before for layer in self.layers])

    @property
    def ratio(self) -> float:
        """Multiplications that zeros leave where gradients are pruned, of all."""
        return self._ratio([layer.zeros_after for layer in self.layers])

    @property
    def speedup(self) -> float:
        """The ideal speed-up of the way back, natural zeros among it."""
        return 1 / self.ratio if self.ratio else math.inf

    @property
    def gain(self) -> float:
        """The ideal speed-up that pruning adds to that of natural zeros."""
        return self.natural_ratio / self.ratio if self.ratio else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Give all numbers as lists and dicts, for JSON."""
        ratios = {
            name: getattr(self, name)
            for name in ("natural_ratio", "ratio", "speedup", "gain")
        }
        return {**dataclasses.asdict(self), **ratios}

    def table(self) -> str:
        """Write a table of the layers as plain text."""
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        total = sum(layer.macs for layer in self.layers)
        lines = [f"{'layer':{width}}  {'MACs':>6}  {'zeros':>6}  {'pruned':>6}"]
        lines += [
            f"{layer.name:{width}}  {layer.macs / total:6.1%}  "
            f"{layer.zeros_before:6.1%}  {layer.zeros_after:6.1%}"
            for layer in self.layers
        ]
        lines.append(
            f"{'in all':{width}}  {total:6.1e}  {1 - self.natural_ratio:6.1%}  "
            f"{1 - self.ratio:6.1%}  ideal speed-up {self.speedup:.2f}, "
            f"{self.gain:.2f} by pruning"
        )
        return "\n".join(lines)

    def _ratio(self, zeros: Sequence[float]) -> float:
        macs = [layer.macs for layer in self.layers]
        return mac_ratio(macs, [1 - fraction for fraction in zeros])


def measure(
    pruned: Objective,
    params: Params,
    state: BackwardState,
    batch: Any,
    key: jax.Array,
) -> BackwardCost:
    """Count zeros and multiplications on the way back, in one step.

    Two passes over the batch, with and without pruning. Nothing changes: the state
    stays what it is.

    Args:
        pruned: what `swapjax.backward.prune_backward` makes.
        params: the network.
        state: of the objective. With predicted thresholds nothing is pruned until its
            FIFOs are full.
        batch: of the loss.
        key: of the step.

    Returns:
        Numbers by layer and by site.

    Raises:
        ValueError: for another objective, one that prunes for gradients of inputs
            alone, and what a step raises.
    """
    settings = settings_of(pruned)
    if settings.inputs_only:
        raise ValueError(
            "pruned: with where='inputs' a gradient has other zeros for its two "
            "products; their fractions at sites are what fit reports"
        )
    layers, sites, rates = _lay_out(settings, params, (state.inner, batch, key))
    found = _count((pruned,), params, state, batch, key)
    before, after, at_sites = jax.tree.map(float, jax.device_get(found))

    def of_site(name: str) -> SiteZeros:
        rate = rates[name]
        now = float(rate(state.step) if callable(rate) else rate)
        first, last = at_sites[name]
        return SiteZeros(name, now, first, last, expected_zeros(now))

    return BackwardCost(
        layers=tuple(
            LayerCost(x.name, x.backward_macs, before[x.name][0], after[x.name][0])
            for x in layers
        ),
        sites=tuple(of_site(site.name) for site in sites),
    )


@Compiled
def _count(
    pruned: Pruned, params: Params, state: BackwardState, batch: Any, key: jax.Array
) -> tuple[dict, dict, dict]:
    """Compute fractions of zeros, before and after the operator.

    Returns:
        Those of all layers where nothing is pruned, of all layers where gradients are,
        and of all sites.
    """
    settings = settings_of(pruned)
    layers, _, _ = _lay_out(settings, params, (state.inner, batch, key))
    watched = [dataclasses.replace(x.site, name=f"{x.name}:counted") for x in layers]
    several = [
        back_propagate(way, params, state, batch, key, watched)
        for way in (unpruned(settings), settings)
    ]
    names = {site.name: x.name for site, x in zip(watched, layers, strict=True)}
    before, after = (
        {names[name]: fractions_of_zeros(x) for name, x in passed.watched.items()}
        for passed in several
    )
    return (
        before,
        after,
        {k: fractions_of_zeros(x) for k, x in several[1].statistics.items()},
    )


def _lay_out(settings: Settings, params: Params, data: Any) -> tuple:
    """Find layers, sites and their rates."""
    traced, sites, rates = find_placed(settings, params, data)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    return layers_of(traced.program, trees.paths(params), shapes), sites, rates
