"""Labels that are wrong: symmetric, in pairs, or by class."""

import fractions
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import require_count, require_fraction

_ROUNDING = 1e-5  # that sums of probabilities in float32 are off by
_KINDS = "'symmetric', 'pairs', a mapping of classes or a row-stochastic matrix"


def flip_labels(
    key: jax.Array,
    labels: Any,
    rate: float,
    *,
    classes: int,
    kind: Literal["symmetric", "pairs"] | Mapping[int, int] | Any = "symmetric",
    exact: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Replace part of the labels by wrong ones.

    Each example is drawn by itself with probability `rate`, and its label then from a
    distribution that depends on its class alone: the noise transition matrix of the
    field (Patrini et al., CVPR 2017, arXiv:1609.03683; Han et al., NeurIPS 2018,
    arXiv:1804.06872, whose symmetric and pair noise these are). So the share of wrong
    labels is the rate on average, and not in every draw; with `exact` it is that of
    every class in every draw.

    Args:
        key: a JAX PRNG key; the same key gives the same labels.
        labels: integers of any shape, in [0, classes).
        rate: the probability that a label is replaced, in [0, 1). With a matrix it may
            be 1, which takes the matrix as it is: rows of it are mixed with
            ``1 - rate`` of the identity.
        classes: how many there are, 2 or more.
        kind: ``"symmetric"`` draws one of the other classes, all alike; ``"pairs"``
            takes the class after, and 0 after the last; a mapping, such as those of
            `LABEL_MAPS`, takes the class that it has for the true one, and leaves
            classes alone that it does not have; a row-stochastic matrix
            [classes, classes] holds in row c the probabilities of what c is replaced
            by. It may keep c, which is then not flipped.
        exact: whether of the n labels of a class ``floor(rate * n)`` are drawn, which
            ones at random, instead of each by itself. Labels must be known then, which
            they are not under jit.

    Returns:
        The labels in their dtype, and where they are wrong now, ``bool`` of their
        shape.

    Raises:
        ValueError: for a rate out of range, fewer than two classes, labels that are not
            integers or not of a class, an unknown kind, a mapping of what is no class,
            and a matrix of another shape, with entries below 0 or NaN, or with rows
            that do not sum to 1; and for exact counts of labels that are not known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from swapjax.corruptions import flip_labels
        >>> labels = jnp.arange(1000) % 10
        >>> noisy, flipped = flip_labels(jax.random.key(0), labels, 0.4, classes=10)
        >>> bool(jnp.all((noisy != labels) == flipped))
        True
    """
    require_count("classes", classes, 2)
    named = isinstance(kind, str)
    if named and kind not in ("symmetric", "pairs"):
        raise ValueError(f"kind must be {_KINDS}, got {kind!r}")
    matrix = None if named else _take_matrix(kind, classes)
    mapped = isinstance(kind, Mapping)
    require_fraction("rate", rate, one=matrix is not None and not mapped)
    labels = _take_labels(labels, classes)
    who, where = jax.random.split(key)
    if exact:
        drawn = _draw_exactly(who, labels, rate, classes)
    else:
        drawn = jax.random.uniform(who, labels.shape) < float(rate)
    if matrix is None:
        return _flip(where, labels, drawn, int(classes), kind=kind)
    edges = np.cumsum(matrix, axis=1)
    return _replace(where, labels, drawn, np.float32(edges / edges[:, -1:]))


def _take_labels(labels: Any, classes: int) -> jax.Array:
    """Look at labels; their values are known outside of jit only."""
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {array.dtype}")
    if array.size and not isinstance(array, jax.core.Tracer):
        least, largest = int(array.min()), int(array.max())
        if least < 0 or largest >= classes:
            raise ValueError(
                f"labels must be in [0, {classes}), as classes={classes} says, got "
                f"{least} to {largest}"
            )
    return jnp.asarray(array)


def _take_matrix(kind: Any, classes: int) -> np.ndarray:
    if isinstance(kind, Mapping):
        return _matrix_of(kind, classes)
    try:
        matrix = np.asarray(kind, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"kind must be {_KINDS}, got a {type(kind).__name__}"
        ) from None
    if matrix.shape != (classes, classes):
        raise ValueError(
            f"kind must be a matrix of shape ({classes}, {classes}), as "
            f"classes={classes} says, got {matrix.shape}"
        )
    if not (np.isfinite(matrix) & (matrix >= 0)).all():
        raise ValueError(
            "kind must hold probabilities, 0 or more, got entries from "
            f"{matrix.min():g} to {matrix.max():g}"
        )
    sums = matrix.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > _ROUNDING:
        raise ValueError(
            f"kind must have rows that sum to 1, got {sums[worst]:g} in row {worst}"
        )
    return matrix


def _matrix_of(mapping: Mapping[Any, Any], classes: int) -> np.ndarray:
    """Make the matrix of a mapping between classes."""
    matrix = np.eye(classes)
    for source, target in mapping.items():
        for label in (source, target):
            if not isinstance(label, int | np.integer) or not 0 <= label < classes:
                raise ValueError(
                    f"kind must map classes in [0, {classes}), as classes={classes} "
                    f"says, got {source!r} to {target!r}"
                )
        matrix[source] = np.eye(classes)[target]
    return matrix


def _draw_exactly(
    key: jax.Array, labels: jax.Array, rate: float, classes: int
) -> jax.Array:
    """Draw which labels to replace, the same share of each class."""
    if isinstance(labels, jax.core.Tracer):
        raise ValueError("exact: labels must be known, which they are not under jit")
    counts = np.bincount(np.asarray(labels).ravel(), minlength=classes)
    # As written in decimals: 0.8 of 5 is 4, and in binary it may be less.
    share = fractions.Fraction(str(float(rate)))
    wanted = [int(share * int(count)) for count in counts]
    return _first_of_each(key, labels, np.asarray(wanted), np.cumsum(counts) - counts)


@jax.jit
def _first_of_each(
    key: jax.Array, labels: jax.Array, wanted: jax.Array, starts: jax.Array
) -> jax.Array:
    """Mark the first wanted labels of each class in a random order."""
    flat = labels.ravel().astype(jnp.int32)
    order = jnp.lexsort((jax.random.uniform(key, flat.shape), flat))
    ranks = jnp.zeros_like(flat).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    return (ranks - starts[flat] < wanted[flat]).reshape(labels.shape)


@functools.partial(jax.jit, static_argnames="kind")
def _flip(
    key: jax.Array,
    labels: jax.Array,
    flipped: jax.Array,
    classes: jax.Array,
    *,
    kind: str,
) -> tuple[jax.Array, jax.Array]:
    """Move labels on by a step among the classes, never by a whole round."""
    steps: Any = 1
    if kind == "symmetric":
        steps = jax.random.randint(key, labels.shape, 1, classes)
    # In int32: the sum may be beyond what bytes hold.
    moved = (labels.astype(jnp.int32) + steps) % classes
    return jnp.where(flipped, moved.astype(labels.dtype), labels), flipped


@jax.jit
def _replace(
    key: jax.Array, labels: jax.Array, drawn: jax.Array, edges: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw labels from rows of cumulated probabilities, of which each ends in 1."""
    # The first edge above a number below 1 is that of a class with a probability.
    level = jax.random.uniform(key, labels.shape)
    other = jnp.sum(edges[labels.astype(jnp.int32)] <= level[..., None], axis=-1)
    new = jnp.where(drawn, other.astype(labels.dtype), labels)
    return new, new != labels
