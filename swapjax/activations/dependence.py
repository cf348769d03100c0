"""What in a program depends on the data, told from its equations alone."""

from collections.abc import Callable, Sequence

from jax.extend import core

from swapjax.roles.primitives import CALLS

Flags = tuple[bool, ...]


def called(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence]:
    """Take the program of an equation of `CALLS`, and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    closed = isinstance(inner, core.ClosedJaxpr)
    return (inner.jaxpr, inner.consts) if closed else (inner, ())


def flow(
    program: core.Jaxpr,
    flags: Sequence[bool],
    branching: Callable[[core.JaxprEqn], None] | None = None,
) -> Flags:
    """Tell which results of a program depend on the data.

    Args:
        program: a jaxpr.
        flags: which of its inputs do; its constants do not.
        branching: called for every equation whose data tell which branch it takes, or
            how often it loops.
    """
    known = dict(zip(program.invars, flags, strict=True))

    def read(atom: core.Var | core.Literal) -> bool:
        return not isinstance(atom, core.Literal) and known.get(atom, False)

    for eqn in program.eqns:
        results = _results(eqn, tuple(map(read, eqn.invars)), branching)
        known.update(zip(eqn.outvars, results, strict=True))
    return tuple(map(read, program.outvars))


def carried(body: core.Jaxpr, consts: Flags, carry: Flags, xs: Flags = ()) -> Flags:
    """Tell which values depend on the data that a loop carries on."""
    while True:
        found = flow(body, (*consts, *carry, *xs))[: len(carry)]
        after = tuple(a or b for a, b in zip(carry, found, strict=True))
        if after == carry:
            return carry
        carry = after


def _results(eqn: core.JaxprEqn, flags: Flags, branching: Callable | None) -> Flags:
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        return flow(called(eqn)[0], flags, branching)
    if name == "scan":
        first = params["num_consts"]
        last = first + params["num_carry"]
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
        if ends and branching is not None:
            branching(eqn)
        return tuple(ends or flag for flag in carry)
    if name == "cond":
        if flags[0] and branching is not None:
            branching(eqn)
        several = [flow(b.jaxpr, flags[1:], branching) for b in params["branches"]]
        return tuple(flags[0] or any(each) for each in zip(*several, strict=True))
    return (any(flags),) * len(eqn.outvars)
