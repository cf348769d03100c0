"""The record of an epoch, and the masks that it counts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.counts import partial_counts, total
from swapjax.core.types import Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.planning import plan
from swapjax.training.residuals import residuals
from swapjax.training.state import has_admm, has_masks, masks_of


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The record of one epoch.

    Attributes:
        epoch: its number, from 1.
        steps: updates since the start.
        loss: the mean over its steps, each before its update.
        accuracy: what `evaluate` returned after it, None without one.
        sparsity: the fraction of prunable entries that are zero after it; under
            `swapjax.admm`, whose params are dense, that a cut would make zero.
        densities: the fraction that is left, by the path of each prunable leaf.
        churn: prunable entries that were active before or after it, but not both.
        seconds: wall time, compilation and evaluation included.
        status: what `swapjax.check_state` finds after it, and whether mask steps are
            missing at the end; empty where all is well. It begins with what a callback
            said where that ended training.
        told: the mean over its steps of what an objective reports, and what `evaluate`
            returned beside the accuracy; under `swapjax.admm` the ``residual`` and what
            a ``cut`` takes, see `swapjax.training.residuals`.
    """

    epoch: int
    steps: int
    loss: float
    accuracy: float | None
    sparsity: float
    densities: dict[str, float]
    churn: int
    seconds: float
    status: str = ""
    told: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON takes."""
        return dataclasses.asdict(self)


def masks_now(params: Params, state: Any, first: Masks) -> Masks:
    """Take the masks of an optimizer, or those of the zeros where it has none.

    Args:
        params: of the network.
        state: of the optimizer.
        first: as `masks_at_first` makes them.
    """
    return (
        masks_of(state, params)
        if has_masks(state)
        else masking.from_zeros(params, first)
    )


def masks_at_first(params: Params, state: Any) -> Masks:
    """Take the masks of an optimizer; where it has none, those that tell what to count.

    Args:
        params: of the network.
        state: of the optimizer.
    """
    if has_masks(state):
        return masks_of(state, params)
    try:
        target = plan(params, 0.0)
    except ValueError:  # there is none
        return jax.tree.map(lambda _: jnp.asarray(True), params)
    return target.layout.masks(target.layout.everything())


def residuals_now(params: Params, state: Any) -> dict[str, float]:
    """Tell how far params are from what ADMM draws them to; nothing without it.

    Args:
        params: of the network.
        state: of the optimizer.
    """
    if not has_admm(state):
        return {}
    found = residuals(state, params)
    return {"residual": found.primal, "cut": found.cut}


def compare(before: Masks, after: Masks) -> tuple[dict[str, float], float, int]:
    """Measure the densities of leaves, the sparsity of all, and the entries that moved.

    One call to the device, however many leaves there are.

    Args:
        before: masks before an epoch.
        after: those after it.
    """
    paths = trees.paths(after)
    leaves = zip(paths, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    pairs = {path: (a, b) for path, a, b in leaves if np.ndim(b) and b.size}
    counts = jax.device_get(_count(pairs))
    kept = {path: total(count) for path, (count, _) in counts.items()}
    sizes = {path: b.size for path, (_, b) in pairs.items()}
    densities = {path: kept[path] / sizes[path] for path in pairs}
    sparsity = 1 - sum(kept.values()) / sum(sizes.values()) if sizes else 0.0
    return densities, sparsity, sum(total(changed) for _, changed in counts.values())


@jax.jit
def _count(pairs: dict[str, tuple]) -> dict[str, tuple]:
    return {
        path: (partial_counts(b), partial_counts(a != b))
        for path, (a, b) in pairs.items()
    }
