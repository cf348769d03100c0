"""Heads: the layers whose outputs the loss reads, found in its program.

Walks the program forward with two things known of each variable: whether it depends on
data, and which matrices made it, the last of each way. A product of data with a matrix
starts anew; all else hands on what its operands have. What reaches the loss, was never
read by another product and never summed with the outputs of another layer, as in a
residual stream, is of a head.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from jax.extend import core

from swapjax.roles.program.primitives import scan_counts
from swapjax.roles.program.values import shape_of
from swapjax.roles.program.walk import called

_PRODUCTS = ("dot_general", "conv_general_dilated")
_ROUNDS = 8  # of a loop, which no set of leaves needs more of to settle


class _Flow(NamedTuple):
    """What is known of a variable: of data, the last layers; of weights, the leaves."""

    data: bool = False
    leaves: frozenset[int] = frozenset()


def find_heads(
    program: core.Jaxpr | core.ClosedJaxpr, leaves: int, data: int
) -> frozenset[int]:
    """Find the leaves that are heads.

    Args:
        program: of a loss; its inputs are leaves of params, then leaves of a batch.
        leaves: how many are of params.
        data: how many are of the batch.

    Returns:
        Numbers of leaves.
    """
    inputs = [_Flow(leaves=frozenset({i})) for i in range(leaves)]
    inputs += [_Flow(data=True)] * data
    inside: set[int] = set()
    results = _walk(program, inputs, inside)
    ends = [flow.leaves for flow in results if flow.data]
    return frozenset().union(*ends) - inside


def _walk(
    program: core.Jaxpr | core.ClosedJaxpr, inputs: Sequence[_Flow], inside: set[int]
) -> list[_Flow]:
    """Follow flows through a program; those of layers that are no heads go inside."""
    if isinstance(program, core.ClosedJaxpr):
        program = program.jaxpr
    flows: dict[core.Var, _Flow] = dict.fromkeys(program.constvars, _Flow())
    flows.update(zip(program.invars, inputs, strict=True))

    def read(atom: core.Var | core.Literal) -> _Flow:
        return _Flow() if isinstance(atom, core.Literal) else flows[atom]

    for eqn in program.eqns:
        results = _step(eqn, [read(atom) for atom in eqn.invars], inside)
        flows.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _step(
    eqn: core.JaxprEqn, operands: list[_Flow], inside: set[int]
) -> Sequence[_Flow]:
    name = eqn.primitive.name
    if name == "scan":
        consts, carries = scan_counts(eqn)
        return _loop(eqn.params["jaxpr"], operands, consts, carries, inside)
    if name == "while":
        skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        rest = operands[skipped:]
        carries = len(rest) - consts
        return _loop(eqn.params["body_jaxpr"], rest, consts, carries, inside)
    if name == "cond":
        branches = [_walk(b, operands[1:], inside) for b in eqn.params["branches"]]
        return [_joined(flows) for flows in zip(*branches, strict=True)]
    inner = called(eqn)
    if inner is not None:
        return _walk(inner, operands, inside)
    if name in _PRODUCTS:
        left, right = operands
        if left.data != right.data:
            read, weights = (left, right) if left.data else (right, left)
            if weights.leaves:
                inside |= read.leaves
                return [_Flow(True, weights.leaves)]
    result = _joined(operands)
    if name in ("add", "add_any", "sub") and shape_of(eqn.outvars[0]):
        sets = {flow.leaves for flow in operands if flow.data and flow.leaves}
        if len(sets) > 1:
            inside |= result.leaves
    return [result] * len(eqn.outvars)


def _loop(
    body: core.ClosedJaxpr,
    operands: list[_Flow],
    consts: int,
    carries: int,
    inside: set[int],
) -> list[_Flow]:
    """Follow flows around a loop until they settle."""
    fixed, carry = operands[:consts], operands[consts : consts + carries]
    rest: list[_Flow] = []
    for _ in range(_ROUNDS):
        results = _walk(body, [*fixed, *carry, *operands[consts + carries :]], inside)
        rest = results[carries:]
        new = [_joined(pair) for pair in zip(carry, results[:carries], strict=True)]
        if new == carry:
            break
        carry = new
    return [*carry, *rest]


def _joined(flows: Sequence[_Flow]) -> _Flow:
    """Join flows; beside data, of those that depend on it alone."""
    data = any(flow.data for flow in flows)
    sets = [flow.leaves for flow in flows if flow.data == data]
    return _Flow(data, functools.reduce(frozenset.union, sets, frozenset()))
