"""What a network has learnt of wrong labels."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import identity
from swapjax.core.checks import require_count
from swapjax.core.types import Params
from swapjax.robust.inputs import Apply

BATCH = 1000  # images in a call


def memorization(
    outputs: Any, noisy: Any, flipped: Any, labels: Any = None
) -> dict[str, float]:
    """Measure what outputs on training examples make of their noisy labels.

    Args:
        outputs: [n, K], larger for classes that are more likely.
        noisy: the labels trained on, integers [n].
        flipped: where they are wrong, bool [n].
        labels: the true ones; None to leave out ``recovered``.

    Returns:
        Percentages: ``memorized``, the flipped examples classified as their noisy
        label; ``recovered``, those classified as their true one; and ``fitted``, the
        other examples classified as their label. What there are no examples of is left
        out.

    Raises:
        ValueError: for shapes that do not fit.
    """
    found = np.argmax(np.asarray(outputs), axis=1)
    noisy, flipped = np.asarray(noisy), np.asarray(flipped, bool)
    for name, array in (("noisy", noisy), ("flipped", flipped)):
        if array.shape != found.shape:
            raise ValueError(
                f"{name} must be of shape {found.shape}, as outputs, got {array.shape}"
            )
    hits = {
        "memorized": (found == noisy)[flipped],
        "fitted": (found == noisy)[~flipped],
    }
    if labels is not None:
        if np.shape(labels) != found.shape:
            raise ValueError(
                f"labels must be of shape {found.shape}, as outputs, got "
                f"{np.shape(labels)}"
            )
        hits["recovered"] = (found == np.asarray(labels))[flipped]
    return {name: _percent(some) for name, some in hits.items() if some.size}


def best_to_last(accuracies: Sequence[float]) -> float:
    """Return how far accuracy fell from its best epoch to the last one.

    Args:
        accuracies: one an epoch, in order.

    Raises:
        ValueError: for none.
    """
    if not len(accuracies):
        raise ValueError("accuracies must be one an epoch, got none")
    return float(max(accuracies)) - float(accuracies[-1])


def class_shares(outputs: jax.Array) -> jax.Array:
    """Return the share of outputs [n, K] that is largest for each class, float [K]."""
    found = jnp.argmax(outputs, axis=-1)
    return jnp.bincount(found, length=outputs.shape[-1]) / outputs.shape[0]


def largest_class(outputs: jax.Array) -> jax.Array:
    """Return the share of the class predicted most by outputs [n, K].

    Training that has ended in one class has 1; the true share of the most frequent
    class is what to compare it with.
    """
    return jnp.max(class_shares(outputs))


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyLabels:
    """What to measure after each epoch of training on noisy labels, for `fit`.

    Called with params it returns percentages by name: ``accuracy`` on the test set,
    ``largest_class_tested`` there, and what `memorization` returns on the training set.

    Attributes:
        apply: ``(params, images) -> outputs [n, K]``, in inference mode.
        test: images and their true labels.
        images: of the training set, or of a part of it.
        noisy: their labels in training.
        flipped: where these are wrong, bool.
        labels: the true ones; None where they are not known.
        batch: images a call.
    """

    apply: Apply
    test: tuple[Any, Any]
    images: Any
    noisy: Any
    flipped: Any
    labels: Any = None
    batch: int = BATCH

    def __post_init__(self) -> None:
        require_count("batch", self.batch)
        for name in ("noisy", "flipped", "labels"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.images):
                raise ValueError(
                    f"{name} must be one an image, {len(self.images)}, got {len(array)}"
                )

    def __call__(self, params: Params) -> dict[str, float]:
        """Measure in percent."""
        images, labels = self.test
        outputs = outputs_in_parts(self.apply, params, images, self.batch)
        right = np.argmax(outputs, axis=1) == np.asarray(labels)
        seen = outputs_in_parts(self.apply, params, self.images, self.batch)
        told = memorization(seen, self.noisy, self.flipped, self.labels)
        shares = class_shares(jnp.asarray(outputs))
        return {
            "accuracy": _percent(right),
            "largest_class_tested": 100 * float(jnp.max(shares)),
            **told,
        }

    def describe(self) -> str:
        """Return a fingerprint of the data."""
        return f"noisy labels, {self._data}"

    @functools.cached_property
    def _data(self) -> str:
        kept = (self.test, self.images, self.noisy, self.flipped)
        return identity.digest(jax.tree.map(jnp.asarray, kept))


def outputs_in_parts(
    apply: Apply, params: Params, images: Any, batch: int = BATCH
) -> np.ndarray:
    """Return the outputs of all images, [n, K], some images at a time.

    Args:
        apply: ``(params, images) -> outputs [n, K]``, in inference mode.
        params: of the network.
        images: [n, ...].
        batch: images a call.
    """
    parts = [
        np.asarray(apply(params, jnp.asarray(images[i : i + batch])))
        for i in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def _percent(hits: np.ndarray) -> float:
    return 100 * float(np.mean(hits))
