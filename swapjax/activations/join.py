"""All the products with a leaf, joined into one `Layer`.

Mostly there is one, which holds every entry once. Else entries tell what belongs
together: uses of the same matrix add up, and others are groups of their own, those of
one output side by side as inputs of one group, for which no moments between them exist.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.layer import Layer
from swapjax.activations.product import Product

Fail = Callable[[str], ValueError]


class _Piece(NamedTuple):
    """A group of a product, without what belongs to other leaves.

    Attributes:
        entries: int[rows, columns], in the leaf, in order of the first row and column.
        uses: for each use of it the product, the group and the places in it of the
            rows and columns.
    """

    entries: np.ndarray
    uses: list[tuple[int, int, np.ndarray, np.ndarray]]


class Join(NamedTuple):
    """How the products with a leaf become its layer. Holds no arrays of the program.

    Attributes:
        shape: of the leaf.
        layers: how many there are.
        order: of the groups of the only product; None if that is theirs already, or if
            there are several products.
        sides: groups, inputs and outputs of the layer, of several products.
        places: for each of those the group that each of its groups goes to, -1 for
            none, and for each the places of its inputs and outputs.
        unread: entries in no product, with the group, input and output they go to.
    """

    shape: tuple[int, ...]
    layers: int = 1
    order: np.ndarray | None = None
    sides: tuple[int, int, int] | None = None
    places: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...] = ()
    unread: tuple[np.ndarray, ...] = ()

    def layer(
        self, leaf: int, products: Sequence[Product], moments: Sequence[jax.Array]
    ) -> Layer:
        """Make the layer.

        Args:
            leaf: its number.
            products: with it.
            moments: theirs, [groups, inputs, inputs].
        """
        if self.sides is None:
            moment, index = moments[0], products[0].places(leaf)
            if self.order is not None:
                moment, index = moment[self.order], index[self.order]
            return Layer(moment, index, self.layers)
        groups, inputs, outputs = self.sides
        moment = jnp.zeros((groups, inputs, inputs), jnp.result_type(*moments))
        index = jnp.full((groups, inputs, outputs), -1, jnp.int32)
        for product, found, (goes, rows, columns) in zip(
            products, moments, self.places, strict=True
        ):
            some = np.flatnonzero(goes >= 0)
            pull_rows, pull_columns = (
                _inverse(places[some], side)
                for places, side in ((rows, inputs), (columns, outputs))
            )
            seen = _pull(product.places(leaf)[some], pull_rows, pull_columns, -1)
            index = index.at[goes[some]].max(seen)
            read = _pull(found[some], pull_rows, pull_rows, 0)
            moment = moment.at[goes[some]].add(read)
        if self.unread:
            entries, *where = self.unread
            index = index.at[tuple(where)].set(entries)
        filled = index.size > math.prod(self.shape)
        return Layer(moment, index, self.layers, filled)


def joins(
    products: Sequence[Sequence[Product]],
    shapes: Sequence[tuple[int, ...]],
    fails: Sequence[Fail],
) -> list[Join]:
    """Find out how to join the products with each leaf, from their shapes alone.

    Args:
        products: those with each leaf.
        shapes: of the leaves.
        fails: makes the error of each leaf from what it is.

    Raises:
        ValueError: for a leaf in no product, or in several that do not go together.
    """
    for found, fail in zip(products, fails, strict=True):
        if not found:
            raise fail("is in no product with what depends on the data")
    needed = {i: _needed(i, found) for i, found in enumerate(products)}
    # Places depend on shapes alone, so they are known while the program is traced.
    with jax.ensure_compile_time_eval():
        known = jax.jit(lambda: {i: f() for i, f in needed.items() if f is not None})()
        known = jax.tree.map(np.asarray, known)
    result = []
    for i, (found, shape, fail) in enumerate(zip(products, shapes, fails, strict=True)):
        if _alone(found):
            result.append(_order(found[0], shape, known.get(i)))
        else:
            result.append(_several(known[i], shape, fail))
    return result


def _alone(products: Sequence[Product]) -> bool:
    """Tell whether one product holds every entry of a leaf once."""
    return len(products) == 1 and products[0].view.whole


def _stacked(product: Product) -> int:
    """Count the layers of a product: its slices, and the batches of a batched one."""
    levels = math.prod(level.size for level in product.view.levels)
    batched = len(product.split) == len(product.view.shape)
    return levels * math.prod(product.split[i] for i in product.groups if batched)


def _needed(leaf: int, products: Sequence[Product]) -> Callable | None:
    """Tell what must be known of the places in the products with a leaf."""
    if not _alone(products):
        return lambda: [product.places(leaf) for product in products]
    if _stacked(products[0]) > 1:
        return lambda: products[0].places(leaf)[:, 0, 0]
    return None


def _order(product: Product, shape: tuple[int, ...], first: np.ndarray | None) -> Join:
    """Sort the layers of a product by their first entries."""
    if first is None or not first.size:
        return Join(shape)
    layers = _stacked(product)
    numbers = np.arange(len(first)).reshape(layers, -1)
    order = np.argsort(first.reshape(layers, -1)[:, 0], kind="stable")
    same = (np.diff(order) > 0).all()
    return Join(shape, layers, None if same else numbers[order].ravel())


def _several(places: list[np.ndarray], shape: tuple[int, ...], fail: Fail) -> Join:
    """Join products by the entries that are in them."""
    pieces = _pieces(places, fail)
    count = np.zeros(math.prod(shape), int)
    for piece in pieces:
        np.add.at(count, piece.entries, 1)
    if (count > 1).any():
        raise fail("is used as several matrices")
    rows, columns = _axes(pieces, shape)
    stack = [i for i, side in enumerate(shape) if side > 1 and i not in rows | columns]
    unread = np.flatnonzero(count == 0)
    groups = _side_by_side(pieces, shape, rows - columns)
    layers = math.prod(shape[axis] for axis in stack)
    members: list[list[list[_Piece]]] = [[] for _ in range(layers)]
    for group in sorted(groups, key=lambda group: int(group[0].entries.min())):
        members[int(_layer_of(group[0].entries[0, 0], shape, stack))].append(group)
    inputs = max(sum(len(piece.entries) for piece in group) for group in groups)
    outputs = max(group[0].entries.shape[1] for group in groups)

    # What is in no product fills groups of its own.
    owners = _layer_of(unread, shape, stack)
    spare = -(-np.bincount(owners, minlength=layers) // (inputs * outputs))
    each = max(len(m) + int(s) for m, s in zip(members, spare, strict=True))
    left = [np.zeros((2, 0), int)]
    for number, mine in enumerate(members):
        entries = unread[owners == number]
        flat = (number * each + len(mine)) * inputs * outputs
        left.append(np.stack([entries, flat + np.arange(len(entries))]))
    entries, flat = np.concatenate(left, axis=1)
    sides = (layers * each, inputs, outputs)
    where = (entries.astype(np.int32), *np.unravel_index(flat, sides))
    numbered = [
        (number * each + i, group)
        for number, mine in enumerate(members)
        for i, group in enumerate(mine)
    ]
    return Join(
        shape,
        layers,
        sides=sides,
        places=_places(numbered, places),
        unread=where if len(entries) else (),
    )


def _places(
    groups: list[tuple[int, list[_Piece]]], places: list[np.ndarray]
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """Tell where the groups, inputs and outputs of each product go."""
    result = tuple(
        (np.full(g, -1), np.full((g, i), -1), np.full((g, o), -1))
        for g, i, o in (index.shape for index in places)
    )
    for number, group in groups:
        start = 0
        for piece in group:
            for product, g, at_rows, at_columns in piece.uses:
                goes, rows, columns = result[product]
                goes[g] = number
                rows[g, at_rows] = start + np.arange(len(at_rows))
                columns[g, at_columns] = np.arange(len(at_columns))
            start += len(piece.entries)
    return result


def _layer_of(
    entries: np.ndarray, shape: tuple[int, ...], stack: list[int]
) -> np.ndarray:
    """Tell which layer entries are in, by their places along the stack axes."""
    coordinates = np.unravel_index(entries, shape)
    number = np.zeros(np.shape(entries), int)
    for axis in stack:
        number = number * shape[axis] + coordinates[axis]
    return number


def _pieces(places: list[np.ndarray], fail: Fail) -> list[_Piece]:
    """Find the different matrices among the groups of all products."""
    found: dict[tuple, _Piece] = {}
    for product, groups in enumerate(places):
        for g, index in enumerate(groups):
            mine = index >= 0
            at_rows, at_columns = (np.flatnonzero(mine.any(axis)) for axis in (1, 0))
            if not len(at_rows):
                continue
            part = index[np.ix_(at_rows, at_columns)]
            if (part < 0).any():
                raise fail("shares the rows of a product with other arrays")
            by_row = np.argsort(part[:, 0], kind="stable")
            by_column = np.argsort(part[by_row[0]], kind="stable")
            part = part[np.ix_(by_row, by_column)]
            piece = found.setdefault((part.shape, part.tobytes()), _Piece(part, []))
            piece.uses.append((product, g, at_rows[by_row], at_columns[by_column]))
    return list(found.values())


def _axes(pieces: list[_Piece], shape: tuple[int, ...]) -> tuple[set[int], set[int]]:
    """List the axes of a leaf along rows, and those along columns."""
    rows = {i for piece in pieces for i in _varied(piece.entries[:, 0], shape)}
    columns = {i for piece in pieces for i in _varied(piece.entries[0], shape)}
    return rows, columns


def _side_by_side(
    pieces: list[_Piece], shape: tuple[int, ...], inputs: set[int]
) -> list[list[_Piece]]:
    """Bring together pieces that read different inputs of the same outputs."""
    found: dict[bytes, list[_Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: int(piece.entries.min())):
        coordinates = np.unravel_index(piece.entries[0], shape)
        outputs = [c for axis, c in enumerate(coordinates) if axis not in inputs]
        key = b"".join(c.tobytes() for c in outputs)
        found.setdefault(key, []).append(piece)
    return list(found.values())


def _varied(entries: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    coordinates = np.unravel_index(entries, shape)
    return tuple(i for i, c in enumerate(coordinates) if (c != c[0]).any())


def _inverse(places: np.ndarray, side: int) -> np.ndarray:
    """Tell for each place what goes there; what is too large for nothing."""
    result = np.full((len(places), side), places.shape[1])
    group, source = np.nonzero(places >= 0)
    result[group, places[group, source]] = source
    return result


def _pull(x: jax.Array, rows: np.ndarray, columns: np.ndarray, fill: int) -> jax.Array:
    """Take rows and columns of each group, by number."""

    def take(x: jax.Array, places: np.ndarray) -> jax.Array:
        side = x.shape[1]
        if places.shape[1] == side and (places == np.arange(side)).all():
            return x
        one = lambda x, i: x.at[i].get(mode="fill", fill_value=fill)  # noqa: E731
        return jax.vmap(one)(x, jnp.asarray(places))

    return take(take(x, rows).swapaxes(1, 2), columns).swapaxes(1, 2)
