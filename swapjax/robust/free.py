"""Adversarial training for free: one backward pass for the weights and the images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count
from swapjax.core.objective import Objective, value_and_grad
from swapjax.core.types import Params
from swapjax.corruptions.ball import Norm, cast, project, steepest
from swapjax.corruptions.box import Box
from swapjax.robust.hypersphere import Hypersphere
from swapjax.robust.inner import Inner, accuracy
from swapjax.robust.inputs import Apply
from swapjax.robust.objectives import ExampleObjective, cross_entropy

REPLAYS = 8  # of the authors, on CIFAR-10


def free_at(
    apply: Apply,
    *,
    epsilon: float,
    step: float | None = None,
    replays: int = REPLAYS,
    loss: ExampleObjective = cross_entropy,
    head: Hypersphere | None = None,
    training_apply: Apply | None = None,
    norm: Norm = "linf",
    box: Box = (0.0, 1.0),
) -> Objective:
    """Train on images and a shift of them that is learnt along with the weights.

    FreeAT (Shafahi et al., NeurIPS 2019, arXiv:1904.12843): each batch is taken for
    some steps in a row. A step has one forward and one backward pass, in training mode,
    at ``clip(x + delta)``; its gradient by the weights goes to the optimizer, and that
    by delta moves it, ``delta <- project(delta + step sign(g))``. Delta has the shape
    of a batch, begins at zero, is kept from batch to batch and never begun anew. A
    head's margin is in both gradients, which are of one loss.

    For as many steps as a plain run has, divide its epochs by the replays.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``, in inference mode.
        epsilon: radius of the ball, in the unit of the images.
        step: how far delta goes in a step, epsilon by default.
        replays: steps that a batch is taken for.
        loss: ``(logits, labels) -> float [n]``.
        head: `Hypersphere` for a network that returns cosines.
        training_apply: as `FrameworkOptions` has it.
        norm: of the ball, ``"linf"`` or ``"l2"``.
        box: the least and the largest value of an image.

    Returns:
        An objective whose state is delta. It tells ``robust_accuracy``, that at the
        shifted images.

    Raises:
        ValueError: as `pgd_at` does, and for less than one replay.
    """
    size = epsilon if step is None else step
    inner = Inner(
        apply, epsilon, size, 1, loss, head, training_apply, norm=norm, box=box
    )
    require_count("replays", replays)

    def init(params: Params, batch: Any) -> jax.Array:
        inner.look(params, batch)
        return jnp.zeros_like(batch[0])

    def gradient(
        params: Params, delta: jax.Array, batch: Any, key: jax.Array
    ) -> tuple[Params, jax.Array, jax.Array, dict]:
        del key
        images, labels = batch

        def shifted(both: tuple[Params, jax.Array]) -> tuple[jax.Array, dict]:
            outputs = inner.outputs(both[0], jnp.clip(images + both[1], *box))
            told = {"robust_accuracy": accuracy(outputs, labels)}
            return inner.mean_loss(outputs, labels), told

        (value, told), (slopes, rise) = value_and_grad(shifted, (params, delta))
        radius, length = cast((epsilon, size), images)
        whole = (-jnp.inf, jnp.inf)  # the box is of images, not of shifts
        moved = delta + length * steepest(rise, norm)
        new = project(moved, jnp.zeros_like(delta), radius, norm, whole)
        return slopes, value, new, told

    return Objective(_of(gradient), init, gradient, replays, inner.check)


def _of(gradient: Callable) -> Callable:
    """Make the loss of what computes a gradient."""

    def loss(
        params: Params, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, dict]:
        return gradient(params, state, batch, key)[1:]

    return loss
