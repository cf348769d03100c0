"""Batches of images that attacks are tried on, and a look at what they hand back."""

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.checks import require_count, take_key
from swapjax.core.compiled import Compiled
from swapjax.core.types import Params
from swapjax.corruptions.ball import Norm, norms
from swapjax.corruptions.box import Box
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.robust.inputs import (
    Apply,
    classes_of,
    outputs_of,
    require_pair,
    take_batch,
)
from swapjax.robust.objectives import (
    ExampleObjective,
    Scaled,
    cross_entropy,
    is_wrong,
)

_SLACK = 8  # roundings of a value that an attack may be off its ball by


class Inputs(NamedTuple):
    """What is attacked, checked."""

    apply: Apply
    params: Params
    images: np.ndarray
    labels: np.ndarray
    epsilon: float
    norm: Norm
    box: Box
    batch: int
    classes: int
    key: jax.Array

    def part(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Take images and labels of a batch, the first ones again where it is short."""
        count = len(index)
        index = np.resize(index, self.batch)
        return self.images[index], self.labels[index], count

    def batches(self, index: np.ndarray) -> Iterator[np.ndarray]:
        """Split images by their numbers."""
        for start in range(0, len(index), self.batch):
            yield index[start : start + self.batch]


def take(
    apply: Apply,
    params: Params,
    data: Any,
    epsilon: Any,
    norm: Any,
    box: Any,
    batch: Any,
    scale: Any,
    restarts: Any,
    key: Any,
) -> Inputs:
    """Check what `evaluate` is given.

    Raises:
        ValueError: naming the argument.
    """
    require_pair(data)
    require_count("batch", batch)
    require_count("restarts", restarts)
    take_key(key)
    is_number = isinstance(scale, numbers.Real) and math.isfinite(scale)
    if scale is not None and not (is_number and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    trees.require_arrays(params, "params")
    images, labels, box = take_batch(
        apply, params, *data, epsilon=epsilon, norm=norm, box=box
    )
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers [n], got {labels.dtype}{list(labels.shape)}"
        )
    if not len(images):
        raise ValueError("data must have one image or more, got none")
    return Inputs(
        apply, params, np.asarray(images), np.asarray(labels), epsilon, norm, box,
        min(batch, len(images)), classes_of(apply, params, images), key,
    )  # fmt: skip


def look(inputs: Inputs, scale: float | None) -> tuple[np.ndarray, float, float]:
    """Classify all images as they are.

    Returns:
        Whether each is classified right; the fraction of their input gradient that is
        exactly zero; the largest absolute value of an output.
    """
    objective: ExampleObjective = cross_entropy
    if scale is not None:
        objective = Scaled(cross_entropy, scale)
    correct, zeros, largest = [], [], 0.0
    for index in inputs.batches(np.arange(len(inputs.images))):
        images, labels, count = inputs.part(index)
        wrong, zero, size = _looked(
            (inputs.apply, objective), inputs.params, images, labels
        )
        correct.append(~np.asarray(wrong)[:count])
        zeros.append(np.asarray(zero)[:count])
        largest = max(largest, float(size))
    right = np.concatenate(correct)
    zero = np.concatenate(zeros)[right]
    return right, float(zero.mean()) if zero.size else 0.0, largest


def attack_batch(
    inputs: Inputs,
    name: str,
    method: Callable[..., jax.Array],
    key: jax.Array,
    number: int,
    index: np.ndarray,
) -> np.ndarray:
    """Attack a batch, and tell which images fell."""
    images, labels, count = inputs.part(index)
    moved = method(
        jax.random.fold_in(key, number), inputs.apply, inputs.params,
        jnp.asarray(images), jnp.asarray(labels),
        epsilon=inputs.epsilon, norm=inputs.norm, box=inputs.box,
    )  # fmt: skip
    if jnp.shape(moved) != images.shape:
        raise ValueError(
            f"attack {name!r} must return images {list(images.shape)}, got "
            f"{list(jnp.shape(moved))}"
        )
    wrong, length, least, most = _judged(
        (inputs.apply, inputs.norm), inputs.params, images, moved, labels
    )
    low, high = inputs.box
    rounding = _SLACK * float(jnp.finfo(images.dtype).eps) * max(abs(low), abs(high))
    spread = math.sqrt(images[0].size) if inputs.norm == "l2" else 1.0
    inside = low - rounding <= float(least) <= float(most) <= high + rounding
    if not (inside and float(length) <= inputs.epsilon + spread * rounding):
        raise ValueError(
            f"attack {name!r} must stay within {inputs.epsilon:g} of images and in the "
            f"box from {low:g} to {high:g}, got a shift of {float(length):g} and "
            f"values from {float(least):g} to {float(most):g}"
        )
    return np.asarray(wrong)[:count]


@Compiled
def _looked(
    apply: Apply,
    objective: ExampleObjective,
    params: Params,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tell which images are misclassified, which part of their gradient is zero."""

    def loss(images: jax.Array, params: Params, labels: jax.Array) -> tuple:
        outputs = outputs_of(apply, params, images)
        return jnp.sum(objective(outputs, labels)), outputs

    slope = canonical_convolutions(jax.grad(loss, has_aux=True))
    gradient, outputs = slope(images, params, labels)
    axes = tuple(range(1, images.ndim))
    zeros = jnp.mean(gradient == 0, axis=axes, dtype=jnp.float32)
    size = jnp.where(jnp.isfinite(outputs), jnp.abs(outputs), jnp.inf)
    return is_wrong(outputs, labels), zeros, jnp.max(size)


@Compiled
def _judged(
    apply: Apply,
    norm: Norm,
    params: Params,
    images: jax.Array,
    moved: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, ...]:
    outputs = canonical_convolutions(apply)(params, moved)
    length = jnp.max(norms(moved - images, norm))
    # Sums with 0 times it show what is not a number, which XLA's maximum hides.
    spoilt = jnp.sum(moved * 0)
    ends = jnp.min(moved) + spoilt, jnp.max(moved) + spoilt
    return is_wrong(outputs, labels), length + spoilt, *ends
