"""N of every M: entries that compete with their neighbours alone."""

import dataclasses
import math
import re
from fractions import Fraction

import jax
import jax.numpy as jnp

from swapjax.roles.role import Role


@dataclasses.dataclass(frozen=True)
class NM:
    """Keep n of every m consecutive inputs of each output of a layer.

    What 2:4 hardware asks for. Where the inputs of a leaf lie its role tells, for every
    framework; the pixels of a convolution's kernel are passed over, for its channels.

    Attributes:
        n: entries kept of a group, 1 or more.
        m: entries of a group.
        axis: along which groups lie, or several that are counted through as one; None
            for the inputs.
        is_told: whether the axis is that of a leaf's inputs, as `swapjax.plan` sets it.

    Raises:
        ValueError: unless ``1 <= n <= m``.
    """

    n: int
    m: int
    axis: int | tuple[int, ...] | None = None
    is_told: bool = dataclasses.field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # A gradual pattern has a traced n under jit.
        if isinstance(self.n, int) and not 1 <= self.n <= self.m:
            raise ValueError(f"pattern must keep 1 to m of m, got {self.n} of {self.m}")

    @classmethod
    def parse(cls, text: str) -> "NM":
        """Read ``"2:4"``.

        Raises:
            ValueError: for another form.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if match is None:
            raise ValueError(f"pattern must be like 2:4, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def onto(self, path: str, shape: tuple[int, ...], role: Role) -> "NM":
        """Make the pattern for one leaf, with the axes that its groups lie along.

        Args:
            path: of the leaf.
            shape: of the leaf.
            role: of the leaf.

        Returns:
            A pattern whose axis is a number from 0, or several.

        Raises:
            ValueError: for a leaf whose inputs are not known, and one that does not
                divide into groups, naming it.
        """
        along = self.axis if self.axis is not None else role.channels or role.inputs
        if along == ():
            raise ValueError(
                f"pattern {self}: which axes of {path} are inputs is not known, it "
                f"{role.reason or 'is no matrix'}; say so with axes=, or exclude it"
            )
        axes = (along,) if isinstance(along, int) else along
        inside = all(-len(shape) <= a < len(shape) for a in axes)
        axes = tuple(a % len(shape) for a in axes) if inside else axes
        # Groups within the last axis need no entries of the others.
        if inside and len(axes) > 1 and shape[axes[-1]] % self.m == 0:
            axes = axes[-1:]
        if not inside or math.prod(shape[a] for a in axes) % self.m:
            raise ValueError(
                f"pattern {self}: {path} of shape {shape} does not divide into groups "
                f"of {self.m} along {_axes(axes)}; exclude it, or override it"
            )
        if set(axes) & set(role.stack):
            raise ValueError(
                f"pattern {self}: {path} of shape {shape} has layers along "
                f"{_axes(axes)}; leave axis out for groups along its inputs"
            )
        axis = axes[0] if len(axes) == 1 else axes
        return dataclasses.replace(self, axis=axis, is_told=self.axis is None)

    def at(self, progress: Fraction) -> "NM":
        """Make the pattern on the way there: m of m at 0, n of m at 1."""
        gone = Fraction(self.m - self.n) * progress + Fraction(1, 2)
        return dataclasses.replace(self, n=self.m - gone.numerator // gone.denominator)

    def split(self, x: jax.Array) -> jax.Array:
        """Lay the groups of a leaf out along a new last axis, [..., m]."""
        axes = self._along
        moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
        return moved.reshape(*moved.shape[: -len(axes)], -1, self.m)

    def join(self, groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Undo `split`.

        Args:
            groups: [..., m].
            shape: of the leaf.
        """
        axes = self._along
        sides = tuple(shape[a] for a in axes)
        merged = groups.reshape(*groups.shape[:-2], *sides)
        return jnp.moveaxis(merged, range(-len(axes), 0), axes)

    def firsts(self, shape: tuple[int, ...]) -> jax.Array:
        """Give each entry of a leaf the flat index of the first of its group."""
        places = jax.lax.iota(jnp.int32, math.prod(shape)).reshape(shape)
        groups = self.split(places)
        return self.join(jnp.broadcast_to(groups[..., :1], groups.shape), shape)

    @property
    def _along(self) -> tuple[int, ...]:
        if self.axis is None:
            raise ValueError(
                f"pattern {self}: has no axis yet; swapjax.plan finds that of each leaf"
            )
        return (self.axis,) if isinstance(self.axis, int) else self.axis

    def top(self, keys: jax.Array) -> jax.Array:
        """Mark the n largest of every group; ties go to the lower index.

        Args:
            keys: of any dtype that can be compared, NaN excepted.
        """
        groups = self.split(keys)
        mine, other = groups[..., :, None], groups[..., None, :]
        earlier = jnp.tri(self.m, k=-1, dtype=bool)  # [mine, other]: other before mine
        ahead = (other > mine) | ((other == mine) & earlier)
        kept = jnp.sum(ahead, axis=-1, dtype=jnp.int32) < self.n
        return self.join(kept, keys.shape)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def _axes(axes: tuple[int, ...]) -> str:
    listed = ", ".join(map(str, axes))
    return f"axis {listed}" if len(axes) == 1 else f"axes {listed}"
