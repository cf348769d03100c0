"""What is known of the variables of a program, and where what is found is noted."""

from typing import NamedTuple

from jax.extend import core

from swapjax.roles.program import products
from swapjax.roles.program.uses import PASSED, Use, Uses
from swapjax.roles.program.views import Shape, View, is_repeated


class Value(NamedTuple):
    """What is known of a variable of the program.

    Attributes:
        data: whether it depends on the data.
        views: the leaves that it shows.
    """

    data: bool = False
    views: tuple[View, ...] = ()


class Scope(NamedTuple):
    """Where equations are read.

    Attributes:
        shapes: of the leaves.
        uses: where uses are noted.
    """

    shapes: tuple[Shape, ...]
    uses: Uses


def shape_of(variable: core.Var | core.Literal) -> Shape:
    """Read the shape of a variable; that of a token is empty."""
    return tuple(getattr(variable.aval, "shape", ()))


def fallback(view: View, name: str, scope: Scope) -> Use:
    """Make the use of a leaf that meets data in no product."""
    if view.summed:
        return products.as_input(view, scope.shapes[view.leaf])
    if view.looked:
        return Use(view.leaf, "table", f"is looked up by {view.looked}")
    how = f"is used entry by entry in {name}"
    return Use(view.leaf, "vector", how, weak=view.reduced)


def soften(value: Value, name: str, scope: Scope) -> Value:
    """Give the views of a value that depends on data, and note what leaves do so far.

    Whether that stays the last word shows where the value is multiplied with data.
    """
    views: dict[View, View] = {}
    for view in value.views:
        if view.soft is None:
            use = scope.uses.add(fallback(view, name, scope))
            view = view._replace(soft=use)
        key = view if view.soft is PASSED else view._replace(soft=None)
        views.setdefault(key, view)
    repeats = name in ("mul", "div", "select_n")
    return Value(True, tuple(v for v in views.values() if _lasts(v, repeats, scope)))


def _lasts(view: View, repeats: bool, scope: Scope) -> bool:
    """Tell whether a value may still be the matrix of a layer.

    Its leaf has several axes. What is repeated for each example may be scaled or chosen
    by data, as the kernels of a style, but is a bias or the like where it is added.
    """
    if view.soft is PASSED:
        return view.marks() != 0
    if view.depth or view.looked:
        return False
    sizes = scope.shapes[view.leaf]
    marks = view.marks()
    shown = [n for i, n in enumerate(sizes) if marks >> i & 1 and n > 1]
    repeated = not repeats and any(map(is_repeated, view.axes))
    return len(shown) > 1 and not repeated
