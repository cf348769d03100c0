"""What attacks take: looked at before anything is computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import take_amount
from swapjax.core.types import Params
from swapjax.corruptions.ball import require_norm
from swapjax.corruptions.box import Box, take_images
from swapjax.robust.objectives import ExampleObjective, is_wrong, require_classes

Apply = Callable[[Params, jax.Array], jax.Array]


def take_batch(
    apply: Apply,
    params: Params,
    images: Any,
    labels: Any,
    *,
    epsilon: Any,
    norm: Any,
    box: Any,
) -> tuple[jax.Array, Any, Box]:
    """Check what every attack is given.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``.
        params: of the network.
        images: floats [n, ...] in the box.
        labels: classes, integers [n]; or whatever else the objective takes with a
            leading axis of n.
        epsilon: radius of the ball.
        norm: of the ball.
        box: the least and the largest value of an image.

    Returns:
        Images and labels as arrays, and the box.

    Raises:
        ValueError: naming the argument. Values are compared where they are known, which
            is not under jit.
    """
    require_norm(norm)
    take_amount("epsilon", epsilon)
    dtype = jnp.result_type(images)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images must be floats to have gradients, got {dtype}")
    images, box = take_images("images", images, box)
    if images.ndim < 2:
        raise ValueError(f"images must have shape [n, ...], got {list(images.shape)}")
    labels = jax.tree.map(jnp.asarray, labels)
    for leaf in jax.tree.leaves(labels):
        if leaf.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"labels must have one entry for each of {images.shape[0]} images, "
                f"got shape {list(leaf.shape)}"
            )
    known = not isinstance(images, jax.core.Tracer)
    if known and are_classes(labels):
        require_labels(apply, params, images, labels)
    return images, labels, box


def are_classes(labels: Any) -> bool:
    """Tell whether labels are class indices."""
    return (
        isinstance(labels, jax.Array)
        and labels.ndim == 1
        and jnp.issubdtype(labels.dtype, jnp.integer)
    )


def require_labels(
    apply: Apply, params: Params, images: jax.Array, labels: jax.Array
) -> None:
    """Raise unless labels are classes that the network has an output for.

    Raises:
        ValueError: naming the argument.
    """
    classes = classes_of(apply, params, images)
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    found = np.asarray(labels)
    least, largest = int(found.min()), int(found.max())
    if least < 0 or largest >= classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, one of the {classes} outputs, "
            f"got values from {least} to {largest}"
        )


def require_pair(data: Any) -> None:
    """Raise unless data are images and labels.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"data must be (images, labels), got a {type(data).__name__}")


def require_data(apply: Apply, params: Params, data: Any) -> None:
    """Raise unless data are images with labels that a network can learn.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``.
        params: of the network.
        data: images and labels; of labels that are no classes nothing is asked.

    Raises:
        ValueError: naming the argument.
    """
    require_pair(data)
    images, labels = data
    if are_classes(labels):
        require_labels(apply, params, images, labels)


def outputs_of(apply: Apply, params: Params, images: jax.Array) -> jax.Array:
    """Call a network, and look at what it returns.

    Raises:
        ValueError: for other than logits [n, K] of two classes or more.
    """
    outputs = apply(params, images)
    require_classes(outputs)
    if outputs.shape[0] != images.shape[0]:
        raise ValueError(
            f"apply must return a row for each of {images.shape[0]} images, got "
            f"{outputs.shape[0]}"
        )
    return outputs


def values_of(
    objective: ExampleObjective,
    outputs: jax.Array,
    labels: Any,
    name: str = "objective",
) -> jax.Array:
    """Call an objective or a loss, and look at what it returns.

    Args:
        objective: ``(outputs [n, K], labels) -> float [n]``.
        outputs: of a network.
        labels: that it takes.
        name: of the argument that it was given as.

    Raises:
        ValueError: for other than one float an image.
    """
    values = objective(outputs, labels)
    wanted = outputs.shape[:1]
    if jnp.shape(values) != wanted or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"{name} must return floats {list(wanted)}, one an image, got "
            f"{jnp.result_type(values)}{list(jnp.shape(values))}"
        )
    return values


def judged(
    apply: Apply,
    objective: ExampleObjective,
    params: Params,
    images: jax.Array,
    labels: Any,
) -> tuple[jax.Array, jax.Array]:
    """Tell which images are misclassified, and their objective, both [n].

    Where labels are no classes, and no pair of classes and targets, none is.
    """
    outputs = outputs_of(apply, params, images)
    values = values_of(objective, outputs, labels)
    values = values.astype(jnp.promote_types(images.dtype, jnp.float32))
    truth = labels[0] if isinstance(labels, tuple) else labels
    if are_classes(truth):
        return is_wrong(outputs, truth), values
    return jnp.zeros(values.shape, bool), values


def classes_of(apply: Apply, params: Params, images: jax.Array) -> int:
    """Tell how many classes a network has an output for, without computing any.

    Raises:
        ValueError: for other than logits [n, K] of two classes or more.
    """
    outputs = jax.eval_shape(apply, params, images)
    require_classes(outputs)
    return outputs.shape[1]
