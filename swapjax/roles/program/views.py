"""Views: which axes of a leaf lie along which axes of a value, by shapes alone.

Each axis of a value is a product of *factors*, the slowest first, as a mixed radix.
A factor has a size and *marks*: which axes of the leaf its place says something about,
one bit an axis; none for an axis that the leaf was repeated along. So a transpose
permutes axes, and a reshape moves factors from one axis to another and cuts them in
two. Where a cut falls between factors that it does not divide, all that meet there
take the marks of each other: nothing is lost, only told less finely.
"""

import math
from typing import NamedTuple

from swapjax.roles.program.uses import Use

Factor = tuple[int, int]  # size, marks
Axis = tuple[Factor, ...]
Shape = tuple[int, ...]
# Marks an axis that a leaf is put along beside other things: it is not repeated there.
PLACED = 1 << 62


class View(NamedTuple):
    """What a value shows of a leaf.

    Attributes:
        leaf: its number.
        axes: the factors of each axis of the value.
        stack: marks of the axes of which the value has one place.
        chosen: marks of those where data chose the place.
        summed: marks of what was contracted in the first product without data.
        batched: marks of the batch dimensions of such products.
        turned: whether all such products were with square constants, as rotations are.
        narrow: whether the leaf was repeated along an axis of such a product, as the
            scale of inputs or of outputs.
        depth: how many such products and reductions the leaf went through.
        reduced: whether a reduction was one of them.
        bent: whether something that is not linear came after such a product.
        lifted: the last primitive it went through that makes something else of zeros.
        looked: the primitive that took several places of an axis, of a list of numbers
            that does not depend on data.
        soft: of a value that depends on data as well, what the leaf is said to do
            unless the value is multiplied with data; `PASSED` for outputs of a layer.
    """

    leaf: int
    axes: tuple[Axis, ...]
    stack: int = 0
    chosen: int = 0
    summed: int = 0
    batched: int = 0
    turned: bool = True
    narrow: bool = False
    depth: int = 0
    reduced: bool = False
    bent: bool = False
    lifted: str = ""
    looked: str = ""
    soft: Use | None = None

    def marks(self) -> int:
        """Join the marks of all axes, which are axes of the leaf."""
        return union(self.axes) & ~PLACED


def whole(leaf: int, shape: Shape) -> View:
    """Show a leaf itself."""
    return View(leaf, tuple(((size, 1 << i),) for i, size in enumerate(shape)))


def marks_of(axis: Axis) -> int:
    """Join the marks of an axis."""
    marks = 0
    for _, more in axis:
        marks |= more
    return marks


def union(axes: tuple[Axis, ...]) -> int:
    """Join the marks of several axes."""
    marks = 0
    for axis in axes:
        marks |= marks_of(axis)
    return marks


def length(axis: Axis) -> int:
    """Multiply the sizes of the factors of an axis."""
    return math.prod(n for n, _ in axis)


def is_repeated(axis: Axis) -> bool:
    """Tell whether a leaf is the same all along an axis."""
    return not marks_of(axis) and length(axis) > 1


