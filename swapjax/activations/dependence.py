"""What in a program depends on the data, and what on leaves alone."""

from collections.abc import Callable, Sequence

from jax.extend import core

from swapjax.roles.program.primitives import CALLS, scan_counts

CONSTANT, DATA, LEAF = 0, 1, 2  # what depends on both counts as data
Flags = tuple[int, ...]


def called(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence]:
    """Take the program of an equation of `CALLS`, and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    closed = isinstance(inner, core.ClosedJaxpr)
    return (inner.jaxpr, inner.consts) if closed else (inner, ())


def flow(
    program: core.Jaxpr,
    flags: Sequence[int],
    branching: Callable[[core.JaxprEqn], None] | None = None,
) -> Flags:
    """Tell what the results of a program depend on.

    Args:
        program: a jaxpr.
        flags: what its inputs depend on; its constants do on neither.
        branching: called for every equation that leaves enter and of which data tell
            which branch it takes, how often it loops, or how many rows an expert has.
    """
    known = dict(zip(program.invars, flags, strict=True))

    def read(atom: core.Var | core.Literal) -> int:
        return CONSTANT if isinstance(atom, core.Literal) else known.get(atom, CONSTANT)

    for eqn in program.eqns:
        results = _results(eqn, tuple(map(read, eqn.invars)), branching)
        known.update(zip(eqn.outvars, results, strict=True))
    return tuple(map(read, program.outvars))


def carried(body: core.Jaxpr, consts: Flags, carry: Flags, xs: Flags = ()) -> Flags:
    """Tell what the values depend on that a loop carries on."""
    while True:
        found = flow(body, (*consts, *carry, *xs))[: len(carry)]
        after = tuple(map(_both, carry, found))
        if after == carry:
            return carry
        carry = after


def _results(eqn: core.JaxprEqn, flags: Flags, branching: Callable | None) -> Flags:
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        return flow(called(eqn)[0], flags, branching)
    if name == "scan":
        first, length = scan_counts(eqn)
        last = first + length
        body, consts, xs = params["jaxpr"].jaxpr, flags[:first], flags[last:]
        carry = carried(body, consts, flags[first:last], xs)
        return flow(body, (*consts, *carry, *xs), branching)
    if name == "while":
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        body, consts = params["body_jaxpr"].jaxpr, flags[first:last]
        carry = carried(body, consts, flags[last:])
        condition = params["cond_jaxpr"].jaxpr
        (ends,) = flow(condition, (*flags[:first], *carry), branching)
        flow(body, (*consts, *carry), branching)
        if ends == DATA and LEAF in flags and branching is not None:
            branching(eqn)
        return tuple(_both(ends, flag) for flag in carry)
    if name == "cond":
        if flags[0] == DATA and LEAF in flags and branching is not None:
            branching(eqn)
        several = [flow(b.jaxpr, flags[1:], branching) for b in params["branches"]]
        return tuple(_both(flags[0], *each) for each in zip(*several, strict=True))
    if name == "ragged_dot_general" and DATA in flags and branching is not None:
        branching(eqn)
    return (_both(*flags),) * len(eqn.outvars)


def _both(*flags: int) -> int:
    """Tell what depends on what several things depend on."""
    return DATA if DATA in flags else max(flags, default=CONSTANT)
