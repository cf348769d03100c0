"""Walk through a program as far as it does without data, and count its products."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from swapjax.core import programs
from swapjax.roles.costs.tally import Count, Tally, Value
from swapjax.roles.program.primitives import CALLS, scan_counts

_LARGE = 2**20  # entries of a constant that are not computed, as no leaf is in it
_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")


def walk(
    program: Any, inputs: Sequence[Value], tally: Tally, times: int
) -> list[Value]:
    """Go through a program.

    Args:
        program: a jaxpr, closed or not.
        inputs: what is known of each of its inputs.
        tally: where products are counted.
        times: how often it is run.

    Returns:
        What is known of each of its results.
    """
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    return programs.evaluate(
        jaxpr,
        consts,
        inputs,
        lambda _, eqn, operands: _enter(eqn, operands, tally, times),
        known=Value,
    )


def _enter(
    eqn: core.JaxprEqn, operands: list[Value], tally: Tally, times: int
) -> list[Value]:
    """Go through an equation."""
    name = eqn.primitive.name
    if name in CALLS:
        return walk(eqn.params[CALLS[name]], operands, tally, times)
    if name in _PRODUCTS:
        _count(eqn, operands, tally, times)
    elif name in _LOOPS:
        return _LOOPS[name](eqn, operands, tally, times)
    else:
        inner = [p for p in eqn.params.values() if hasattr(p, "eqns")]
        if inner:
            return _unknown_call(eqn, inner, operands, tally, times)
    return _results(eqn, operands, tally)


def _results(eqn: core.JaxprEqn, operands: list[Value], tally: Tally) -> list[Value]:
    """Do what needs no data."""
    if any(value.data for value in operands):
        return [Value(data=True)] * len(eqn.outvars)
    if eqn.primitive.name in ("concatenate", "stack"):
        every = (i for value in operands for i in value.owners)
        owners = tuple(dict.fromkeys(every))
    else:
        owners = tally.largest(operands)
    size = max(math.prod(_shape(v)) for v in eqn.outvars)
    known = all(value.array is not None for value in operands)
    if not known or eqn.effects or (not owners and size > _LARGE):
        return [Value(owners=owners)] * len(eqn.outvars)
    results = programs.bind(eqn, [value.array for value in operands])
    return [Value(array, owners) for array in results]


def _count(eqn: core.JaxprEqn, operands: list[Value], tally: Tally, times: int) -> None:
    """Count a product."""
    name = eqn.primitive.name
    if name == "ragged_dot_general":
        left, size = _shape(eqn.invars[0]), math.prod(_shape(eqn.outvars[0]))
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        macs = size * math.prod(left[i] for i in numbers[0][0])
        operands = operands[:2]
        tally.note("each row counts with one expert, and experts by their mean")
    else:
        macs = programs.multiplications(eqn)
    macs *= times
    weights = [value for value in operands if value.owners and not value.data]
    arrays = [value.array for value in weights]
    if not weights or any(array is None for array in arrays):
        tally.add(tally.largest(weights), Count(macs, macs))
    elif len(weights) == 1:
        size, nonzeros = np.size(arrays[0]), np.count_nonzero(np.asarray(arrays[0]))
        # Every entry enters as many multiplications as any other.
        kept = macs * int(nonzeros) // size if size else 0
        tally.add(weights[0].owners, Count(macs, kept))
    else:
        pairs = macs if name == "ragged_dot_general" else _pairs(eqn, arrays) * times
        tally.add(tally.largest(weights), Count(macs, pairs))


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


def _pairs(eqn: core.JaxprEqn, arrays: Sequence[Any]) -> int:
    """Count pairs of entries that are both not zero, of a product of two leaves."""
    settings = {**eqn.params, "preferred_element_type": np.dtype(np.float32)}
    there = [(jnp.asarray(x) != 0).astype(jnp.float32) for x in arrays]
    (found,) = programs.bind(eqn, there, settings)
    return int(np.asarray(found, np.float64).sum())


def _unknown_call(
    eqn: core.JaxprEqn,
    inner: Sequence[Any],
    operands: list[Value],
    tally: Tally,
    times: int,
) -> list[Value]:
    """Count once what an equation runs that is not known here."""
    name = eqn.primitive.name
    data = any(value.data for value in operands)
    for program in inner:
        jaxpr = getattr(program, "jaxpr", program)
        devices = getattr(eqn.params.get("mesh"), "size", 1)
        if len(jaxpr.invars) == len(operands):
            values = [value._replace(array=None) for value in operands]
        else:
            values = [Value(data=True)] * len(jaxpr.invars)
        before = tally.costs().total.macs
        walk(program, values, tally, times * devices)
        if tally.costs().total.macs > before and name != "shard_map":
            tally.note(f"what {name} runs is counted once")
    owners = () if data else tally.largest(operands)
    return [Value(owners=owners, data=data)] * len(eqn.outvars)


def _scan(
    eqn: core.JaxprEqn, operands: list[Value], tally: Tally, times: int
) -> list[Value]:
    """Go through a loop over slices, step by step where steps see other leaves."""
    consts, carries = scan_counts(eqn)
    fixed, carry = operands[:consts], operands[consts : consts + carries]
    stacked, length = operands[consts + carries :], eqn.params["length"]
    body = eqn.params["jaxpr"]
    moving = [value for value in (*carry, *stacked) if value.array is not None]
    if not moving or not any(value.owners for value in operands) or not length:
        ahead = [value._replace(array=None) for value in (*carry, *stacked)]
        found = walk(body, [*fixed, *ahead], tally, times * length)
        return [value._replace(array=None) for value in found]
    order = range(length)
    steps = []
    for step in reversed(order) if eqn.params["reverse"] else order:
        slices = [
            value if value.array is None else value._replace(array=value.array[step])
            for value in stacked
        ]
        found = walk(body, [*fixed, *carry, *slices], tally, times)
        carry = found[:carries]
        steps.append(found[carries:])
    if eqn.params["reverse"]:
        steps.reverse()
    return [*carry, *map(_joined, zip(*steps, strict=True))]


def _joined(values: Sequence[Value]) -> Value:
    """Put the slices that steps made beside each other."""
    if any(value.array is None for value in values):
        return values[0]._replace(array=None)
    return values[0]._replace(array=jnp.stack([value.array for value in values]))


def _while(
    eqn: core.JaxprEqn, operands: list[Value], tally: Tally, times: int
) -> list[Value]:
    """Go through a loop that a condition ends, once where data decide on that."""
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]
    asked, fixed, carry = operands[:first], operands[first:last], operands[last:]
    while True:
        (goes,) = walk(eqn.params["cond_jaxpr"], [*asked, *carry], tally, times)
        if goes.array is None:
            tally.note("a loop that data end is counted once")
            carry = walk(eqn.params["body_jaxpr"], [*fixed, *carry], tally, times)
            return [Value(data=True)] * len(carry)
        if not goes.array:
            return carry
        carry = walk(eqn.params["body_jaxpr"], [*fixed, *carry], tally, times)


def _cond(
    eqn: core.JaxprEqn, operands: list[Value], tally: Tally, times: int
) -> list[Value]:
    """Go through the branch that is taken; where data decide, the one with most."""
    index, *inputs = operands
    branches = eqn.params["branches"]
    if index.array is not None:
        which = min(max(int(index.array), 0), len(branches) - 1)
        return walk(branches[which], inputs, tally, times)
    tallies = [tally.fresh() for _ in branches]
    for branch, one in zip(branches, tallies, strict=True):
        walk(branch, inputs, one, times)
    most = max(tallies, key=lambda one: one.costs().total.macs)
    if most.costs().total.macs:
        tally.note("of branches that data choose the largest counts")
    tally.take(most)
    return [Value(data=True)] * len(eqn.outvars)


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
