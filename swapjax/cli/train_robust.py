"""What swapjax train minimises: losses for wrong labels, and frameworks of attacks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import robust
from swapjax.cli.robust_options import MANY_STEPS, SPARSE_LOSSES, Against
from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Params
from swapjax.experiments.datasets import Dataset
from swapjax.experiments.models import Model
from swapjax.experiments.runner import Setting
from swapjax.robust import fast
from swapjax.robust.free import REPLAYS
from swapjax.robust.hypersphere import HEADS

_STEPS, _TOGETHER = 10, 2.5  # of attacks in training; the radii that they go
_LENGTHS = {"freeat": 1.0, "fastat": fast.LENGTH}  # of one step, in radii
_MAKE: dict[str, Callable[..., Objective]] = {
    "pgd-at": robust.pgd_at, "trades": robust.trades, "alp": robust.alp,
    "mart": robust.mart, "freeat": robust.free_at, "fastat": robust.fast_at,
}  # fmt: skip


def look(images: Dataset) -> str:
    """Tell which of the data sets of papers some data are like, to set losses by."""
    if images.shape[2:] != (3,):
        return "mnist"
    return "cifar10" if images.classes <= 10 else "cifar100"


def epsilon_of(options: Against, data: Dataset) -> float:
    """Return the radius of attacks, as a part of the range of pixels."""
    if options.epsilon is not None:
        return options.epsilon
    return 8 / 255 if data.shape[2:] == (3,) else 0.1


def loss_settings(options: Against, data: Dataset, steps: int) -> dict[str, float]:
    """Return the settings of the loss, those of its function left out.

    Args:
        options: of the command.
        data: to train on.
        steps: in all.
    """
    like, name = look(data), options.loss
    if name not in SPARSE_LOSSES:
        return dict(robust.LABEL_SETTINGS[like].get(name, {}))
    row = robust.SPARSE_SETTINGS[like][name.removeprefix("sr-")]
    return row.arguments(steps, asymmetric=_is_asymmetric(options))


def _is_asymmetric(options: Against) -> bool:
    return options.noise is not None and options.noise.kind != "symmetric"


def head(options: Against) -> robust.Hypersphere | None:
    """Say how losses see cosines, if the network is to return them."""
    if not options.hypersphere:
        return None
    usual = robust.Hypersphere()
    if options.robust is not None:
        usual = HEADS[_MAKE[options.robust].__name__]
    scale = usual.scale if options.scale is None else options.scale
    margin = usual.margin if options.margin is None else options.margin
    return robust.Hypersphere(scale, margin)


def loss_of(options: Against, data: Dataset) -> robust.label_losses.LabelLoss:
    """Make the loss of logits and labels, of those that are one."""
    settings = loss_settings(options, data, 1)
    return robust.LABEL_LOSSES[options.loss](**settings)


def as_loss(options: Against, setting: Setting) -> LossFn:
    """Make the loss of params and a batch, of training without attacks.

    Args:
        options: of the command; their loss is one of logits and labels.
        setting: network and data.
    """
    model = setting.model
    if options.loss == "ce":
        return model.training_loss
    loss, sphere = loss_of(options, setting.data), model.sphere
    apply = in_training(model)

    def mean(params: Params, batch: Any) -> jax.Array:
        images, labels = batch
        outputs = apply(params, images)
        pushed = outputs if sphere is None else sphere.pushed(outputs, labels)
        return jnp.mean(loss(pushed, labels))

    return mean


def in_training(model: Model) -> Callable[[Params, jax.Array], jax.Array]:
    """Return what a network does in training, batch norm by statistics of the batch."""
    return model.training_apply or model.apply


def objective(options: Against, setting: Setting, steps: int) -> LossFn | Objective:
    """Make what is minimised.

    Args:
        options: of the command.
        setting: network and data.
        steps: in all.
    """
    apply, data, name = in_training(setting.model), setting.data, options.loss
    if options.robust is not None:
        return _framework(options, setting)
    if name == "ce" or options.hypersphere:
        return as_loss(options, setting)
    counts = np.bincount(data.y_train, minlength=data.classes)
    return robust.label_objective(
        name, apply, data=look(data), steps=steps, counts=np.maximum(counts, 1),
        asymmetric=_is_asymmetric(options),
    )  # fmt: skip


def _framework(options: Against, setting: Setting) -> Objective:
    """Make the objective of adversarial training."""
    apply, data, name = in_training(setting.model), setting.data, options.robust
    low, high = data.box
    radius = epsilon_of(options, data)
    shared: dict[str, Any] = {
        "epsilon": radius * (high - low), "box": data.box,
        "loss": loss_of(options, data), "head": setting.model.sphere,
    }  # fmt: skip
    steps, step = attack_steps(options, data)
    shared["step"] = step * (high - low)
    if name in MANY_STEPS:
        shared["steps"] = steps
    for given in ("beta", "replays"):
        if getattr(options, given) is not None:
            shared[given] = getattr(options, given)
    return _MAKE[name or ""](apply, **shared)


def attack_steps(options: Against, data: Dataset) -> tuple[int, float]:
    """Return the steps of the attack in training, and their length.

    Args:
        options: of the command.
        data: in parts of whose range the length is.
    """
    radius = epsilon_of(options, data)
    steps, lengths = 1, _LENGTHS.get(options.robust or "", _TOGETHER)
    if options.robust in MANY_STEPS:
        steps = options.attack_steps or _STEPS
    step = options.attack_step
    return steps, lengths * radius / steps if step is None else step


def replays(options: Against) -> int:
    """Return the steps that a batch is taken for."""
    if options.robust != "freeat":
        return 1
    return options.replays or REPLAYS


def settings(options: Against, data: Dataset, steps: int) -> dict[str, Any]:
    """Return what the report tells beside the options, which leave much open.

    Args:
        options: of the command.
        data: to train on.
        steps: in all.
    """
    found: dict[str, Any] = {}
    if options.loss != "ce":
        found["loss"] = {"name": options.loss, **loss_settings(options, data, steps)}
    sphere = head(options)
    if sphere is not None:
        found["hypersphere"] = {"scale": sphere.scale, "margin": sphere.margin}
    if options.robust:
        count, length = attack_steps(options, data)
        found["robust"] = {
            "framework": options.robust, "epsilon": epsilon_of(options, data),
            "attack_steps": count, "attack_step": length, "replays": replays(options),
        }  # fmt: skip
    return found


def introduction(options: Against, data: Dataset) -> str:
    """Say in some words what is minimised, where it is not cross-entropy alone."""
    text = ""
    if options.loss != "ce":
        text += f" Loss: {options.loss}, set as on {look(data)}."
    sphere = head(options)
    if sphere is not None:
        text += f" Outputs are cosines, times {sphere.scale:g} in losses"
        text += f", with a margin of {sphere.margin:g}." if sphere.margin else "."
    if options.robust:
        count, length = attack_steps(options, data)
        text += f" Images are attacked ({options.robust}) within "
        text += f"{epsilon_of(options, data):.3g} of the range of pixels, in "
        text += f"{count} step{'s' if count > 1 else ''} of {length:.3g}"
        times = replays(options)
        text += f", each batch {times} times in a row." if times > 1 else "."
    return text
