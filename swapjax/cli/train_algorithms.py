"""The algorithms of sparse training by their names on the command line."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import optax

from swapjax import training
from swapjax.core.types import Masks, Params
from swapjax.experiments.runner import Setting
from swapjax.pruning import prune, snip, synflow
from swapjax.sparsity import schedules
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.schedules import Schedule
from swapjax.training import Rule

if TYPE_CHECKING:
    from swapjax.cli.train import Train

AlgorithmName = Literal[
    "dense",
    "gmp",
    "granet",
    "granet-st",
    "set",
    "rigl",
    "static",
    "ste",
    "acdc",
    "snip",
    "synflow",
    "gsm",
    "lottery",
]

_SAMPLES = 1000  # examples that snip takes its gradient of
_SYNFLOW_STAGES = 100  # as its authors have
_FADED = 1e-3  # what gsm leaves of a weight that it never chooses


class Gradual(NamedTuple):
    """An algorithm that changes masks as it trains.

    Attributes:
        rule: makes what happens then.
        schedule: ``(end, every) -> when``.
        changes: how often in a run, unless --every says.
    """

    rule: Callable[[], Rule]
    schedule: Callable[[int, int], Schedule]
    changes: int = 50


def _climb(end: int, every: int) -> Schedule:
    return schedules.cubic(0, end, every=every)


def _climb_from_half(end: int, every: int) -> Schedule:
    return schedules.cubic(0, end, every=every, initial=0.5)


def _stay(end: int, every: int) -> Schedule:
    return schedules.constant(0, end, every=every)


def _phases(end: int, every: int) -> Schedule:
    """Dense at first, for a phase at least."""
    return schedules.constant(min(every, end), end, every=every)


GRADUAL: dict[AlgorithmName, Gradual] = {
    "gmp": Gradual(training.gmp, _climb),
    "granet": Gradual(training.granet, _climb),
    "granet-st": Gradual(training.granet_st, _climb_from_half),
    "set": Gradual(training.set_, _stay),
    "rigl": Gradual(training.rigl, _stay),
    "ste": Gradual(training.ste, _stay, changes=1_000_000),
    "acdc": Gradual(training.acdc, _phases, changes=10),
}
# Prunable leaves share by the Erdos-Renyi kernel where masks begin at random.
_BY_SHAPE = {"set", "rigl", "static"}


def allocation(options: "Train") -> Allocation:
    """How the weights to keep are spread over layers."""
    default: Allocation = "erk" if options.algorithm in _BY_SHAPE else "global"
    return options.allocation or default


def mask_steps(options: "Train", steps: int) -> tuple[int, int]:
    """The updates between two changes of masks, and the update of the last."""
    changes = GRADUAL[options.algorithm].changes
    stop = 0.75 if options.stop is None else options.stop
    end = max(1, round(stop * steps))
    return min(options.every or max(1, steps // changes), end), end


def rate(options: "Train") -> float:
    """The fraction of the weights left that goes after each level of lottery."""
    return 0.2 if options.rate is None else options.rate


def optimizer_name(options: "Train") -> str:
    """The name of what moves the weights."""
    return "sgd" if options.algorithm == "gsm" else options.optimizer or "adam"


def inner(options: "Train", steps: int) -> optax.GradientTransformation:
    """The optimizer, its learning rate falling to 0 along a cosine.

    Args:
        options: of the command.
        steps: in all.
    """
    learning_rate, momentum, decay = settings(options, steps)
    falling = optax.cosine_decay_schedule(learning_rate, steps)
    if optimizer_name(options) == "adamw":
        return optax.adamw(falling, weight_decay=decay, mask=_kernels)
    sgd = optimizer_name(options) == "sgd"
    last = optax.sgd(falling, momentum, nesterov=True) if sgd else optax.adam(falling)
    if not decay:
        return last
    return optax.chain(optax.add_decayed_weights(decay, mask=_kernels), last)


def settings(options: "Train", steps: int) -> tuple[float, float, float]:
    """Learning rate, momentum and weight decay, by default those that suit."""
    gsm, sgd = options.algorithm == "gsm", options.optimizer == "sgd"
    fade = -math.log(_FADED) * 2 / steps  # a step, while rates fall from 1 to 0
    momentum = options.momentum
    if momentum is None:
        # With more of it, weights swing through zero instead of fading: rate * decay
        # must stay below (1 - momentum)^2 / 4, which short runs cannot have at 0.99.
        momentum = max(0.0, min(0.99, 1 - 4 * fade)) if gsm else 0.9
    # Many steps add up by momentum; that of gsm makes 0.01 of 0.99.
    rate = options.learning_rate or (1 - momentum if gsm else 0.05 if sgd else 3e-3)
    decay = options.weight_decay
    if decay is None and gsm:
        # They shrink by exp(-sum of rates * decay / (1 - momentum)).
        decay = fade * (1 - momentum) / rate
    elif decay is None:
        decay = 1e-2 if options.optimizer == "adamw" else 1e-4 if sgd else 0.0
    return rate, momentum, decay


def told(options: "Train", steps: int) -> dict[str, float]:
    """What the report tells of a run beside the options, which leave much open.

    Args:
        options: of the command.
        steps: in all.
    """
    learning_rate, momentum, decay = settings(options, steps)
    values = {"steps": steps, "learning_rate": learning_rate, "weight_decay": decay}
    if optimizer_name(options) == "sgd":
        values["momentum"] = momentum
    if options.algorithm in GRADUAL:
        values["every"], values["last_mask_step"] = mask_steps(options, steps)
    if options.algorithm == "lottery":
        values["rate"] = rate(options)
    return values


def whole(
    options: "Train", setting: Setting, target: Plan, steps: int, key: jax.Array
) -> optax.GradientTransformation:
    """The optimizer with the algorithm around it; lottery has none of its own.

    Args:
        options: of the command.
        setting: network and data.
        target: what to prune.
        steps: in all.
        key: for what is drawn at random.

    Raises:
        ValueError: as `swapjax.sparse` does.
    """
    optimizer = inner(options, steps)
    if options.algorithm == "dense":
        return optimizer
    if options.algorithm == "gsm":
        return optax.chain(training.gsm(plan=target), optimizer)
    if options.algorithm in GRADUAL:
        every, end = mask_steps(options, steps)
        gradual = GRADUAL[options.algorithm]
        return training.sparse(
            optimizer,
            gradual.rule(),
            plan=target,
            schedule=gradual.schedule(end, every),
            steps=steps,
            key=key,
        )
    masks = None
    if options.algorithm != "static":
        masks = before_training(options, setting, target, key)
    return training.sparse(optimizer, training.static(masks), plan=target, key=key)


def before_training(
    options: "Train", setting: Setting, target: Plan, key: jax.Array
) -> Masks:
    """The masks of snip or synflow."""
    model, data = setting.model, setting.data
    stages, schedule, samples = 1, None, min(_SAMPLES, len(data.y_train))
    method = snip()
    if options.algorithm == "synflow":
        stages, schedule, samples = _SYNFLOW_STAGES, schedules.geometric(), 1
        method = synflow(model.apply, data.shape)
    return prune(
        model.loss_fn,
        model.params,
        data.train,
        plan=target,
        method=method,
        stages=stages,
        schedule=schedule,
        samples=samples,
        key=key,
    ).masks


def _kernels(params: Params) -> Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)
