"""What single equations of a program say about the leaves that enter them."""

from collections.abc import Callable, Iterable, Sequence

from jax.extend import core

from swapjax.roles.program import products
from swapjax.roles.program.lookups import chosen, looked_up
from swapjax.roles.program.meet import read_product
from swapjax.roles.program.moves import MOVED
from swapjax.roles.program.primitives import BENT, LIFTING, LINEAR
from swapjax.roles.program.uses import PASSED, Use
from swapjax.roles.program.values import Scope, Value, fallback, shape_of, soften
from swapjax.roles.program.views import (
    View,
    filled,
    fitted,
    is_repeated,
    joined,
    length,
    marks_of,
    placed,
)

Rule = Callable[[core.JaxprEqn, Sequence[Value], Scope], list[Value]]


def read(eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope) -> list[Value]:
    """Tell what the results of an equation show, and note how it uses leaves."""
    if not any(value.views for value in operands):
        return [Value(any(value.data for value in operands))] * len(eqn.outvars)
    rule = RULES.get(eqn.primitive.name, _unknown)
    return rule(eqn, operands, scope)


def _entrywise(
    eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope
) -> list[Value]:
    """Read an equation that works entry by entry."""
    name = eqn.primitive.name
    if len(eqn.outvars) == len(operands) and name in LINEAR:
        return list(operands)
    shape = shape_of(eqn.outvars[0])
    values = [
        Value(value.data, tuple(filled(view, shape) for view in value.views))
        for value in operands
    ]
    if name in ("add", "add_any", "sub"):
        values = [_biased(value, values) for value in values]
    views = [view for value in values for view in value.views]
    if any(value.data for value in values):
        if sum(value.data for value in values) > 1:
            views = [v for v in views if v.soft is None or v.soft.kind != "table"]
        return [soften(Value(True, tuple(views)), name, scope)] * len(eqn.outvars)
    if name in BENT:
        views = [v._replace(bent=True) if v.summed else v for v in views]
    return [Value(False, _lifted(name, joined(views)))] * len(eqn.outvars)


def _lifted(name: str, views: tuple[View, ...]) -> tuple[View, ...]:
    """Note whether zeros stay zeros, as they do in a product if they do in a factor.

    ``softplus`` is a sum of terms of which they do in one, chosen from others.
    """
    if name in LIFTING:
        return tuple(view._replace(lifted=name) for view in views)
    lifted = {view.leaf: view.lifted for view in views if view.lifted}
    if name in ("add", "add_any", "sub", "select_n"):
        return tuple(v._replace(lifted=lifted.get(v.leaf, "")) for v in views)
    kept = {view.leaf for view in views if not view.lifted}
    return tuple(v for v in views if not v.lifted or v.leaf not in kept)


def _biased(value: Value, values: Iterable[Value]) -> Value:
    """Mark products that a vector is added to, as to the outputs of a layer."""

    def has_bias(view: View) -> bool:
        others = (w for other in values for w in other.views if w.leaf != view.leaf)
        return any(
            marks_of(mine) and is_repeated(theirs)
            for w in others
            for mine, theirs in zip(view.axes, w.axes, strict=True)
        )

    views = tuple(
        v._replace(bent=True) if v.summed and not v.bent and has_bias(v) else v
        for v in value.views
    )
    return value._replace(views=views)


def _moved(eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope) -> list[Value]:
    """Read an equation that moves the entries of its first operand."""
    move = MOVED[eqn.primitive.name]
    value = operands[0]
    reduces = eqn.primitive.name.startswith(("reduce_", "arg"))
    results = []
    for variable in eqn.outvars:
        shape = shape_of(variable)
        views = [move(view, eqn, shape) for view in value.views]
        if reduces and "scatter" not in eqn.primitive.name:
            views = [v for v in views if v.soft in (None, PASSED) and v.marks()]
        results.append(Value(value.data, joined(views)))
    return results


