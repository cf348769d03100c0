"""How swapjax train sends gradients back, and what it measures of that."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

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
    draw_kept,
    draw_speedup,
    draw_zeros,
    kept_by_layer,
    kept_table,
    told,
    with_sparse_weights,
)
from swapjax.experiments.runner import Setting
from swapjax.training import Epoch, Level

_GAUGE = 2**31 + 3  # folded into the key of the seed
_REPEATS = 2  # parts of the batch in an adaptation of vcas, as by default
_ADAPTATION = 1 + _REPEATS  # what it takes, in exact ways back
_DENSE = "Dense kernels multiply zeros, too: no time is saved here."


def pruned(options: Train, loss: LossFn | Objective, steps: int) -> LossFn | Objective:
    """Prune the gradients that a loss sends back, if asked to.

    Args:
        options: of the command.
        loss: what is minimised.
        steps: in all.
    """
    asked = options.backward
    if asked.method == "prune":
        return backward.prune_backward(
            loss, rate=asked.rate, threshold=asked.threshold, per_site=True
        )
    if asked.method == "vcas":
        return backward.vcas(
            loss, activations=asked.variance, weights=asked.variance,
            every=asked.every(steps), repeats=_REPEATS, per_site=True,
        )  # fmt: skip
    return loss


def gauge(options: Train, setting: Setting, steps: int) -> Gauge | None:
    """Make what measures the way back of the first batch, if gradients are pruned.

    Args:
        options: of the command.
        setting: network and data.
        steps: in all.

    Returns:
        None for vcas too, which measures as it goes.

    Raises:
        ValueError: as `swapjax.backward.prune_backward` does.
    """
    if options.backward.method != "prune":
        return None
    loss = train_robust.objective(options.against, setting, steps)
    exact = backward.prune_backward(loss, rate=options.backward.rate, threshold="exact")
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


def introduction(options: Train, taken: Gauge | None, steps: int) -> str:
    """Say in a sentence what is pruned, and where.

    Args:
        options: of the command.
        taken: from `gauge`.
        steps: in all.
    """
    asked = options.backward
    if taken is not None:
        sites = ", ".join(map(printable, taken.state.sites))
        text = f" Gradients are pruned on their way back at P = {asked.rate:g} "
        return text + f"({asked.threshold}), at {sites}."
    if asked.method == "vcas":
        every = asked.every(steps)
        text = " Examples and rows are dropped from gradients on their way back (vcas),"
        text += f" each for {asked.variance:g} of the variance of SGD; rates change "
        text += "every step." if every == 1 else f"every {every} steps."
        return text + _of_adaptations(steps // every * _ADAPTATION / steps)
    return ""


def _of_adaptations(share: float) -> str:
    """Warn of adaptations that take more than what they are for."""
    if share < 1:
        return ""
    return (
        f" Adaptations alone take {share:.3g} times as many multiplications as exact "
        "ways back: train longer, or give a larger --prune-backward-every."
    )


def progress(epoch: Epoch) -> str:
    """Say in some words what is left out of the way back."""
    left = epoch.told.get(LEFT)
    return "" if left is None else f", {1 - left:.0%} of the way back left out"


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
        taken: from `gauge`.
        params: trained.
        layers: of them, from `swapjax.experiments.report.layers`.
        history: of the run.
    """
    epochs = [part for part in history if isinstance(part, Epoch)]
    if options.backward.method == "vcas":
        return _sampled(options, epochs)
    if taken is None:
        return NOTHING
    cost, noise = taken.cost(params), taken.noise(params)
    sparse = 1 / max(with_sparse_weights(cost, layers), 1e-9)
    result = {
        "method": "prune",
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
    how = "Measured on the first batch, with exact thresholds"
    how += ". " if options.backward.threshold == "exact" else ", not predicted ones. "
    shown = (backward_table(cost), f"{how}{_speedups(cost, sparse)} {_noise(noise)}")
    return Found({"backward": result}, panels, shown)


def _speedups(cost: backward.BackwardCost, sparse: float) -> str:
    text = f"Ideal speed-up of the way back {cost.speedup:.2f}: zeros that come "
    text += f"unpruned give {1 / max(cost.natural_ratio, 1e-9):.2f}, pruning "
    text += f"{cost.gain:.2f} times as much. Were zero weights left out as well, "
    return text + f"{sparse:.2f}. {_DENSE}"


def _noise(noise: backward.GradientNoise) -> str:
    if not math.isfinite(noise.snr):
        return "Gradients are without noise: all draws of pruning agree."
    text = f"Over {noise.draws} draws of pruning, the gradient of one batch has a "
    text += f"signal-to-noise ratio of {noise.snr:.3g}; the cosine of its mean and the "
    return text + f"exact gradient is {noise.cosine:.4f}."


def _sampled(options: Train, epochs: Sequence[Epoch]) -> Found:
    """Tell what vcas kept, from the epochs."""
    last, steps = epochs[-1], epochs[-1].steps
    every = options.backward.every(steps)
    over_run = sum(epoch.told[LEFT] for epoch in epochs) / len(epochs)
    with_adaptations = over_run + steps // every * _ADAPTATION / steps
    result = {
        "method": "vcas",
        "variance": options.backward.variance,
        "every": every,
        "adaptations": steps // every,
        "ratio": last.told[LEFT],
        "ratio_over_run": over_run,
        "ratio_with_adaptations": with_adaptations,
        "added_variance": last.told["added variance"],
        "layers": kept_by_layer(last),
    }
    text = f"Of the multiplications of the way back {last.told[LEFT]:.1%} are left in "
    text += f"the last epoch, {over_run:.1%} over the run, and with those of "
    text += f"{steps // every} adaptations {with_adaptations:.1%}"
    text += ", more than exact ones take. " if with_adaptations > 1 else ". "
    text += "Dropping examples "
    text += f"added {last.told['added variance']:.3g} of the variance of SGD at the "
    text += f"last adaptation. {_DENSE}"
    panels = (
        functools.partial(draw_kept, history=epochs),
        functools.partial(draw_speedup, history=epochs),
    )
    return Found({"backward": result}, panels, (kept_table(last), text))
