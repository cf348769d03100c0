"""Loops and branches that leaves enter, made anew so that they return moments.

One loop stays one loop. What a leaf reads that it takes slice by slice comes out
stacked; what it reads as a whole, at every step, is summed up on the way.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations import view as views
from swapjax.activations.constants import settle
from swapjax.activations.dependence import carried
from swapjax.activations.product import Product
from swapjax.activations.values import Frame, Value, Walk
from swapjax.roles.program.primitives import scan_counts


class _Body(NamedTuple):
    """A program that is evaluated within a loop or a branch.

    Attributes:
        call: takes a pair of array and scale for each input; returns arrays, moments,
            and for each the indices of the levels that are told by one.
        results: what is known of its results.
        products: those in it, without moments.
        sizes: of each, those of the levels told by an index.
        shapes: of the moments.
    """

    call: Callable[[Sequence[tuple]], tuple[list, list, list]]
    results: list[Value]
    products: list[Product]
    sizes: list[tuple[int, ...]]
    shapes: list[jax.ShapeDtypeStruct]

    def zeros(self) -> list[jax.Array]:
        """Make the sums to start with."""
        return [
            jnp.zeros((*sizes, *shape.shape), shape.dtype)
            for sizes, shape in zip(self.sizes, self.shapes, strict=True)
        ]


def scan(
    eqn: core.JaxprEqn, operands: Sequence[Value], frame: Frame, walk: Walk
) -> list[Value]:
    """Evaluate a ``scan``, and append the products in it to those of the frame."""
    params, body = eqn.params, eqn.params["jaxpr"]
    first, several = scan_counts(eqn)
    last = first + several
    consts, carry, xs = operands[:first], operands[first:last], operands[last:]
    length = params["length"]
    inner = frame.inner()
    level = inner.open(length)
    carry = _carry(body.jaxpr, consts, carry, xs, frame, "scan")
    stacks = [_scale_by_step(x, length) for x in xs]
    slices = [_slice(x, level) for x in stacks]
    made = _trace(body, [*consts, *carry, *slices], inner, walk)
    alone = [level in product.view.levels for product in made.products]
    zeros = made.zeros()

    def step(state: tuple, x: list) -> tuple[tuple, tuple]:
        values, totals = state
        given = [(v, c.scale) for v, c in zip(values, carry, strict=True)]
        results, moments, picks = made.call([*map(_pair, consts), *given, *x])
        # What is stacked starts from nothing at each step.
        starts = [
            (zero if index else None) if apart else total
            for zero, total, apart, index in zip(
                zeros, totals, alone, picks, strict=True
            )
        ]
        sums = list(map(_add, starts, moments, picks))
        kept = [None if apart else m for m, apart in zip(sums, alone, strict=True)]
        out = [m if apart else None for m, apart in zip(sums, alone, strict=True)]
        return (results[: len(carry)], kept), (results[len(carry) :], out)

    totals = [None if apart else zero for zero, apart in zip(zeros, alone, strict=True)]
    start = ([value.array for value in carry], totals)
    (values, totals), (ys, out) = jax.lax.scan(
        step, start, [_pair(x) for x in stacks], length=length,
        reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    moments = [
        m if apart else total
        for total, m, apart in zip(totals, out, alone, strict=True)
    ]
    _append(made.products, moments, frame)
    results = [
        dataclasses.replace(value, array=array)
        for value, array in zip(carry, values, strict=True)
    ]
    for found, array in zip(made.results[len(carry) :], ys, strict=True):
        seen = found.view and views.unstep(found.view, level)
        if found.view is not None and (seen is None or found.scale is not None):
            raise frame.error(found.view, "is returned by a scan that it enters")
        results.append(Value(array, found.data, seen))
    return results


def while_loop(
    eqn: core.JaxprEqn, operands: Sequence[Value], frame: Frame, walk: Walk
) -> list[Value]:
    """Evaluate a ``while``, and append the products in it to those of the frame."""
    params, body = eqn.params, eqn.params["body_jaxpr"]
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    for value in operands[:first]:
        if value.view is not None:
            raise frame.error(value.view, "enters the condition of a while loop")
    asked = [value.array for value in operands[:first]]
    consts = operands[first:last]
    carry = _carry(body.jaxpr, consts, operands[last:], (), frame, "while")
    made = _trace(body, [*consts, *carry], frame.inner(), walk)
    condition = core.jaxpr_as_fun(params["cond_jaxpr"])

    def step(state: tuple) -> tuple:
        values, totals = state
        given = [(v, c.scale) for v, c in zip(values, carry, strict=True)]
        results, moments, picks = made.call([*map(_pair, consts), *given])
        return results, list(map(_add, totals, moments, picks))

    start = ([jnp.asarray(value.array) for value in carry], made.zeros())
    values, totals = jax.lax.while_loop(
        lambda state: condition(*asked, *state[0])[0], step, start
    )
    _append(made.products, totals, frame)
    return [
        dataclasses.replace(value, array=array)
        for value, array in zip(carry, values, strict=True)
    ]


def cond(
    eqn: core.JaxprEqn, operands: Sequence[Value], frame: Frame, walk: Walk
) -> list[Value]:
    """Evaluate a ``cond``; the branches that are not taken read nothing."""
    which, *given = operands
    bodies = [
        _trace(branch, given, frame.inner(), walk) for branch in eqn.params["branches"]
    ]
    for result in (result for body in bodies for result in body.results):
        if result.view is not None:
            raise frame.error(result.view, "is returned by a branch that it enters")

    def take(number: int) -> Callable[[list], tuple]:
        def run(arrays: list) -> tuple:
            results, moments, picks = bodies[number].call(arrays)
            sums = [body.zeros() for body in bodies]
            sums[number] = list(map(_add, sums[number], moments, picks))
            return results, sums

        return run

    branches = [take(i) for i in range(len(bodies))]
    arrays, sums = jax.lax.switch(which.array, branches, [_pair(v) for v in given])
    for body, moments in zip(bodies, sums, strict=True):
        _append(body.products, moments, frame)
    every = zip(*(body.results for body in bodies), strict=True)
    return [
        Value(array, which.data or any(result.data for result in results))
        for array, results in zip(arrays, every, strict=True)
    ]


def _carry(
    body: core.Jaxpr,
    consts: Sequence[Value],
    carry: Sequence[Value],
    xs: Sequence[Value],
    frame: Frame,
    name: str,
) -> list[Value]:
    """Tell what is known of the values that a loop carries on.

    Raises:
        ValueError: for a leaf among them that changes.
    """
    flags = carried(
        body, *(tuple(v.data for v in part) for part in (consts, carry, xs))
    )
    result = []
    for i, (value, data) in enumerate(zip(carry, flags, strict=True)):
        same = body.outvars[i] is body.invars[len(consts) + i]
        if value.view is not None and not same:
            raise frame.error(value.view, f"is carried through {name} and changes")
        result.append(dataclasses.replace(value, data=bool(data), narrow=None))
    return result


def _trace(
    program: core.ClosedJaxpr, values: Sequence[Value], frame: Frame, walk: Walk
) -> _Body:
    """Evaluate a program once, to a program that returns its moments as well."""
    seen: list[Value] = []

    def run(pairs: list[tuple]) -> tuple[list, list, list]:
        inside = [
            dataclasses.replace(value, array=array, scale=scale, narrow=None)
            for value, (array, scale) in zip(values, pairs, strict=True)
        ]
        found = walk(program.jaxpr, program.consts, inside, frame)
        seen.extend(settle(value, frame) for value in found)
        moments = [product.moment for product in frame.products]
        picks = [frame.picked(product)[1] for product in frame.products]
        return [value.array for value in seen], moments, picks

    pairs = [jax.tree.map(_shape, _pair(value)) for value in values]
    made, shapes = jax.make_jaxpr(run, return_shape=True)(pairs)
    function, structure = core.jaxpr_as_fun(made), jax.tree.structure(shapes)

    def call(pairs: Sequence[tuple]) -> tuple[list, list, list]:
        found = function(*jax.tree.leaves(pairs))
        result: tuple[list, list, list] = jax.tree.unflatten(structure, found)
        return result

    sizes = [frame.picked(product)[0] for product in frame.products]
    return _Body(call, seen, frame.products, sizes, shapes[1])


def _append(products: list[Product], moments: list, frame: Frame) -> None:
    for product, moment in zip(products, moments, strict=True):
        frame.add(product._replace(moment=moment))


def _add(total: jax.Array | None, moment: jax.Array, index: tuple) -> jax.Array:
    if total is None:
        return moment
    return total.at[tuple(index)].add(moment) if index else total + moment


def _pair(value: Value) -> tuple[Any, jax.Array | None]:
    return value.array, value.scale


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


def _scale_by_step(value: Value, length: int) -> Value:
    """Give the scale of a stack an entry for each of its slices."""
    if value.scale is None:
        return value
    sides = (length, *value.scale.shape[1:])
    return dataclasses.replace(value, scale=jnp.broadcast_to(value.scale, sides))


def _slice(value: Value, level: views.Level) -> Value:
    """Tell what is known of a slice; its arrays are shapes."""

    def first(x: Any) -> jax.ShapeDtypeStruct:
        kind = _shape(x)
        return jax.ShapeDtypeStruct(kind.shape[1:], kind.dtype)

    array, scale = jax.tree.map(first, _pair(value))
    seen = None if value.view is None else views.step(value.view, level)
    return Value(array, value.data, seen, scale)