def _joined_parts(
    eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope
) -> list[Value]:
    """Read an equation that puts arrays beside each other, or one into another."""
    shape = shape_of(eqn.outvars[0])
    name = eqn.primitive.name
    count = {"pad": 1, "dynamic_update_slice": 2}.get(name, len(operands))
    parts = operands[:count]
    shown = [v for part in parts for v in part.views if all(map(length, v.axes))]
    if name == "stack":
        dim = eqn.params["axis"]
        axes = [(*v.axes[:dim], ((1, 0),), *v.axes[dim:]) for v in shown]
        shown = [v._replace(axes=a) for v, a in zip(shown, axes, strict=True)]
    views = [placed(view, shape) for view in shown]
    if any(value.data for value in operands):
        return [soften(Value(True, tuple(views)), name, scope)]
    return [Value(False, joined(views))]


def _scattered(
    eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope
) -> list[Value]:
    """Read an equation that puts numbers into some entries of its first operand."""
    whole, _, updates = operands
    for view in updates.views:
        if view.soft is None and (whole.data or operands[1].data):
            scope.uses.add(fallback(view, eqn.primitive.name, scope))
        elif view.soft is None:
            scope.uses.end(view.leaf, eqn.primitive.name)
    if any(value.data for value in operands):
        return [soften(whole, eqn.primitive.name, scope)]
    return [Value(False, whole.views)]


def _gathered(
    eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope
) -> list[Value]:
    """Read a ``gather``: a table that data looks up, or a stack."""
    value, index = operands
    shape, whole = shape_of(eqn.outvars[0]), shape_of(eqn.invars[0])
    made = []
    for view in value.views:
        if view.soft is not None or (value.data and not index.data):
            continue
        made.append(looked_up(view, eqn, whole, shape, data=index.data))
    for view in index.views:
        scope.uses.end(view.leaf, eqn.primitive.name)
    if not index.data:
        return [Value(value.data, joined(made))]
    return [Value(True, _tables(made, eqn.primitive.name, scope))]


def _sliced(eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope) -> list[Value]:
    """Read a ``dynamic_slice``: a part of a stack, or a table that data looks up."""
    value, *starts = operands
    shape, whole = shape_of(eqn.outvars[0]), shape_of(eqn.invars[0])
    dims = [i for i, start in enumerate(starts) if start.data and shape[i] < whole[i]]
    data = value.data or any(start.data for start in starts)
    if not dims:
        views = [fitted(view, shape) for view in value.views]
        return [Value(data, joined(views))]
    made = [chosen(view, dims, shape) for view in value.views if view.soft is None]
    return [Value(True, _tables(made, eqn.primitive.name, scope))]


def _tables(made: list[View], name: str, scope: Scope) -> tuple[View, ...]:
    """Note that tables are looked up; see `soften`."""
    views = []
    for view in made:
        if view.summed:
            use = products.as_input(view, scope.shapes[view.leaf])
        else:
            how = f"is looked up by {name}"
            use = Use(view.leaf, "table", how, weak=view.reduced)
        views.append(view._replace(soft=scope.uses.add(use)))
    return tuple(views)


def _unknown(
    eqn: core.JaxprEqn, operands: Sequence[Value], scope: Scope
) -> list[Value]:
    """Leave the leaves that enter an equation of which nothing is known."""
    name = eqn.primitive.name
    data = any(value.data for value in operands)
    for view in (view for value in operands for view in value.views):
        if view.soft is None:
            scope.uses.end(view.leaf, name)
    return [Value(data)] * len(eqn.outvars)


RULES: dict[str, Rule] = {
    **dict.fromkeys((*LINEAR, *BENT), _entrywise),
    **dict.fromkeys(MOVED, _moved),
    "concatenate": _joined_parts,
    "stack": _joined_parts,
    "pad": _joined_parts,
    "dynamic_update_slice": _joined_parts,
    **dict.fromkeys(("scatter", "scatter-add", "scatter-mul"), _scattered),
    **dict.fromkeys(("scatter_add", "scatter_mul", "scatter_sub"), _scattered),
    "dot_general": read_product,
    "ragged_dot_general": read_product,
    "conv_general_dilated": read_product,
    "gather": _gathered,
    "dynamic_slice": _sliced,
}
