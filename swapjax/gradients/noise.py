"""Corruption of gradient rows; every draw comes from an explicit key."""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.sparsity.topk import top_keys


@dataclasses.dataclass(frozen=True)
class GradientNoise:
    """Noise on part of the gradient rows, Gaussian or with heavy tails.

    The deviation of the noise on a row is `scale` times the standard deviation of
    that row over all its prunable entries, all layers together: layers with small
    gradients drown first. Losses stay clean, and with them what `swap` chooses by the
    loss: support, damping, and the length of the first-order step.

    Attributes:
        scale: deviation of the noise, in deviations of the row; 0 or more.
        proportion: the fraction that is corrupted, in [0, 1].
        unit: ``"coordinate"`` corrupts ``floor(proportion * p)`` entries of every row,
            drawn anew for each, as the released SWAP code does; ``"row"`` corrupts
            every entry of ``floor(proportion * n)`` rows. The paper's text admits both
            readings.
        degrees: None for Gaussian noise; a number, 1 or more, for Student's t with as
            many degrees of freedom. Above 2 it is scaled to the same deviation; up to 2
            none exists, and it is t times what the deviation would be. 1 is Cauchy's
            distribution.

    Raises:
        ValueError: for values outside those.
    """

    scale: float
    proportion: float
    unit: Literal["coordinate", "row"] = "coordinate"
    degrees: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"noise scale must be 0 or more, got {self.scale}")
        if not 0 <= self.proportion <= 1:
            raise ValueError(
                f"noise proportion must be in [0, 1], got {self.proportion}"
            )
        if self.unit not in ("coordinate", "row"):
            raise ValueError(
                f"noise unit must be 'coordinate' or 'row', got {self.unit!r}"
            )
        if self.degrees is not None and not (
            math.isfinite(self.degrees) and self.degrees >= 1
        ):
            raise ValueError(
                f"noise degrees must be None or a number from 1, got {self.degrees}"
            )

    def __call__(
        self, key: jax.Array, shared: jax.Array, index: jax.Array, n: int, row: Leaves
    ) -> Leaves:
        """Corrupt one row.

        Args:
            key: PRNG key of this row alone.
            shared: PRNG key that all rows have in common.
            index: the row number.
            n: the number of rows.
            row: its leaves.
        """
        where, what = jax.random.split(key)
        size = sum(leaf.size for leaf in row)
        mean = sum(jnp.sum(leaf) for leaf in row) / size
        apart = tuple(leaf - mean for leaf in row)
        # Squares of tiny gradients would vanish: a power of two is taken out first.
        largest = jnp.stack([jnp.max(jnp.abs(a), initial=0) for a in apart]).max()
        power = jnp.frexp(largest)[1]
        squares = sum(jnp.sum(jnp.square(jnp.ldexp(a, -power))) for a in apart)
        deviation = jnp.ldexp(jnp.sqrt(squares / max(size - 1, 1)), power)
        deviation = self.scale * deviation
        if self.unit == "coordinate":
            # Random integers stand in for scores: the largest are a random subset.
            draws = tuple(
                jax.random.bits(k, leaf.shape, jnp.uint32)
                for k, leaf in zip(jax.random.split(where, len(row)), row, strict=True)
            )
            hit = top_keys(draws, self._share(size))
        else:
            # The permutation is the same for all rows.
            place = jax.random.permutation(shared, n)[index]
            hit = (place < self._share(n),) * len(row)
        return tuple(
            jnp.where(h, leaf + deviation * self._draw(k, leaf), leaf)
            for k, h, leaf in zip(
                jax.random.split(what, len(row)), hit, row, strict=True
            )
        )

    def _draw(self, key: jax.Array, leaf: jax.Array) -> jax.Array:
        """Draw noise of deviation 1 for a leaf."""
        if self.degrees is None:
            return jax.random.normal(key, leaf.shape, leaf.dtype)
        degrees = float(self.degrees)
        unit = math.sqrt((degrees - 2) / degrees) if degrees > 2 else 1.0
        return (unit * _student(key, degrees, leaf)).astype(leaf.dtype)

    def _share(self, count: int) -> int:
        """Compute ``floor(proportion * count)`` exactly: 0.29 of 100 are 29."""
        return math.floor(Fraction(repr(float(self.proportion))) * count)


def _student(key: jax.Array, degrees: float, leaf: jax.Array) -> jax.Array:
    """Draw from Student's t, an entry of a leaf each, in float32 or wider.

    In closed form, as Box and Muller's normal numbers are: the radius of a t in the
    plane at a random angle (Bailey, Mathematics of Computation 62, 1994).
    """
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    radius, angle = (
        jax.random.uniform(k, leaf.shape, wide) for k in jax.random.split(key)
    )
    # log of a number in (0, 1].
    log = jnp.log1p(-radius)
    squared = degrees * jnp.expm1(-2 / degrees * log)
    return jnp.sqrt(squared) * jnp.cos(2 * jnp.pi * angle)
