"""Attacks by gradients with steps of one length: FGSM and PGD."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count, take_amount, take_key
from swapjax.core.compiled import Compiled
from swapjax.core.types import Params
from swapjax.corruptions.ball import (
    Norm,
    Start,
    cast,
    climb,
    draw,
    project,
    require_start,
    steepest,
)
from swapjax.corruptions.box import Box
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.robust.inputs import Apply, judged, outputs_of, take_batch, values_of
from swapjax.robust.objectives import ExampleObjective, cross_entropy
from swapjax.robust.worst import nothing, worse


def fgsm(
    apply: Apply,
    params: Params,
    images: jax.Array,
    labels: Any,
    *,
    epsilon: Any,
    objective: ExampleObjective = cross_entropy,
    norm: Norm = "linf",
    box: Box = (0.0, 1.0),
) -> jax.Array:
    """Take one step of length epsilon to where the objective rises.

    The fast gradient sign method, ``clip(x + epsilon * sign(dJ/dx), box)`` (Goodfellow
    et al., ICLR 2015, arXiv:1412.6572); in l2 along the gradient.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``, in inference mode, so
            that no image depends on the others.
        params: of the network that is attacked.
        images: floats [n, ...] in the box; all are in one pass, so take as many as fit
            memory.
        labels: integers [n], or whatever else the objective takes, with a leading axis
            of n.
        epsilon: the step, 0 or more, in the unit of the images.
        objective: ``(outputs, labels) -> [n]``, larger the worse.
        norm: ``"linf"`` or ``"l2"``.
        box: the least and the largest value of an image.

    Returns:
        The images attacked, of their shape and dtype, without gradient.

    Raises:
        ValueError: naming the argument, for an epsilon that is negative or not finite,
            images that are not floats in the box, labels that are no outputs of the
            network, a network of one class.
    """
    images, labels, box = take_batch(
        apply, params, images, labels, epsilon=epsilon, norm=norm, box=box
    )
    return _fgsm((apply, objective, norm), params, images, labels, epsilon, box)


def pgd(
    key: jax.Array | None,
    apply: Apply,
    params: Params,
    images: jax.Array,
    labels: Any,
    *,
    epsilon: Any,
    step: Any,
    steps: int,
    objective: ExampleObjective = cross_entropy,
    norm: Norm = "linf",
    restarts: int = 1,
    start: Start | None = "uniform",
    box: Box = (0.0, 1.0),
) -> jax.Array:
    """Climb the objective by steps of one length, within epsilon and the box.

    Projected gradient descent on its negative (Madry et al., ICLR 2018,
    arXiv:1706.06083): ``x <- project(x + step * sign(dJ/dx))``, in l2 along
    ``dJ/dx / |dJ/dx|``. Radius, step, number of steps and of restarts are traced: a
    program serves all of them. In jit and in the loss of a training step it works as
    outside.

    Args:
        key: a JAX PRNG key, of the starts; None without one that is drawn.
        apply: as for `fgsm`, like params, images and labels.
        params: of the network that is attacked.
        images: floats [n, ...] in the box.
        labels: integers [n], or whatever else the objective takes.
        epsilon: radius of the ball, 0 or more, in the unit of the images.
        step: length of a step, likewise.
        steps: how many there are; 0 returns the start.
        objective: ``(outputs, labels) -> [n]``, larger the worse.
        norm: of the ball and the steps, ``"linf"`` or ``"l2"``.
        restarts: how many starts. Of each image the worst end is kept: a misclassified
            one where labels are classes, then the one with the largest objective.
        start: ``"uniform"`` in the ball; ``"gaussian"``, a thousandth of the box from
            the images, as TRADES begins; None at the images.
        box: the least and the largest value of an image.

    Returns:
        The images attacked, of their shape and dtype, without gradient.

    Raises:
        ValueError: naming the argument, as `fgsm` does, and for steps and restarts that
            are too few, restarts of a start that is not drawn, and a missing key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from swapjax import robust
        >>> apply = lambda params, images: images @ params
        >>> params = jnp.array([[1.0, -1.0], [0.5, 0.0]])
        >>> images, labels = jnp.array([[0.75, 0.5]]), jnp.array([0])
        >>> moved = robust.pgd(None, apply, params, images, labels, epsilon=0.25,
        ...                    step=0.125, steps=4, start=None)
        >>> moved - images
        Array([[-0.25, -0.25]], dtype=float32)
    """
    images, labels, box = take_batch(
        apply, params, images, labels, epsilon=epsilon, norm=norm, box=box
    )
    take_amount("step", step)
    require_count("steps", steps, least=0)
    require_count("restarts", restarts)
    require_start(start)
    if start is None:
        if restarts > 1:
            raise ValueError(f"restarts must be 1 with start=None, got {restarts}")
    elif key is None:
        raise ValueError(f"key: start={start!r} needs a PRNG key, got None")
    else:
        take_key(key, traced=True)
    static = apply, objective, norm, start, restarts > 1
    sizes = epsilon, step, int(steps), int(restarts)
    return _pgd(static, key, params, images, labels, sizes, box)


def slope_of(
    apply: Apply, objective: ExampleObjective, params: Params, labels: Any
) -> Callable[[jax.Array], jax.Array]:
    """Make the function that tells each image's gradient of its objective, [n, ...]."""

    def total(images: jax.Array, params: Params, labels: Any) -> jax.Array:
        outputs = outputs_of(apply, params, images)
        return jnp.sum(values_of(objective, outputs, labels))

    gradient = canonical_convolutions(jax.grad(total))
    return lambda images: gradient(images, params, labels)


@Compiled
def _fgsm(
    apply: Apply,
    objective: ExampleObjective,
    norm: Norm,
    params: Params,
    images: jax.Array,
    labels: Any,
    epsilon: jax.Array,
    box: Any,
) -> jax.Array:
    params, images, labels = jax.lax.stop_gradient((params, images, labels))
    epsilon, *ends = cast((epsilon, *box), images)
    slope = slope_of(apply, objective, params, labels)
    moved = images + epsilon * steepest(slope(images), norm)
    return project(moved, images, epsilon, norm, tuple(ends))


@Compiled
def _pgd(
    apply: Apply,
    objective: ExampleObjective,
    norm: Norm,
    start: Start | None,
    several: bool,
    key: Any,
    params: Params,
    images: jax.Array,
    labels: Any,
    sizes: Any,
    box: Any,
) -> jax.Array:
    # Nothing flows back through an attack, and its loops could not be followed.
    params, images, labels = jax.lax.stop_gradient((params, images, labels))
    epsilon, step, *ends = cast((*sizes[:2], *box), images)
    ball = tuple(ends)
    slope = slope_of(apply, objective, params, labels)

    def attack(number: Any) -> jax.Array:
        first = images
        if start is not None:
            chosen = jax.random.fold_in(key, number)
            first = draw(chosen, images, epsilon, norm, ball, start)
        return climb(slope, images, first, (epsilon, step, sizes[2]), norm, ball)

    if not several:
        return attack(0)
    judge = canonical_convolutions(
        lambda x, params, labels: judged(apply, objective, params, x, labels)
    )

    def again(i: jax.Array, best: tuple) -> tuple:
        x = attack(i)
        return worse(best, (x, *judge(x, params, labels)))

    return jax.lax.fori_loop(0, sizes[3], again, nothing(images))[0]
