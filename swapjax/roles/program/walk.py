"""Walk through a program, into all that it calls, with what is known of its values."""

import operator
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from swapjax.roles.program.primitives import CALLS, scan_counts
from swapjax.roles.program.rules import read
from swapjax.roles.program.uses import PASSED, Uses
from swapjax.roles.program.values import Scope, Value, shape_of, soften
from swapjax.roles.program.views import View, fitted, joined, marks_of

_CONSTANT = Value()
_ROUNDS = 8  # of a loop, until what is known of its carry no longer changes


def walk(
    program: core.Jaxpr | core.ClosedJaxpr,
    inputs: Sequence[Value],
    scope: Scope,
    constant: Value = _CONSTANT,
) -> list[Value]:
    """Tell what the results of a program show of its inputs, and note uses of leaves.

    Args:
        program: to walk through.
        inputs: one value each.
        scope: where uses are noted.
        constant: what is known of the arrays that the program closes over.
    """
    if isinstance(program, core.ClosedJaxpr):
        program = program.jaxpr
    values: dict[core.Var, Value] = dict.fromkeys(program.constvars, constant)
    values.update(zip(program.invars, inputs, strict=True))
    for eqn in program.eqns:
        operands = [
            Value() if isinstance(atom, core.Literal) else values[atom]
            for atom in eqn.invars
        ]
        values.update(zip(eqn.outvars, _enter(eqn, operands, scope), strict=True))
    return [
        Value() if isinstance(atom, core.Literal) else values[atom]
        for atom in program.outvars
    ]


def _enter(eqn: core.JaxprEqn, operands: list[Value], scope: Scope) -> list[Value]:
    """Read an equation, and the programs in it where they may tell more."""
    name = eqn.primitive.name
    # Where nothing or everything depends on data, and nothing shows a leaf, so it is
    # with the results.
    flags = {value.data for value in operands}
    if not any(value.views for value in operands) and len(flags) < 2:
        return [Value(True in flags)] * len(eqn.outvars)
    weak = scope.uses.weak
    # What the backward pass of a loss that is itself a derivative does to a leaf says
    # less than what the forward pass does, of which it is the transpose.
    names = getattr(getattr(eqn, "source_info", None), "name_stack", "")
    scope.uses.weak = weak or "transpose(" in str(names)
    if name == "scan":
        results = _scan(eqn, operands, scope)
    elif name == "while":
        results = _while(eqn, operands, scope)
    elif name == "cond":
        results = _cond(eqn, operands, scope)
    elif name == "shard_map":
        results = _shard_map(eqn, operands, scope)
    else:
        inner = called(eqn)
        if inner is None:
            results = read(eqn, operands, scope)
        else:
            results = walk(inner, operands, scope)
    scope.uses.weak = weak
    return results


def called(eqn: core.JaxprEqn) -> core.Jaxpr | core.ClosedJaxpr | None:
    """Find the one program that an equation calls with its own operands."""
    name = eqn.primitive.name
    if name in CALLS:
        inner: Any = eqn.params[CALLS[name]]
        return inner
    programs = [
        p for p in eqn.params.values() if isinstance(p, core.Jaxpr | core.ClosedJaxpr)
    ]
    if len(programs) != 1:
        return None
    inner = programs[0]
    jaxpr = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
    fits = len(jaxpr.invars) == len(eqn.invars) and [
        shape_of(v) for v in (*jaxpr.invars, *jaxpr.outvars)
    ] == [shape_of(v) for v in (*eqn.invars, *eqn.outvars)]
    return inner if fits else None


def _scan(eqn: core.JaxprEqn, operands: list[Value], scope: Scope) -> list[Value]:
    """Read a loop over slices."""
    consts, carries = scan_counts(eqn)
    fixed, carry = operands[:consts], operands[consts : consts + carries]
    stacked = operands[consts + carries :]
    slices = [_first(value) for value in stacked]
    body = eqn.params["jaxpr"]
    carry = _settle(
        carry,
        lambda carry, scope: walk(body, [*fixed, *carry, *slices], scope)[:carries],
        "scan",
        scope,
    )
    results = walk(body, [*fixed, *carry, *slices], scope)
    marks: dict[int, int] = {}
    for value in stacked:
        for view in value.views:
            marks[view.leaf] = marks.get(view.leaf, 0) | marks_of(view.axes[0])
    length = eqn.params["length"]
    return [*carry, *(_restacked(v, length, marks) for v in results[carries:])]


