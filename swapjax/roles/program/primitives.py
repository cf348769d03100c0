"""What equations do to where entries lie, by the names of their primitives."""

from typing import Any

from jax.extend import core

# Equations that call another program, and the parameter that holds it. All are entered:
# their rules for derivatives do not matter here.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
# Equations that keep every entry in its place, and those that rearrange entries.
SAME = frozenset(
    {
        "convert_element_type",
        "copy",
        "copy_p",
        "name",
        "reduce_precision",
        "sharding_constraint",
        "stop_gradient",
    }
)
MOVES = frozenset(
    {
        "broadcast_in_dim",
        "expand_dims",
        "reshape",
        "rev",
        "squeeze",
        "transpose",
    }
)
# Equations whose results have the shape of their operands, entry by entry; of arrays
# over several devices too, where the device's own part counts as the whole.
LINEAR = SAME | {
    "add",
    "add_any",
    "conj",
    "device_put",
    "div",
    "imag",
    "mesh_cast",
    "mul",
    "neg",
    "optimization_barrier",
    "pbroadcast",
    "pcast",
    "pmax",
    "pmin",
    "ppermute",
    "psum",
    "psum_invariant",
    "pvary",
    "real",
    "reshard",
    "select_n",
    "sub",
}
# What rounds, clips and masks is taken as if it were linear: so are weights quantised.
LINEAR |= {
    "abs",
    "and",
    "ceil",
    "clamp",
    "complex",
    "eq",
    "floor",
    "ge",
    "gt",
    "is_finite",
    "le",
    "lt",
    "max",
    "min",
    "ne",
    "not",
    "or",
    "population_count",
    "rem",
    "round",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
    "sign",
    "xor",
}
# These bend.
BENT = frozenset(
    {
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "cos",
        "cosh",
        "cumlogsumexp",
        "cummax",
        "cummin",
        "cumprod",
        "cumsum",
        "digamma",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "integer_pow",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "nextafter",
        "pow",
        "rsqrt",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "tan",
        "tanh",
    }
)


def scan_counts(eqn: core.JaxprEqn) -> tuple[int, int]:
    """Count the constants and the carries of a ``scan``; the rest are its slices.

    By ranks, since how its parameters tell it differs between versions of JAX: slices
    have an axis less within the loop.
    """
    body = eqn.params["jaxpr"]
    whole = sum(map(_is_whole, body.in_avals, eqn.invars))
    carries = sum(map(_is_whole, body.out_avals, eqn.outvars))
    return whole - carries, carries


def _is_whole(inner: Any, outer: Any) -> bool:
    """Whether a variable of a loop has the rank that it has outside of it."""
    return len(inner.shape) == len(outer.aval.shape)


# Of these, what makes something else of a zero.
LIFTING = frozenset(
    {
        "acos",
        "cos",
        "cosh",
        "digamma",
        "erfc",
        "exp",
        "exp2",
        "lgamma",
        "log",
        "logistic",
        "rsqrt",
    }
)
