"""Look at what enters each ReLU of a network, and shut it, by its traced program.

Programs are evaluated equation by equation, into those that they call, into branches
and scans. What is seen in scans is stacked along a first axis for each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from swapjax.core import programs

Measure = Callable[[jax.Array], Any]

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "remat2", "checkpoint")


def watch(
    fn: Callable[[Any], jax.Array],
    x: Any,
    measure: Measure | None = None,
    gates: Sequence[jax.Array] | None = None,
) -> tuple[jax.Array, list[Any]]:
    """Evaluate a function, and measure what enters each of its ReLUs.

    A ReLU is the maximum of an array and zero, wherever it is but in while loops. In a
    branch that is not taken zeros are measured.

    Args:
        fn: a pure function of one array.
        x: what it is given.
        measure: of the input of a ReLU, any pytree of arrays; None for nothing.
        gates: for each ReLU what its output is multiplied with; see `gates_of`.

    Returns:
        What the function returns, and for each ReLU what was measured, stacked by the
        scans around it.
    """
    program = jax.make_jaxpr(fn)(x)
    left = None if gates is None else iter(gates)
    out, seen = _evaluate(
        program.jaxpr, program.consts, jax.tree.leaves(x), measure, left
    )
    return out[0], seen


def gates_of(
    fn: Callable[[Any], jax.Array], x: Any, *, channels: bool = False
) -> list[jax.Array]:
    """Return a one for each ReLU of a function, to differentiate by.

    Args:
        fn: a pure function of one array.
        x: what it is given.
        channels: a one for each example and channel instead, of the first axis and the
            last.

    Returns:
        Ones [*levels] or [*levels, n, 1, ..., channels], with an axis for each scan
        around a ReLU.
    """
    gates = []
    for levels, shape in _sites(jax.make_jaxpr(fn)(x).jaxpr, ()):
        ends = (shape[0], *(1,) * (len(shape) - 2), shape[-1]) if channels else ()
        gates.append(jnp.ones((*levels, *ends)))
    return gates


def _sites(
    program: core.Jaxpr, levels: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield for each ReLU the lengths of the scans around it, and its shape."""
    for eqn in program.eqns:
        if _is_relu(eqn):
            result: Any = eqn.outvars[0].aval
            yield levels, result.shape
        elif eqn.primitive.name == "scan":
            inner = (*levels, eqn.params["length"])
            yield from _sites(eqn.params["jaxpr"].jaxpr, inner)
        elif eqn.primitive.name == "cond":
            for branch in eqn.params["branches"]:
                yield from _sites(branch.jaxpr, levels)
        elif eqn.primitive.name in _CALLS:
            yield from _sites(_called(eqn)[0], levels)


def _evaluate(
    program: core.Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    measure: Measure | None,
    gates: Iterator[jax.Array] | None,
) -> tuple[list[Any], list[Any]]:
    seen: list[Any] = []

    def do(number: int, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        del number
        found: list[Any] = []
        if _is_relu(eqn):
            x = operands[0 if _is_array(eqn.invars[0]) else 1]
            found = [None if measure is None else measure(x)]
            results = programs.bind(eqn, operands)
            if gates is not None:
                results = [results[0] * next(gates).astype(results[0].dtype)]
        elif eqn.primitive.name in _CALLS:
            results, found = _evaluate(*_called(eqn), operands, measure, gates)
        elif eqn.primitive.name in _INNER:
            results, found = _INNER[eqn.primitive.name](eqn, operands, measure, gates)
        else:
            results = programs.bind(eqn, operands)
        seen.extend(found)
        return results

    return programs.evaluate(program, consts, inputs, do), seen


def _scan(
    eqn: core.JaxprEqn,
    operands: list[Any],
    measure: Measure | None,
    gates: Iterator[jax.Array] | None,
) -> tuple[list[Any], list[Any]]:
    """Evaluate a scan, what is seen being among what its steps return."""
    params, body = eqn.params, eqn.params["jaxpr"]
    consts, carried = params["num_consts"], params["num_carry"]
    fixed, carry = operands[:consts], operands[consts : consts + carried]
    count = len(list(_sites(body.jaxpr, ())))
    mine = None if gates is None else [next(gates) for _ in range(count)]

    def step(carry: list[Any], slices: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        xs, ones = slices
        left = None if ones is None else iter(ones)
        inputs = [*fixed, *carry, *xs]
        out, seen = _evaluate(body.jaxpr, body.consts, inputs, measure, left)
        return out[:carried], (out[carried:], seen)

    xs = operands[consts + carried :]
    carry, (ys, seen) = jax.lax.scan(
        step, carry, (xs, mine), params["length"], params["reverse"]
    )
    return [*carry, *ys], seen


def _cond(
    eqn: core.JaxprEqn,
    operands: list[Any],
    measure: Measure | None,
    gates: Iterator[jax.Array] | None,
) -> tuple[list[Any], list[Any]]:
    """Evaluate one branch; what would be seen in the others is zero."""
    chosen, *operands = operands
    branches = []
    for branch in eqn.params["branches"]:
        count = len(list(_sites(branch.jaxpr, ())))
        mine = None if gates is None else [next(gates) for _ in range(count)]

        def run(
            operands: list[Any], branch: Any = branch, mine: Any = mine
        ) -> tuple[list[Any], list[Any]]:
            left = None if mine is None else iter(mine)
            return _evaluate(branch.jaxpr, branch.consts, operands, measure, left)

        branches.append(run)
    seen = [jax.eval_shape(run, operands)[1] for run in branches]

    def whole(i: int) -> Callable[[list[Any]], tuple[list[Any], list[Any]]]:
        def run(operands: list[Any]) -> tuple[list[Any], list[Any]]:
            results, found = branches[i](operands)
            told = [
                found if j == i else jax.tree.map(_zeros, other)
                for j, other in enumerate(seen)
            ]
            return results, [x for part in told for x in part]

        return run

    runs = [whole(i) for i in range(len(branches))]
    return jax.lax.switch(chosen, runs, operands)


def _zeros(like: Any) -> jax.Array:
    return jnp.zeros(like.shape, like.dtype)


_INNER = {"scan": _scan, "cond": _cond}


def _called(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[Any]]:
    program: Any = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(program, core.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, ()


def _is_array(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _is_relu(eqn: core.JaxprEqn) -> bool:
    if eqn.primitive.name != "max":
        return False
    literals = [atom.val for atom in eqn.invars if isinstance(atom, core.Literal)]
    return len(literals) == 1 and np.ndim(literals[0]) == 0 and literals[0] == 0
