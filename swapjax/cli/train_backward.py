"""How swapjax train sends gradients back, and what it measures of that."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import backward
from swapjax.cli import train_robust
from swapjax.cli.train_attack import Watched
from swapjax.cli.train_found import NOTHING, Found
from swapjax.cli.train_options import Train
from swapjax.core.objective import Objective
from swapjax.core.text import printable
from swapjax.core.types import LossFn, Params
from swapjax.experiments.backward import (
    LEFT,
    Gauge,
    backward_table,
    draw_speedup,
    draw_zeros,
    told,
    with_sparse_weights,
)
from swapjax.experiments.runner import Setting
from swapjax.training import Epoch, Level

_GAUGE = 2**31 + 3  # folded into the key of the seed


def pruned(options: Train, loss: LossFn | Objective) -> LossFn | Objective:
    """Prune the gradients that a loss sends back, if asked to.

    Args:
        options: of the command.
        loss: what is minimised.
    """
    rate = options.backward.rate
    if rate is None:
        return loss
    return backward.prune_backward(
        loss, rate=rate, threshold=options.backward.threshold, per_site=True
    )


def gauge(options: Train, setting: Setting, steps: int) -> Gauge | None:
    """Make what measures the way back of the first batch, if gradients are pruned.

    Args:
        options: of the command.
        setting: network and data.
        steps: in all.

    Raises:
        ValueError: as `swapjax.backward.prune_backward` does.
    """
    rate = options.backward.rate
    if rate is None:
        return None
    loss = train_robust.objective(options.against, setting, steps)
    exact = backward.prune_backward(loss, rate=rate, threshold="exact")
    batch = tuple(jnp.asarray(part[: options.batch]) for part in setting.data.train)
    key = jax.random.fold_in(jax.random.key(options.seed), _GAUGE)
    return Gauge.of(exact, setting.params, batch, key)


def watch(measure: Any, taken: Gauge | None) -> Any:
    """Make what measures after each epoch tell of the way back, too.

    Args:
        measure: ``params -> accuracy``, or numbers by name.
        taken: from `gauge`.
    """
    if taken is None:
        return measure

    def both(params: Params) -> Mapping[str, float]:
        found = measure(params)
        whole = found if isinstance(found, Mapping) else {"accuracy": found}
        return {**whole, **told(taken.cost(params))}

    return Watched(both, f"the way back, {measure.describe()}")


def introduction(options: Train, taken: Gauge | None) -> str:
    """Say in a sentence what is pruned, and where."""
    if taken is None:
        return ""
    sites = ", ".join(map(printable, taken.state.sites))
    return (
        f" Gradients are pruned on their way back at P = {options.backward.rate:g} "
        f"({options.backward.threshold}), at {sites}."
    )


def progress(epoch: Epoch) -> str:
    """Say in some words what zeros save of the way back."""
    left = epoch.told.get(LEFT)
    return "" if left is None else f", {1 - left:.0%} of the way back zero"


def measured(
    options: Train,
    taken: Gauge | None,
    params: Params,
    layers: Sequence[Mapping[str, Any]],
    history: Sequence[Epoch] | Sequence[Level],
) -> Found:
    """Measure the way back of a trained network.

    Args:
        options: of the command.
        taken: from `gauge`, None where nothing is pruned.
        params: trained.
        layers: of them, from `swapjax.experiments.report.layers`.
        history: of the run.
    """
    if taken is None:
        return NOTHING
    cost, noise = taken.cost(params), taken.noise(params)
    sparse = 1 / max(with_sparse_weights(cost, layers), 1e-9)
    epochs = [part for part in history if isinstance(part, Epoch)]
    result = {
        "rate": options.backward.rate,
        "threshold": options.backward.threshold,
        "examples": len(jax.tree.leaves(taken.batch)[0]),
        **cost.as_dict(),
        "speedup_with_sparse_weights": sparse,
        "noise": noise.as_dict(),
    }
    panels = (
        functools.partial(draw_zeros, history=epochs),
        functools.partial(draw_speedup, history=epochs),
    )
    shown = (backward_table(cost), _speedups(cost, sparse), _noise(noise))
    return Found({"backward": result}, panels, shown)


def _speedups(cost: backward.BackwardCost, sparse: float) -> str:
    text = f"Ideal speed-up of the way back {cost.speedup:.2f}, of which zeros that "
    text += f"come unpruned give {1 / cost.natural_ratio:.2f} and pruning "
    text += f"{cost.gain:.2f}; {sparse:.2f} if zero weights were left out as well. "
    return text + "Dense kernels multiply zeros, too: no time is saved here."


def _noise(noise: backward.GradientNoise) -> str:
    if not np.isfinite(noise.snr):
        return "Gradients are without noise: all draws of pruning agree."
    text = f"Of {noise.draws} draws of pruning, gradients of one batch have a signal-"
    text += f"to-noise ratio of {noise.snr:.3g}, and the cosine of their mean and the "
    return text + f"exact one is {noise.cosine:.4f}."
