"""Evaluate the program of a loss, with other products or operators at some sites."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from swapjax.backward.address import ENTERED, Address, Site
from swapjax.core import programs
from swapjax.roles.program.primitives import scan_counts

Do = Callable[[Sequence[Any]], list[Any]]
Replace = Callable[[core.JaxprEqn, list[Any], Site, Any, Do], list[Any]]
"""What is done at a site: ``(equation, operands, site, extras, do) -> results``.

`extras` are those of the site, for the step of the loops that it is in. ``do`` takes
operands and does what the equation does, or what another site at the same equation
makes of it. The results have the shapes and dtypes of those of the equation.
"""


class _Inside(NamedTuple):
    """A site, seen from a program that it lies in.

    Attributes:
        rest: its address there.
        site: the site.
        extras: for the loops around the program.
    """

    rest: Address
    site: Site
    extras: Any


def evaluate(
    program: core.ClosedJaxpr,
    arguments: Sequence[Any],
    sites: Sequence[Site],
    extras: Mapping[str, Any],
    replace: Replace,
) -> list[Any]:
    """Evaluate a program anew.

    Programs that are called as functions become part of the one that calls them, if
    there is a site in them; scans, branches and ``jax.checkpoint`` stay what they are,
    and extras reach what is in a scan as further slices. All else is left as it is.

    Args:
        program: as `swapjax.backward.address.trace` makes it.
        arguments: values of its inputs.
        sites: where something else is done, at addresses of this program.
        extras: for each site by name, a pytree of arrays whose leading axes are the
            levels of the site.
        replace: does it.

    Returns:
        What the program returns.
    """
    inside = [_Inside(site.address, site, extras[site.name]) for site in sites]
    return _run(program.jaxpr, program.consts, arguments, inside, replace)


def _run(
    program: core.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    inside: Sequence[_Inside],
    replace: Replace,
) -> list[Any]:
    def do(number: int, equation: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        here = [x._replace(rest=x.rest[1:]) for x in inside if x.rest[0] == number]
        return _do(equation, operands, here, replace)

    return programs.evaluate(program, consts, arguments, do)


def _do(
    equation: core.JaxprEqn,
    operands: list[Any],
    here: Sequence[_Inside],
    replace: Replace,
) -> list[Any]:
    """Do an equation, with what is at it or in the programs that it calls."""
    if any(x.rest for x in here):
        return _LOOPS.get(equation.primitive.name, _call)(
            equation, operands, here, replace
        )

    def do(operands: Sequence[Any], left: Sequence[_Inside] = here) -> list[Any]:
        if not left:
            return programs.bind(equation, operands)
        (_, site, extras), *others = left
        return replace(equation, list(operands), site, extras, lambda x: do(x, others))

    return do(operands)


def _entered(
    program: Any, number: int, here: Sequence[_Inside], replace: Replace
) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """Make a function of a program: of its inputs, and of extras of the sites here."""
    closed = isinstance(program, core.ClosedJaxpr)
    inner, consts = (program.jaxpr, program.consts) if closed else (program, ())

    def function(arguments: Sequence[Any], extras: Sequence[Any]) -> list[Any]:
        given = zip(here, extras, strict=True)
        inside = [
            x._replace(rest=x.rest[1:], extras=new)
            for x, new in given
            if x.rest[0] == number
        ]
        return _run(inner, consts, arguments, inside, replace)

    return function


def _call(
    equation: core.JaxprEqn,
    operands: list[Any],
    here: Sequence[_Inside],
    replace: Replace,
) -> list[Any]:
    """Enter a program that is called as a function."""
    program = equation.params[ENTERED[equation.primitive.name]]
    return _entered(program, 0, here, replace)(operands, [x.extras for x in here])


def _checkpoint(
    equation: core.JaxprEqn,
    operands: list[Any],
    here: Sequence[_Inside],
    replace: Replace,
) -> list[Any]:
    """Enter a program of ``jax.checkpoint``, which stays one."""
    params = equation.params
    again = jax.checkpoint(
        _entered(params["jaxpr"], 0, here, replace),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return again(operands, [x.extras for x in here])


def _scan(
    equation: core.JaxprEqn,
    operands: list[Any],
    here: Sequence[_Inside],
    replace: Replace,
) -> list[Any]:
    """Enter the program of a scan; extras are cut into slices as it goes."""
    params = equation.params
    several, carries = scan_counts(equation)
    consts, rest = operands[:several], operands[several:]
    body = _entered(params["jaxpr"], 0, here, replace)

    def step(carry: list, x: tuple[list, list]) -> tuple[list, list]:
        slices, extras = x
        results = body([*consts, *carry, *slices], extras)
        return results[:carries], results[carries:]

    carry, ys = jax.lax.scan(
        step,
        rest[:carries],
        (rest[carries:], [x.extras for x in here]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _cond(
    equation: core.JaxprEqn,
    operands: list[Any],
    here: Sequence[_Inside],
    replace: Replace,
) -> list[Any]:
    """Enter branches; of the extras of those not taken nothing is used."""
    which, *given = operands
    branches = [
        _entered(program, number, here, replace)
        for number, program in enumerate(equation.params["branches"])
    ]
    return jax.lax.switch(which, branches, given, [x.extras for x in here])


_LOOPS = {
    "scan": _scan,
    "cond": _cond,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
}
