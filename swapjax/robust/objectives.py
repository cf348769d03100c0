"""What an attack climbs: how wrong a network is about each image, from its outputs.

An objective is ``(outputs [n, K], labels [n]) -> [n]``, larger the worse for the
network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.robust.label_losses import places

ExampleObjective = Callable[[jax.Array, Any], jax.Array]
RANKED_CLASSES = 4  # that ratios of differences of logits need
_TINY = 1e-12  # two logits that are alike differ by this in a ratio


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the cross-entropy of each image, ``-log softmax(z)_y``.

    Flat where outputs are far apart, and where they lie in [-1, 1] as cosines do: see
    `Scaled` for those.

    Args:
        outputs: logits, floats [n, K].
        labels: integers [n].

    Returns:
        Floats [n], in float32 or wider. Within a compiled function NaN for labels
        outside [0, K).

    Raises:
        ValueError: for outputs of one class, other shapes and dtypes, and labels
            outside [0, K) where they are known.
    """
    return optax.softmax_cross_entropy_with_integer_labels(
        _wide(outputs), places(outputs, labels)
    )


def margin(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the margin that an image is lost by, ``max_{k != y} z_k - z_y``.

    The loss of Carlini and Wagner (arXiv:1608.04644, f_6) without its bound; positive
    where the image is misclassified.

    Args:
        outputs: logits, floats [n, K], K of 2 or more.
        labels: integers [n].

    Returns:
        Floats [n], in float32 or wider.

    Raises:
        ValueError: for outputs of one class.
    """
    require_classes(outputs)
    outputs = _wide(outputs)
    return _largest_other(outputs, labels) - _at(outputs, labels)


def dlr(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the difference-of-logits ratio of each image.

    ``-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))`` with sorted logits z_(1) >= z_(2)
    >= ... (Croce and Hein, ICML 2020, arXiv:2003.01690, eq. 6): neither a shift of the
    logits nor their scale changes it; positive where the image is misclassified.

    Args:
        outputs: logits, floats [n, K], K of 4 or more.
        labels: integers [n].

    Returns:
        Floats [n], in float32 or wider, at most 1.

    Raises:
        ValueError: for fewer classes than 4; `margin` does with 2.
    """
    _require_ranks("dlr", outputs)
    outputs = _wide(outputs)
    top = jax.lax.top_k(outputs, 3)[0]
    lost = _largest_other(outputs, labels) - _at(outputs, labels)
    return lost / (top[:, 0] - top[:, 2] + _TINY)


def dlr_targeted(outputs: jax.Array, labels: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Compute the difference-of-logits ratio towards a class.

    ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`` (arXiv:2003.01690, eq. 7).

    Args:
        outputs: logits, floats [n, K], K of 4 or more.
        labels: two arrays of integers [n], the labels and the classes wanted instead.

    Returns:
        Floats [n], in float32 or wider; positive where the network prefers the class.

    Raises:
        ValueError: for fewer classes than 4; `margin` does with 2.
    """
    _require_ranks("dlr-targeted", outputs)
    outputs = _wide(outputs)
    truth, target = labels
    top = jax.lax.top_k(outputs, 4)[0]
    width = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_at(outputs, target) - _at(outputs, truth)) / (width + _TINY)


def margin_targeted(
    outputs: jax.Array, labels: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Compute by how much the network prefers a class to the label, ``z_t - z_y``.

    Args:
        outputs: logits, floats [n, K], K of 2 or more.
        labels: two arrays of integers [n], the labels and the classes wanted instead.

    Returns:
        Floats [n], in float32 or wider.

    Raises:
        ValueError: for outputs of one class.
    """
    require_classes(outputs)
    outputs = _wide(outputs)
    truth, target = labels
    return _at(outputs, target) - _at(outputs, truth)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """An objective of outputs times a scale, for networks that return cosines.

    What such a network is trained on is the softmax of ``s * cos``; attacks that know
    it climb that.

    Attributes:
        objective: of the outputs times the scale.
        scale: s, the inverse temperature.
    """

    objective: ExampleObjective
    scale: float

    def __call__(self, outputs: jax.Array, labels: Any) -> jax.Array:
        """Compute the objective of each image, [n]."""
        return self.objective(self.scale * outputs, labels)


def is_wrong(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Tell which images are misclassified, ``bool[n]``.

    Outputs that are not finite count as wrong.
    """
    numbers = jnp.all(jnp.isfinite(outputs), axis=-1)
    return (jnp.argmax(outputs, axis=-1) != labels) | ~numbers


def require_classes(outputs: Any) -> None:
    """Raise unless outputs, or their shape, are logits of two classes or more.

    Raises:
        ValueError: naming what was got.
    """
    shape, dtype = outputs.shape, outputs.dtype
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"apply must return floats [n, classes], got {dtype}{list(shape)}"
        )
    if shape[1] < 2:
        raise ValueError(
            "apply must return a logit for each of 2 classes or more, got "
            f"{dtype}{list(shape)}; an attack needs a class to mistake another for"
        )


def _require_ranks(name: str, outputs: jax.Array) -> None:
    require_classes(outputs)
    if outputs.shape[1] < RANKED_CLASSES:
        raise ValueError(
            f"objective {name!r} needs outputs of {RANKED_CLASSES} classes or more, "
            f"got {outputs.shape[1]}; 'margin' does with 2"
        )


def _wide(outputs: jax.Array) -> jax.Array:
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _at(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]


def _largest_other(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    own = jax.nn.one_hot(labels, outputs.shape[1], dtype=bool)
    return jnp.max(jnp.where(own, -jnp.inf, outputs), axis=1)


OBJECTIVES: dict[str, ExampleObjective] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
}
"""The objectives that take labels as they are, by name."""
