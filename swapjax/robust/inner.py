"""What frameworks of adversarial training share: the attack inside of a step."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count, take_amount
from swapjax.core.types import Params
from swapjax.corruptions.ball import Norm, Start, require_norm, require_start
from swapjax.corruptions.box import Box, take_box
from swapjax.robust.hypersphere import Hypersphere
from swapjax.robust.inputs import (
    Apply,
    outputs_of,
    require_pair,
    take_batch,
    values_of,
)
from swapjax.robust.objectives import (
    ExampleObjective,
    Scaled,
    cross_entropy,
    is_wrong,
)
from swapjax.robust.pgd import pgd


class FrameworkOptions(TypedDict, total=False):
    """What every framework takes by name.

    Attributes:
        loss: ``(logits [n, K], labels [n]) -> float [n]``, of attack and update; by
            default the cross-entropy.
        head: `Hypersphere` for a network that returns cosines; None for logits.
        training_apply: ``(params, images) -> outputs`` of the update, as with batch
            norm by the statistics of the batch; by default `apply`.
        statistics: ``(params, images) -> params`` with the statistics of those images
            in batch norm: the attack sees the network in inference mode with those of
            the clean batch. By default params as they are, which is right where there
            are no statistics or where they are up to date.
        norm: of the ball, ``"linf"`` by default, or ``"l2"``.
        start: of the attack, ``"gaussian"`` by default, ``"uniform"`` or None.
        box: the least and the largest value of an image, 0 and 1 by default.
    """

    loss: ExampleObjective
    head: Hypersphere | None
    training_apply: Apply | None
    statistics: Callable[[Params, jax.Array], Params] | None
    norm: Norm
    start: Start | None
    box: Box


@dataclasses.dataclass(frozen=True)
class Inner:
    """A network, how losses see it, and an attack on it.

    Attributes:
        apply: in inference mode.
        epsilon: radius of the ball.
        step: length of a step.
        steps: how many.
        loss: as `FrameworkOptions` has it, like all that follow.

    Raises:
        ValueError: for settings out of range.
    """

    apply: Apply
    epsilon: float
    step: float
    steps: int
    loss: ExampleObjective = cross_entropy
    head: Hypersphere | None = None
    training_apply: Apply | None = None
    statistics: Callable[[Params, jax.Array], Params] | None = None
    norm: Norm = "linf"
    start: Start | None = "gaussian"
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        take_amount("epsilon", self.epsilon)
        take_amount("step", self.step)
        require_count("steps", self.steps, least=0)
        require_norm(self.norm)
        require_start(self.start)
        take_box(self.box)
        if self.head is not None and not isinstance(self.head, Hypersphere):
            raise ValueError(f"head must be Hypersphere or None, got {self.head!r}")

    def check(self, params: Params, data: Any) -> jax.Array:
        """Look at images and labels, a batch or all of them, and return the images.

        Raises:
            ValueError: for images outside of the box, and labels that are no classes of
                the network.
        """
        require_pair(data)
        images, *_ = take_batch(
            self.apply, params, *data, epsilon=self.epsilon, norm=self.norm,
            box=self.box,
        )  # fmt: skip
        return images

    def look(self, params: Params, batch: Any) -> tuple:
        """Look at a first batch and what a network makes of it; there is no state.

        Raises:
            ValueError: as `check` does, and for a head that outputs do not fit.
        """
        images = self.check(params, batch)
        known = not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params))
        if self.head is not None and known and not isinstance(images, jax.core.Tracer):
            self.head.require_fits(self.apply(params, images))
        return ()

    def attack(
        self,
        key: jax.Array,
        params: Params,
        images: jax.Array,
        labels: Any,
        objective: ExampleObjective | None = None,
    ) -> jax.Array:
        """Attack images, the network in inference mode.

        Args:
            key: of the start.
            params: of the network.
            images: clean, [n, ...].
            labels: that the objective takes.
            objective: of logits, by default the loss; of a head it sees scaled outputs.
        """
        climbed = objective or self.loss
        if self.head is not None:
            climbed = Scaled(climbed, self.head.scale)
        return pgd(
            key, self.apply, params, images, labels, epsilon=self.epsilon,
            step=self.step, steps=self.steps, objective=climbed, norm=self.norm,
            start=self.start, box=self.box,
        )  # fmt: skip

    def attacked(self, params: Params, images: jax.Array) -> Params:
        """Return the params that the attack sees, without gradient."""
        if self.statistics is not None:
            params = self.statistics(params, images)
        return jax.lax.stop_gradient(params)

    def outputs(self, params: Params, images: jax.Array) -> jax.Array:
        """Return the outputs of the network in training mode."""
        return outputs_of(self.training_apply or self.apply, params, images)

    def logits(self, outputs: jax.Array) -> jax.Array:
        """Return what attacks see of outputs."""
        return outputs if self.head is None else self.head.logits(outputs)

    def pushed(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return what updates see of outputs, with the margin."""
        return outputs if self.head is None else self.head.pushed(outputs, labels)

    def mean_loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the mean loss of an update."""
        pushed = self.pushed(outputs, labels)
        return jnp.mean(values_of(self.loss, pushed, labels, "loss"))


def take_inner(
    apply: Apply, epsilon: float, step: float, steps: int, options: FrameworkOptions
) -> Inner:
    """Take what a framework is given.

    Raises:
        ValueError: for settings out of range, and options that there are none of.
    """
    known = FrameworkOptions.__annotations__
    for name in options:
        if name not in known:
            raise ValueError(f"options must be of {', '.join(known)}, got {name!r}")
    return Inner(apply, epsilon, step, steps, **options)


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the fraction of images that is classified right."""
    return 1 - jnp.mean(is_wrong(outputs, labels), dtype=jnp.float32)
