"""Which entries compete, and which live or die as one: N of every M, blocks."""

import dataclasses
import re
from fractions import Fraction

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves


@dataclasses.dataclass(frozen=True)
class NM:
    """Keep n of every m consecutive entries along an axis of a leaf.

    What 2:4 hardware asks for, along the inputs of a layer: the axis before the last of
    a Flax kernel, ``(in, out)`` or ``(height, width, in, out)``, hence the default. Use
    ``axis=1`` for PyTorch's ``(out, in, ...)``.

    Attributes:
        n: entries kept of a group, 1 or more.
        m: entries of a group.
        axis: along which groups lie.

    Raises:
        ValueError: unless ``1 <= n <= m``.
    """

    n: int
    m: int
    axis: int = -2

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

    def keep(self, path: str, shape: tuple[int, ...]) -> int:
        """Count the entries of a leaf that stay.

        Raises:
            ValueError: for a leaf that does not divide into groups, naming it.
        """
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] % self.m:
            raise ValueError(
                f"pattern {self}: {path} of shape {shape} does not divide into groups "
                f"of {self.m} along axis {self.axis}; exclude it, or override it"
            )
        size = 1
        for side in shape:
            size *= side
        return size // self.m * self.n

    def at(self, progress: Fraction) -> "NM":
        """Make the pattern on the way there: m of m at 0, n of m at 1."""
        gone = Fraction(self.m - self.n) * progress + Fraction(1, 2)
        return dataclasses.replace(self, n=self.m - gone.numerator // gone.denominator)

    def split(self, x: jax.Array) -> jax.Array:
        """Lay the groups of a leaf out along a new last axis, [..., m]."""
        moved = jnp.moveaxis(x, self.axis, -1)
        return moved.reshape(*moved.shape[:-1], -1, self.m)

    def join(self, groups: jax.Array) -> jax.Array:
        """Undo `split`."""
        merged = groups.reshape(*groups.shape[:-2], -1)
        return jnp.moveaxis(merged, -1, self.axis)

    def top(self, keys: jax.Array) -> jax.Array:
        """Mark the n largest of every group; ties go to the lower index.

        Args:
            keys: of any dtype that can be compared, NaN excepted.
        """
        groups = self.split(keys)
        mine, other = groups[..., :, None], groups[..., None, :]
        earlier = jnp.tri(self.m, k=-1, dtype=bool)  # [mine, other]: other before mine
        ahead = (other > mine) | ((other == mine) & earlier)
        return self.join(jnp.sum(ahead, axis=-1, dtype=jnp.int32) < self.n)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclasses.dataclass(frozen=True)
class Block:
    """Keep or remove blocks of a leaf's last two axes, as block-sparse kernels want.

    Of a Flax kernel these are inputs and outputs.

    Attributes:
        rows: entries along the axis before the last.
        columns: entries along the last.

    Raises:
        ValueError: for other than whole numbers from 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        require_count("rows", self.rows)
        require_count("columns", self.columns)

    @property
    def size(self) -> int:
        """The number of entries of a block."""
        return self.rows * self.columns

    def grid(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Tell the shape of a leaf, counted in blocks.

        Raises:
            ValueError: for a leaf that does not divide into blocks, naming it.
        """
        if len(shape) < 2 or shape[-2] % self.rows or shape[-1] % self.columns:
            raise ValueError(
                f"pattern {self}: {path} of shape {shape} does not divide into blocks; "
                "exclude it"
            )
        return (*shape[:-2], shape[-2] // self.rows, shape[-1] // self.columns)

    def split(self, x: jax.Array) -> jax.Array:
        """Lay the entries of each block out along a new last axis, [..., size]."""
        rows, columns = x.shape[-2] // self.rows, x.shape[-1] // self.columns
        parts = x.reshape(*x.shape[:-2], rows, self.rows, columns, self.columns)
        return jnp.moveaxis(parts, -3, -2).reshape(*x.shape[:-2], rows, columns, -1)

    def strength(self, x: jax.Array) -> jax.Array:
        """Average the magnitudes of each block, in float32 or wider."""
        wide = trees.wide((x,))
        return jnp.mean(jnp.abs(self.split(x)).astype(wide), axis=-1)

    def touched(self, mask: jax.Array) -> jax.Array:
        """Mark the blocks that a mask has something of."""
        return jnp.any(self.split(mask), axis=-1)

    def expand(self, grid: jax.Array) -> jax.Array:
        """Give each entry of a leaf what its block has."""
        rows = jnp.repeat(grid, self.rows, axis=-2)
        return jnp.repeat(rows, self.columns, axis=-1)

    def entries(self, grids: Leaves, within: Leaves | None) -> Leaves:
        """Mark the entries of the blocks of several leaves.

        Args:
            grids: which blocks, a bool array a leaf.
            within: entries outside of which none is marked; None for all.
        """
        leaves = tuple(map(self.expand, grids))
        if within is None:
            return leaves
        return tuple(m & w for m, w in zip(leaves, within, strict=True))

    def __str__(self) -> str:
        return f"blocks of {self.rows}x{self.columns}"
