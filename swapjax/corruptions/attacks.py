"""Images that an adversary has changed: FGSM and PGD in a ball of the largest norm."""

from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count, take_amount
from swapjax.core.compiled import Compiled
from swapjax.core.losses import require_scalar
from swapjax.core.types import LossFn, Params
from swapjax.corruptions.ball import cast, climb, draw
from swapjax.corruptions.box import Box, take_images
from swapjax.loops.convolutions.canonical import canonical_convolutions


def fgsm(
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    epsilon: float,
    *,
    box: Box = (0.0, 1.0),
) -> jax.Array:
    """Move every value of images by epsilon to where the loss rises.

    The fast gradient sign method: ``clip(x + epsilon * sign(dL/dx), box)``
    (Goodfellow et al., ICLR 2015, arXiv:1412.6572). A value without a gradient stays.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch; the network in
            inference mode, so that no image depends on the others.
        params: of the network that is attacked.
        batch: ``(images, labels)``, the images floats [n, ...] of any shape; all of it
            is in one pass, so take as much as fits memory.
        epsilon: the step, 0 or more, in the unit of the images.
        box: the least and the largest value of an image. For data with mean m and
            deviation s taken out, ``(-m / s, (1 - m) / s)``, and epsilon divided by s.

    Returns:
        The images attacked, of their shape and dtype. Labels stay as they are.

    Raises:
        ValueError: for a batch without images, images that are not floats or not in the
            box, an epsilon that is negative or not finite, a box without width, and a
            loss that is not a scalar.
    """
    images, rest, box = _take_batch(batch, box)
    take_amount("epsilon", epsilon)
    return _fgsm((loss_fn,), params, images, rest, epsilon, box)


def pgd(
    key: jax.Array | None,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    epsilon: float,
    step: float,
    steps: int,
    *,
    box: Box = (0.0, 1.0),
    random_start: bool = True,
) -> jax.Array:
    """Climb the loss by signed steps, within epsilon of the images and in the box.

    Projected gradient descent on the negative loss (Madry et al., ICLR 2018,
    arXiv:1706.06083): from a point drawn uniformly from the ball,
    ``x <- project(x + step * sign(dL/dx))`` as many times as there are steps, the
    projection onto the ball of the largest norm and onto the box.

    Args:
        key: a JAX PRNG key, of the start; None without one that is drawn.
        loss_fn: as for `fgsm`, like params and batch.
        params: of the network that is attacked.
        batch: ``(images, labels)``.
        epsilon: radius of the ball, 0 or more, in the unit of the images.
        step: how far each step goes, likewise.
        steps: how many there are, 1 or more.
        box: the least and the largest value of an image.
        random_start: whether to start anywhere in the ball, instead of at the images.

    Returns:
        The images attacked, of their shape and dtype.

    Raises:
        ValueError: as `fgsm` does, for a step that is negative or not finite, fewer
            steps than 1, and a start to draw without a key.
    """
    images, rest, box = _take_batch(batch, box)
    take_amount("epsilon", epsilon)
    take_amount("step", step)
    require_count("steps", steps)
    if random_start and key is None:
        raise ValueError("key: a random start needs a PRNG key, got None")
    start = images
    if random_start:
        start = _anywhere(key, images, epsilon, box)
    sizes = epsilon, step, int(steps)
    return _pgd((loss_fn,), params, images, start, rest, sizes, box)


def _take_batch(batch: Any, box: Any) -> tuple[jax.Array, tuple, Box]:
    if not isinstance(batch, tuple | list) or not batch:
        raise ValueError(
            f"batch must be (images, labels), got a {type(batch).__name__}"
        )
    dtype = jnp.result_type(batch[0])
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"images of batch must be floats to have gradients, got {dtype}"
        )
    images, box = take_images("images of batch", batch[0], box)
    return images, tuple(batch[1:]), box


def _slope(loss_fn: LossFn, params: Params, rest: tuple) -> Any:
    """Make the function that tells the gradient of the loss at images."""

    def loss(images: jax.Array, params: Params, rest: tuple) -> jax.Array:
        returned = loss_fn(params, (images, *rest))
        require_scalar(returned)
        return returned

    gradient = canonical_convolutions(jax.grad(loss))
    return lambda images: gradient(images, params, rest)


@Compiled
def _fgsm(
    loss_fn: LossFn,
    params: Params,
    images: jax.Array,
    rest: tuple,
    epsilon: jax.Array,
    box: Any,
) -> jax.Array:
    epsilon, low, high = cast((epsilon, *box), images)
    signs = jnp.sign(_slope(loss_fn, params, rest)(images))
    return jnp.clip(images + epsilon * signs, low, high)


@Compiled
def _pgd(
    loss_fn: LossFn,
    params: Params,
    images: jax.Array,
    start: jax.Array,
    rest: tuple,
    sizes: Any,
    box: Any,
) -> jax.Array:
    epsilon, step, *ends = cast((*sizes[:2], *box), images)
    slope = _slope(loss_fn, params, rest)
    sizes = epsilon, step, sizes[2]
    return climb(slope, images, start, sizes, "linf", tuple(ends))


@jax.jit
def _anywhere(
    key: jax.Array, images: jax.Array, epsilon: jax.Array, box: Any
) -> jax.Array:
    epsilon, *ends = cast((epsilon, *box), images)
    return draw(key, images, epsilon, "linf", tuple(ends))
