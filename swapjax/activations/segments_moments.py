"""What the layers of one part of a program read, and what it hands on, by rows.

A row is a batch of the loss. Rows go through a part side by side, some at a time, and
equal parts share what is compiled for them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.activations.segments import Segment
from swapjax.activations.segments_code import Run
from swapjax.activations.segments_unroll import Ref
from swapjax.activations.trace import find_products, has_branches, join_layers
from swapjax.core import trees
from swapjax.core.compiled import Compiled


def hand_on(
    segment: Segment, leaves: Sequence[jax.Array], values: dict[int, Any]
) -> dict[int, jax.Array]:
    """Run a part for several rows.

    Args:
        segment: the part.
        leaves: one array for each that it reads.
        values: by number, with a leading axis of rows.

    Returns:
        What it gives, likewise.
    """
    taken = [values[i] for i in segment.takes]
    if not taken:
        raise ValueError("values: a part that takes none has no rows")
    found = _run(
        (segment.run,), tuple(leaves), segment.constants, taken, owners=(segment.run,)
    )
    return dict(zip(segment.gives, found, strict=True))


@Compiled
def _run(
    run: Run, leaves: tuple, constants: tuple, values: list[jax.Array]
) -> tuple[jax.Array, ...]:
    one = lambda row: run(leaves, constants, row)  # noqa: E731

    def function(leaves: tuple, values: list[jax.Array]) -> Any:
        return run(leaves, constants, values)

    if has_branches(function, leaves, values, trees.paths(leaves)):
        return jax.lax.map(one, values)
    return jax.vmap(one)(values)


class Moments:
    """The second moments of what some layers of a part read, summed over rows.

    Args:
        segment: the part.
        refs: the layers, of those that it reads.
        batch: examples a row.
        name: makes the name of a leaf for messages.
    """

    def __init__(
        self,
        segment: Segment,
        refs: Sequence[Ref],
        *,
        batch: int,
        name: Callable[[Ref], str],
    ) -> None:
        self._segment, self._batch, self._rows = segment, batch, 0
        self._names = [name(ref) for ref in segment.reads]
        self._places = tuple(segment.reads.index(ref) for ref in refs)
        self._total: tuple[jax.Array, ...] | None = None

    def add(self, leaves: Sequence[jax.Array], values: dict[int, Any]) -> None:
        """Add some rows.

        Args:
            leaves: one array for each that the part reads.
            values: by number, with a leading axis of rows.

        Raises:
            ValueError: naming the leaf, for one that is no matrix of a layer.
        """
        taken = [values[i] for i in self._segment.takes]
        arrays = tuple(leaves), self._segment.constants, taken
        if self._total is None:
            shapes = self._call(_sums, *arrays)
            self._total = tuple(jnp.zeros(x.shape, x.dtype) for x in shapes)
        self._total = self._call(_add, *arrays, self._total)
        self._rows += len(taken[0])

    def layers(
        self, leaves: Sequence[jax.Array], values: dict[int, Any]
    ) -> tuple[Layer, ...]:
        """Take the means over examples, of the rows that were added.

        Args:
            leaves: as in `add`.
            values: of any rows, of which shapes are looked at.
        """
        taken = [values[i] for i in self._segment.takes]
        total, self._total = self._total, None
        count = jnp.float32(self._rows * self._batch)
        arrays = tuple(leaves), self._segment.constants, taken
        found: tuple[Layer, ...] = self._call(_layers, *arrays, count, total)
        return found

    def _call(self, function: Callable, *arrays: Any) -> Any:
        static = self._segment.run, self._places, self._batch
        try:
            return function(static, *arrays)
        except ValueError as e:
            text = str(e)
            for place, name in enumerate(self._names):
                text = text.replace(_placeholder(place), name)
            raise ValueError(text) from None


def _placeholder(place: int) -> str:
    """Name a leaf alike in all parts of one structure."""
    return f"<leaf {place}>"


def _named(run: Run, constants: tuple) -> Callable[[dict, list], Any]:
    """Make a part a function of leaves by their names."""

    def function(named: dict[str, jax.Array], values: list) -> Any:
        leaves = [named[_placeholder(i)] for i in range(len(named))]
        return run(leaves, constants, values)

    return function


def _find(
    run: Run, places: tuple[int, ...], batch: int, arrays: tuple
) -> tuple[dict[str, jax.Array], tuple[str, ...], list]:
    """Find the products of a part, leaves by name and those that are looked at."""
    leaves, constants, values = arrays
    function = _named(run, constants)
    named = {_placeholder(i): leaf for i, leaf in enumerate(leaves)}
    paths = tuple(map(_placeholder, places))
    several = has_branches(function, named, values, paths)
    products = find_products(
        function, named, values, paths, one_by_one=several, batch=batch
    )
    return named, paths, products


def _sums(static: tuple, *arrays: Any) -> Any:
    """Tell the shapes of the sums over rows."""
    run, places, batch = static

    def sums(*arrays: Any) -> tuple[jax.Array, ...]:
        _, _, products = _find(run, places, batch, arrays)
        return tuple(product.flat_moment() for product in products)

    return jax.eval_shape(sums, *arrays)


@functools.partial(Compiled, donate=(3,))
def _add(
    run: Run, places: tuple[int, ...], batch: int, *arrays: Any
) -> tuple[jax.Array, ...]:
    """Add the moments of some rows to the sums."""
    *arrays, total = arrays  # type: ignore[assignment]
    _, _, products = _find(run, places, batch, tuple(arrays))
    pairs = zip(total, products, strict=True)
    return tuple(t + product.flat_moment() for t, product in pairs)


@Compiled
def _layers(
    run: Run, places: tuple[int, ...], batch: int, *arrays: Any
) -> tuple[Layer, ...]:
    """Make layers of the sums; of rows shapes alone are used."""
    *arrays, count, total = arrays  # type: ignore[assignment]
    named, paths, products = _find(run, places, batch, tuple(arrays))
    return join_layers(
        named, paths, products, [t / count.astype(t.dtype) for t in total]
    )
