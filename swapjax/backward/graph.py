"""The data flow of a program, with all that it calls laid out flat.

Functions that are called, the bodies of loops and the branches of conditions stand in
one list of nodes. A value that a loop hands to its next step, or a branch to what comes
after it, goes through a *link*, a node without an equation, so that paths may be
followed through the whole program, around loops too.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core

from swapjax.activations.dependence import called
from swapjax.backward.address import Address
from swapjax.roles.program.primitives import CALLS, LINEAR, scan_counts

LINK = "link"


class Node(NamedTuple):
    """An equation, or a link.

    Attributes:
        name: of the primitive, or ``"link"``.
        inputs: numbers of the values that enter.
        outputs: numbers of those that come out.
        eqn: the equation, None for a link.
        address: of the equation, as `swapjax.backward.address` has it.
        levels: lengths of the scans around it, the outermost first.
        closed: whether it is within a function whose derivative is a rule of its own.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    eqn: core.JaxprEqn | None = None
    address: Address = ()
    levels: tuple[int, ...] = ()
    closed: bool = False


class Graph:
    """Nodes in the order of the program, and the values between them.

    Args:
        program: closed.

    Attributes:
        nodes: all of them.
        avals: shape and dtype of each value.
        inputs: values that the program takes.
        outputs: values that it gives.
        readers: for each value the numbers of the nodes that it enters, in order.
        writers: for each value the numbers of the nodes that it comes out of.
    """

    def __init__(self, program: core.ClosedJaxpr) -> None:
        self.nodes: list[Node] = []
        self.avals: list[Any] = []
        self.inputs = [self._value(v.aval) for v in program.jaxpr.invars]
        self.outputs = self._enter(program.jaxpr, self.inputs, (), (), closed=False)
        self.readers: list[list[int]] = [[] for _ in self.avals]
        self.writers: list[list[int]] = [[] for _ in self.avals]
        for i, node in enumerate(self.nodes):
            for value in dict.fromkeys(node.inputs):
                self.readers[value].append(i)
            for value in node.outputs:
                self.writers[value].append(i)

    def is_float(self, value: int) -> bool:
        """Whether a value is of a dtype that has gradients."""
        dtype = getattr(self.avals[value], "dtype", None)
        return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)

    def before(self, values: Sequence[int]) -> set[int]:
        """Find the values that gradients of some go to, those themselves among them."""
        found, left = set(values), list(values)
        while left:
            for i in self.writers[left.pop()]:
                node = self.nodes[i]
                if node.name == "stop_gradient":
                    continue
                new = [v for v in node.inputs if v not in found and self.is_float(v)]
                found.update(new)
                left.extend(new)
        return found

    def _value(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _link(self, source: int, target: int) -> None:
        self.nodes.append(Node(LINK, (source,), (target,)))

    def _enter(
        self,
        program: core.Jaxpr,
        inputs: Sequence[int],
        address: Address,
        levels: tuple[int, ...],
        *,
        closed: bool,
    ) -> list[int]:
        """Lay a program out; give the values of its results."""
        known = dict(zip(program.invars, inputs, strict=True))
        known.update((v, self._value(v.aval)) for v in program.constvars)

        def read(atom: core.Var | core.Literal) -> int:
            if isinstance(atom, core.Literal):
                return self._value(atom.aval)
            return known[atom]

        for number, eqn in enumerate(program.eqns):
            operands, here = list(map(read, eqn.invars)), (*address, number)
            name = eqn.primitive.name
            if name in CALLS:
                own = closed or name.startswith("custom_")
                inner, _ = called(eqn)
                results = self._enter(inner, operands, (*here, 0), levels, closed=own)
            elif name == "scan":
                results = self._scan(eqn, operands, here, levels, closed=closed)
            elif name == "cond":
                results = self._cond(eqn, operands, here, levels, closed=closed)
            elif name in LINEAR and len(operands) == len(eqn.outvars) > 1:
                results = list(self._handed_on(eqn, operands))  # each on its own
            else:
                results = [self._value(v.aval) for v in eqn.outvars]
                self.nodes.append(
                    Node(
                        name, tuple(operands), tuple(results), eqn, here, levels, closed
                    )
                )
            known.update(zip(eqn.outvars, results, strict=True))
        return list(map(read, program.outvars))

    def _scan(
        self,
        eqn: core.JaxprEqn,
        operands: list[int],
        address: Address,
        levels: tuple[int, ...],
        *,
        closed: bool,
    ) -> list[int]:
        consts, carries = scan_counts(eqn)
        body = eqn.params["jaxpr"].jaxpr
        inner = operands[:consts]
        for value, variable in itertools.islice(
            zip(operands, body.invars, strict=True), consts, None
        ):
            inner.append(self._value(variable.aval))
            self._link(value, inner[-1])
        levels = (*levels, eqn.params["length"])
        found = self._enter(body, inner, (*address, 0), levels, closed=closed)
        for carry, value in zip(inner[consts : consts + carries], found, strict=False):
            self._link(value, carry)
        return list(self._handed_on(eqn, found))

    def _cond(
        self,
        eqn: core.JaxprEqn,
        operands: list[int],
        address: Address,
        levels: tuple[int, ...],
        *,
        closed: bool,
    ) -> list[int]:
        branches = [
            self._enter(
                branch.jaxpr, operands[1:], (*address, i), levels, closed=closed
            )
            for i, branch in enumerate(eqn.params["branches"])
        ]
        first, *others = branches
        results = list(self._handed_on(eqn, first))
        for branch in others:
            for value, result in zip(branch, results, strict=True):
                self._link(value, result)
        return results

    def _handed_on(self, eqn: core.JaxprEqn, found: Sequence[int]) -> Iterator[int]:
        """Link what a body gives to what comes out of its equation."""
        for value, variable in zip(found, eqn.outvars, strict=True):
            result = self._value(variable.aval)
            self._link(value, result)
            yield result