def resized(axis: Axis, size: int) -> Axis:
    """Take a part of an axis, or put it beside others.

    All but the slowest factor stay where the size is a multiple of theirs.
    """
    if length(axis) == size:
        return axis
    if len(axis) > 1:
        rest = length(axis[1:])
        if rest and size % rest == 0:
            return ((size // rest, axis[0][1]), *axis[1:])
    return ((size, marks_of(axis)),)


def fitted(view: View, shape: Shape) -> View:
    """Resize every axis; see `resized`."""
    axes = tuple(resized(a, n) for a, n in zip(view.axes, shape, strict=True))
    return view._replace(axes=axes)


def placed(view: View, shape: Shape) -> View:
    """Put a view beside other things, or into them."""

    def put(axis: Axis, size: int) -> Axis:
        if length(axis) == size:
            return axis
        return resized(axis, size) if marks_of(axis) else ((size, PLACED),)

    axes = tuple(put(a, n) for a, n in zip(view.axes, shape, strict=True))
    return view._replace(axes=axes)


def transposed(view: View, order: Shape) -> View:
    """Permute axes."""
    return view._replace(axes=tuple(view.axes[i] for i in order))


def squeezed(view: View, dims: Shape) -> View:
    """Drop axes of which one place is left."""
    dropped = union(tuple(view.axes[i] for i in dims))
    axes = tuple(a for i, a in enumerate(view.axes) if i not in dims)
    return view._replace(axes=axes, stack=view.stack | dropped)


def spread(view: View, shape: Shape, dims: Shape) -> View:
    """Repeat along new axes, and along those of size one."""
    axes: list[Axis] = [((size, 0),) for size in shape]
    stack = view.stack
    for axis, dim in zip(view.axes, dims, strict=True):
        if length(axis) == shape[dim]:
            axes[dim] = axis
        else:
            stack |= marks_of(axis)
    return view._replace(axes=tuple(axes), stack=stack)


def filled(view: View, shape: Shape) -> View:
    """Repeat along axes of size one, and along those in front that there are not."""
    first = len(shape) - len(view.axes)
    return spread(view, shape, tuple(range(first, len(shape))))


def reduced(view: View, dims: Shape) -> View:
    """Reduce over axes."""
    axes = tuple(a for i, a in enumerate(view.axes) if i not in dims)
    return view._replace(axes=axes, depth=view.depth + 1, reduced=True)


def reshaped(view: View, shape: Shape) -> View:
    """Move factors to the axes of another shape."""
    old = tuple(length(axis) for axis in view.axes)
    if 0 in old or 0 in shape:
        return view._replace(axes=tuple(((n, 0),) for n in shape))
    axes: list[Axis] = [()] * len(shape)
    ones, stack = _ones(view, old, shape)
    for dim, axis in ones.items():
        axes[dim] = axis
    factors = [f for a, n in zip(view.axes, old, strict=True) if n > 1 for f in a]
    factors = [f for f in factors if f[0] > 1]
    dims = [i for i, n in enumerate(shape) if n > 1]
    while dims:
        taken: list[Factor] = []
        several: list[int] = []
        size, wanted = 1, 1
        while not several or size != wanted:
            if size <= wanted and factors:
                taken.append(factors.pop(0))
                size *= taken[-1][0]
            else:
                several.append(dims.pop(0))
                wanted *= shape[several[-1]]
        parts = _dealt(taken, [shape[i] for i in several])
        for dim, axis in zip(several, parts, strict=True):
            axes[dim] = axis
    return view._replace(axes=tuple(axes), stack=stack)


def _dealt(factors: list[Factor], sizes: list[int]) -> list[Axis]:
    """Deal factors to axes of the same product; blur them where they do not divide."""
    left, dealt = list(factors), []
    for size in sizes:
        axis = []
        while size > 1:
            n, marks = left.pop(0)
            common = min(n, size)
            if n % common or size % common:
                every = marks_of(tuple(factors))
                return [((n, every),) for n in sizes]
            axis.append((common, marks))
            size //= common
            if n > common:
                left.insert(0, (n // common, marks))
        dealt.append(tuple(axis))
    return dealt


def _ones(view: View, old: Shape, new: Shape) -> tuple[dict[int, Axis], int]:
    """Match the axes of size one before and after; what is left over is a place."""

    def by_place(shape: Shape) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        before = 1
        for i, size in enumerate(shape):
            if size == 1:
                found.setdefault(before, []).append(i)
            before *= size
        return found

    there, stack = by_place(new), view.stack
    ones: dict[int, Axis] = {i: ((1, 0),) for i, n in enumerate(new) if n == 1}
    for place, dims in by_place(old).items():
        for i in dims:
            marks = marks_of(view.axes[i])
            if not marks:
                continue
            free = there.get(place)
            if free:
                ones[free.pop(0)] = ((1, marks),)
            else:
                stack |= marks
    return ones, stack


def joined(views: list[View]) -> tuple[View, ...]:
    """Join what one value shows: a leaf itself hides what was made of it."""
    least: dict[int, int] = {}
    for view in views:
        least[view.leaf] = min(view.depth, least.get(view.leaf, view.depth))
    return tuple(dict.fromkeys(v for v in views if v.depth == least[v.leaf]))