def _first(value: Value) -> Value:
    """Take one slice of what is scanned."""
    views = [
        view._replace(axes=view.axes[1:], stack=view.stack | marks_of(view.axes[0]))
        for view in value.views
    ]
    return value._replace(views=tuple(views))


def _restacked(value: Value, length: int, marks: dict[int, int]) -> Value:
    """Put what a step made of its slices back beside each other."""

    def restacked(view: View) -> View:
        bits = marks.get(view.leaf, 0) & view.stack
        return view._replace(
            axes=(((length, bits),), *view.axes), stack=view.stack & ~bits
        )

    return value._replace(views=tuple(map(restacked, value.views)))


def _while(eqn: core.JaxprEqn, operands: list[Value], scope: Scope) -> list[Value]:
    """Read a loop that a condition ends.

    Where the condition depends on data, so does all that the loop changes, once it is
    over; the number of a step does not, so that what it numbers is a stack.
    """
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    asked, fixed = operands[:first], operands[first : first + second]
    step = lambda carry, scope: walk(body, [*fixed, *carry], scope)  # noqa: E731
    carry = _settle(operands[first + second :], step, "while", scope)
    step(carry, scope)
    (ends,) = walk(condition, [*asked, *carry], scope._replace(uses=Uses()))
    if not ends.data:
        return carry
    inner = body.jaxpr
    kept = map(operator.is_, inner.invars[second:], inner.outvars)
    return [
        value if keep else soften(value, "while", scope)
        for value, keep in zip(carry, kept, strict=True)
    ]


def _settle(carry: list[Value], step: Any, name: str, scope: Scope) -> list[Value]:
    """Repeat a step until what is known of its carry no longer changes."""
    quiet = scope._replace(uses=Uses())
    first = carry = [_without_outputs(value) for value in carry]
    for _ in range(_ROUNDS):
        results = [_without_outputs(value) for value in step(carry, quiet)]
        new = [
            _join([old, more], name, quiet)
            for old, more in zip(carry, results, strict=True)
        ]
        if new == carry:
            break
        carry = new
    else:
        carry = [value._replace(views=()) for value in carry]
    for before, after in zip(first, carry, strict=True):
        if after.data and not before.data:
            soften(before, name, scope)
    return carry


def _without_outputs(value: Value) -> Value:
    """Let go of the outputs of layers, which no step shows whole to the next."""
    views = tuple(view for view in value.views if view.soft is not PASSED)
    return value._replace(views=views)


def _cond(eqn: core.JaxprEqn, operands: list[Value], scope: Scope) -> list[Value]:
    """Read branches, all of them."""
    index, *inputs = operands
    branches = [walk(b, inputs, scope) for b in eqn.params["branches"]]
    chosen = Value(index.data)
    return [
        _join([chosen, *values], "cond", scope)
        for values in zip(*branches, strict=True)
    ]


def _join(values: Sequence[Value], name: str, scope: Scope) -> Value:
    """Join what a variable may be."""
    views = joined([view for value in values for view in value.views])
    if any(value.data for value in values):
        return soften(Value(True, views), name, scope)
    return Value(False, views)


def _shard_map(eqn: core.JaxprEqn, operands: list[Value], scope: Scope) -> list[Value]:
    """Read a program over the parts of arrays that one device has."""
    inner = eqn.params["jaxpr"]

    def fit(value: Value, variable: core.Var) -> Value:
        views = tuple(fitted(view, shape_of(variable)) for view in value.views)
        return value._replace(views=views)

    parts = [fit(v, x) for v, x in zip(operands, inner.invars, strict=True)]
    results = walk(inner, parts, scope)
    return [fit(v, x) for v, x in zip(results, eqn.outvars, strict=True)]
