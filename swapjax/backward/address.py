"""Where in the program of a loss something happens: addresses of equations.

An address is the path of equation numbers to an equation, through the programs that
lie in others: ``(3, 0, 5)`` is equation 5 of the first program that equation 3 calls.
A program is the same each time that a loss is traced for the same shapes, and so an
address found in one holds in the next.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
from jax.extend import core

from swapjax.roles.program.primitives import CALLS

Address = tuple[int, ...]

# Equations that call a program as a function, and the parameter that holds it. What has
# derivatives of its own (`jax.custom_jvp`, `jax.custom_vjp`) is not entered: a change
# inside would not be seen by them. Nor are while loops, which have no gradient.
ENTERED = {"scan": "jaxpr", "cond": "branches"} | {
    name: held for name, held in CALLS.items() if not name.startswith("custom_")
}


@dataclasses.dataclass(frozen=True)
class Site:
    """A place where the gradient that is propagated back is changed.

    Attributes:
        name: the path of the leaf that the product multiplies with data, as
            ``"conv1/kernel"``, or what was given by hand.
        kind: ``"output"`` for the gradient of the result of the equation, ``"input"``
            for that of its operand.
        address: of the equation, the product or the mark.
        shape: of what the gradient is of, for one step of the loops around it.
        dtype: of that.
        levels: lengths of the scans around the equation, outermost first.
        operand: which of the operands of the equation is the data, 0 or 1.
    """

    name: str
    kind: Literal["input", "output"]
    address: Address
    shape: tuple[int, ...]
    dtype: Any
    levels: tuple[int, ...] = ()
    operand: int = 0


class Located(NamedTuple):
    """An equation of a program.

    Attributes:
        address: where it is.
        equation: of the jaxpr that it is in.
        levels: lengths of the scans around it, outermost first.
    """

    address: Address
    equation: core.JaxprEqn
    levels: tuple[int, ...]


def trace(loss_fn: Callable, params: Any, data: Any) -> core.ClosedJaxpr:
    """Trace a loss to the program that addresses are meant for.

    Args:
        loss_fn: ``(params, data) -> loss``, or a tree whose first leaf is the loss.
        params: any pytree of arrays, or of shapes and dtypes.
        data: the same.

    Returns:
        The program; its inputs are the leaves of params, then those of data.
    """
    return trace_tree(loss_fn, params, data)[0]


def trace_tree(
    loss_fn: Callable, params: Any, data: Any
) -> tuple[core.ClosedJaxpr, jax.tree_util.PyTreeDef]:
    """Trace a loss as `trace` does, and tell the tree that it returns."""
    # Loops are to be seen as such, whoever looks into theirs step by step.
    with jax.disable_jit(False):
        program, shapes = jax.make_jaxpr(loss_fn, return_shape=True)(params, data)
    return program, jax.tree.structure(shapes)


def entered(equation: core.JaxprEqn) -> tuple[core.Jaxpr, ...]:
    """List the programs of an equation that addresses lead into."""
    if equation.primitive.name not in ENTERED:
        return ()
    held = equation.params[ENTERED[equation.primitive.name]]
    several = held if isinstance(held, tuple | list) else (held,)
    return tuple(opened(program) for program in several)


def opened(program: Any) -> core.Jaxpr:
    """Take the equations of a program, closed or not."""
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def equations(
    program: core.Jaxpr, address: Address = (), levels: tuple[int, ...] = ()
) -> Iterator[Located]:
    """Yield every equation of a program, each before what it calls.

    Args:
        program: a jaxpr.
        address: of the program.
        levels: lengths of the scans around it.
    """
    for i, equation in enumerate(program.eqns):
        here = (*address, i)
        yield Located(here, equation, levels)
        within = levels
        if equation.primitive.name == "scan":
            within = (*levels, equation.params["length"])
        for j, inner in enumerate(entered(equation)):
            yield from equations(inner, (*here, j), within)


def equation_at(program: core.Jaxpr, address: Address) -> core.JaxprEqn:
    """Find the equation at an address.

    Raises:
        IndexError: for an address of another program.
    """
    equation = program.eqns[address[0]]
    for i in range(1, len(address), 2):
        equation = entered(equation)[address[i]].eqns[address[i + 1]]
    return equation


def require_apart(sites: tuple[Site, ...], what: str = "sites") -> None:
    """Raise for a name that two sites have.

    Raises:
        ValueError: naming it.
    """
    names = [site.name for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{what}: a name is for one place of the program, {', '.join(twice)} "
            f"{'is' if len(twice) == 1 else 'are'} used twice"
        )
