"""Scores of a supernet's operations by a loss, and FreeFlow as its code has it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.search import layers
from swapjax.search.freeflow import Alpha, OperationScore, freeflow
from swapjax.search.labelled import mean_cross_entropy, require_classes, take_batch
from swapjax.search.space import Space


def snip_ops(space: Space, batch: Any, *, norm: str = "train") -> OperationScore:
    """Score operations by ``|alpha dL/dalpha|``, the loss's change to first order.

    SNIP (arXiv 1810.02340) on the operations of a supernet, as arXiv 2106.11542 v2 has
    it. In float32.

    Args:
        space: of the supernet.
        batch: images [n, height, width, channels] and labels int[n].
        norm: what batch norm does, as `Space.apply` takes it.

    Returns:
        ``score(theta, alpha) -> scores``, for `remove`.

    Raises:
        ValueError: for another norm, and other than images with a label each.
    """
    loss = _loss(space, batch, norm)

    @jax.jit
    def found(theta: Any, alpha: Alpha) -> Alpha:
        slopes = canonical_convolutions(jax.grad(loss))(alpha, theta)
        return jax.tree.map(lambda a, s: jnp.abs(a * s), alpha, slopes)

    return _on_the_host(found)


def grasp_ops(space: Space, batch: Any, *, norm: str = "train") -> OperationScore:
    """Score operations by ``alpha (H g)``, what the gradient's norm would lose.

    GraSP (arXiv 2002.07376) on the operations of a supernet, as arXiv 2106.11542 v2
    has it but for a step of Adam that its code takes on alpha in between. H is the
    Hessian of the loss by alpha, g its gradient. Scores have signs: an operation below
    zero holds the gradient back. In float32.

    Args:
        space: of the supernet.
        batch: images [n, height, width, channels] and labels int[n].
        norm: what batch norm does, as `Space.apply` takes it.

    Returns:
        ``score(theta, alpha) -> scores``, for `remove`.

    Raises:
        ValueError: for another norm, and other than images with a label each.
    """
    loss = _loss(space, batch, norm)

    @jax.jit
    def found(theta: Any, alpha: Alpha) -> Alpha:
        def product(alpha: Alpha) -> Alpha:
            gradient = jax.grad(lambda alpha: loss(alpha, theta))
            return jax.jvp(gradient, (alpha,), (gradient(alpha),))[1]

        products = canonical_convolutions(product)(alpha)
        return jax.tree.map(jnp.multiply, alpha, products)

    return _on_the_host(found)


def synflow_ops(
    space: Space, *, shape: tuple[int, int, int] = (32, 32, 3)
) -> OperationScore:
    """Score operations as the code of arXiv 2106.11542 v2 does: batch norm, float32.

    `freeflow` with ``norm="train"`` and ``dtype="float32"``, meant for
    ``alpha="random"`` of `remove`. Here to be compared with.

    Args:
        space: of the supernet.
        shape: of one image.

    Returns:
        ``score(theta, alpha) -> scores``, for `remove`.

    Raises:
        ValueError: for a shape that the space cannot take.
    """
    return freeflow(space, shape=shape, norm="train", dtype="float32")


def _on_the_host(found: Any) -> OperationScore:
    def score(theta: Any, alpha: Alpha) -> dict[str, np.ndarray]:
        tables = found(theta, jax.tree.map(jnp.asarray, alpha))
        return {kind: np.asarray(x, np.float64) for kind, x in tables.items()}

    return score


def _loss(space: Space, batch: Any, norm: str) -> Callable[[Alpha, Any], jax.Array]:
    layers.require_norm(norm)
    x, y = take_batch(batch)

    def loss(alpha: Alpha, theta: Any) -> jax.Array:
        logits = space.apply(theta, alpha, x, norm=norm)
        require_classes(y, logits.shape[-1])
        return mean_cross_entropy(logits, y)

    return loss
