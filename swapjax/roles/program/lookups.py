"""Views through equations that take places by number."""

from collections.abc import Sequence

from jax.extend import core

from swapjax.roles.program.views import Axis, Shape, View, marks_of, resized


def chosen(view: View, dims: Sequence[int], shape: Shape) -> View:
    """Take a part whose place along some axes depends on data."""
    marks = 0
    for i in dims:
        marks |= marks_of(view.axes[i])
    axes = tuple(
        ((n, 0),) if i in dims else resized(a, n)
        for i, (a, n) in enumerate(zip(view.axes, shape, strict=True))
    )
    return view._replace(axes=axes, chosen=view.chosen | marks)


def looked_up(
    view: View, eqn: core.JaxprEqn, whole: Shape, shape: Shape, *, data: bool
) -> View:
    """Take many parts by a list of places.

    Args:
        view: the operand of the ``gather``.
        eqn: the equation.
        whole: the shape of the operand.
        shape: that of the result.
        data: whether the places depend on data.
    """
    numbers = eqn.params["dimension_numbers"]
    sizes = eqn.params["slice_sizes"]
    batching = tuple(numbers.operand_batching_dims)
    dropped = (*numbers.collapsed_slice_dims, *batching)
    taken = [i for i in numbers.start_index_map if sizes[i] < whole[i]]
    marks = 0
    for i in taken:
        marks |= marks_of(view.axes[i])
    offsets = sorted(numbers.offset_dims)
    places = [i for i in range(len(shape)) if i not in offsets]
    kept = [i for i in range(len(whole)) if i not in dropped]
    axes: list[Axis] = [((n, 0),) for n in shape]
    for place, i in zip(offsets, kept, strict=True):
        hidden = i in taken and (data or sizes[i] == 1)
        axes[place] = ((sizes[i], 0),) if hidden else resized(view.axes[i], sizes[i])
    for i, j in zip(batching, numbers.start_indices_batching_dims, strict=True):
        axes[places[j]] = view.axes[i]
    if data:
        return view._replace(axes=tuple(axes), chosen=view.chosen | marks)
    lists = [
        place
        for j, place in enumerate(places)
        if j not in numbers.start_indices_batching_dims and shape[place] > 1
    ]
    if not lists:
        return view._replace(axes=tuple(axes), stack=view.stack | marks)
    for place in lists:
        axes[place] = ((shape[place], marks),)
    looked = view.looked or (eqn.primitive.name if marks else "")
    return view._replace(axes=tuple(axes), looked=looked)
