"""Products in a program, where most of what is to be known of a leaf shows."""

from collections.abc import Sequence

from jax.extend import core

from swapjax.roles.program import outputs, products
from swapjax.roles.program.uses import PASSED, Use
from swapjax.roles.program.values import Scope, Value, shape_of
from swapjax.roles.program.views import Shape, View, joined


def read_product(
    eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope
) -> list[Value]:
    """Read a product."""
    name = eqn.primitive.name
    shapes = tuple(shape_of(variable) for variable in eqn.invars)
    data = any(value.data for value in operands)
    made: list[View] = []
    for which in (0, 1):
        mine, other = operands[which], operands[1 - which]
        for view in mine.views:
            if not data:
                made += _through(eqn, view, which, other, shapes, scope)
            elif view.soft is PASSED:
                made += outputs.onward(eqn, view, which, other, shapes, scope)
            elif view.soft is None or other.data:
                made += _meet(eqn, view, which, other, shapes, scope)
    for value in operands[2:]:
        for view in value.views:
            scope.uses.end(view.leaf, name)
    return [Value(data, joined(made))]


def _through(
    eqn: core.JaxprEqn,
    view: View,
    which: int,
    other: Value,
    shapes: tuple[Shape, ...],
    scope: Scope,
) -> list[View]:
    """Follow a leaf through a product without data."""
    name = eqn.primitive.name
    if name == "dot_general":
        numbers = eqn.params["dimension_numbers"]
        constant = not other.views
        return [products.through_dot(view, which, numbers, shapes, constant=constant)]
    if name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        shape = shape_of(eqn.outvars[0])
        return [products.through_convolution(view, which, numbers, shape)]
    scope.uses.end(view.leaf, name)
    return []


def _meet(
    eqn: core.JaxprEqn,
    view: View,
    which: int,
    other: Value,
    shapes: tuple[Shape, ...],
    scope: Scope,
) -> list[View]:
    """Note the use of a leaf in a product with data; show it in the outputs."""
    name, shape, rank = eqn.primitive.name, scope.shapes[view.leaf], len(view.axes)
    groups, pixels = 1, 0
    if name == "conv_general_dilated":
        if which == 0:
            how = "is convolved as an image, not as a kernel"
            scope.uses.add(Use(view.leaf, "unknown", how))
            return []
        words, kernel, groups, pixels = products.of_convolution(eqn, view)
        outputs.split(view, kernel, eqn, other, scope)
        view = kernel
    elif name == "dot_general":
        words = products.of_dot(eqn.params["dimension_numbers"], which, rank)
    else:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        words = products.of_ragged_dot(numbers, which, rank)
    use = products.used(view, words, shape, name, groups, pixels)
    if view.lifted and use.kind == "matrix":
        how = f"goes through {view.lifted}, which keeps no zeros, before it meets data"
        use = Use(view.leaf, "unknown", how, weak=use.weak)
    if view.soft is not None:
        same = any(v.leaf == view.leaf and v.soft is not PASSED for v in other.views)
        if same or not {"input", "output"} <= set(use.axes):
            return []
        scope.uses.void(view.soft)
    scope.uses.add(use)
    if view.soft is not None or use.kind != "matrix":
        return []
    return outputs.first(eqn, view, which, shapes)
