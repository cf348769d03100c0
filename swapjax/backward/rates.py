"""Rates of pruning: a number, a schedule, or one of these for sites by pattern."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.backward.thresholds import quantile
from swapjax.core.checks import require_fraction

Rate = float | Callable[[jax.Array], Any]


def take_rate(rate: Any) -> Rate | dict[str, Rate]:
    """Take the argument as it is meant.

    Args:
        rate: a number in [0, 1), a function of the step, or these by pattern.

    Raises:
        ValueError: for a rate outside [0, 1), also that of a schedule at its first
            step, and for no pattern.
    """
    if isinstance(rate, Mapping):
        if not rate:
            raise ValueError("rate: a mapping needs a pattern at least, got none")
        return {pattern: _take(x, f"rate[{pattern!r}]") for pattern, x in rate.items()}
    return _take(rate, "rate")


def _take(rate: Any, name: str) -> Rate:
    if callable(rate):
        first = rate(jnp.zeros((), jnp.int32))
        if jnp.ndim(first):
            raise ValueError(
                f"{name}: a schedule must return one number, got {jnp.shape(first)}"
            )
        require_fraction(f"{name} at step 0", float(first))
        return rate
    require_fraction(name, rate)
    return float(rate)


def by_site(rate: Rate | dict[str, Rate], names: tuple[str, ...]) -> dict[str, Rate]:
    """Tell the rate of each site; those that no pattern matches are left out.

    Raises:
        ValueError: for a pattern that matches no site, two that match the same, and
            what is no regular expression.
    """
    if not isinstance(rate, dict):
        return dict.fromkeys(names, rate)
    found: dict[str, Rate] = {}
    by: dict[str, str] = {}
    for pattern, value in rate.items():
        for name in matching(pattern, names, "rate"):
            if name in found:
                raise ValueError(
                    f"rate: {by[name]!r} and {pattern!r} both match the site {name}"
                )
            found[name], by[name] = value, pattern
    return {name: found[name] for name in names if name in found}


def matching(pattern: str, names: tuple[str, ...], argument: str) -> list[str]:
    """List the names that a regular expression is found in.

    Raises:
        ValueError: for what is none, and one that matches nothing.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{argument}: {pattern!r} is not a regular expression: {error}"
        ) from None
    found = [name for name in names if compiled.search(name)]
    if not found:
        raise ValueError(
            f"{argument}: {pattern!r} matches none of the sites {', '.join(names)}"
        )
    return found


def outside(rate: Rate | dict[str, Rate], step: jax.Array) -> jax.Array | None:
    """Compute the fraction of schedules that leave [0, 1) at a step, None for none."""
    several = rate.values() if isinstance(rate, dict) else (rate,)
    now = [jnp.asarray(x(step), jnp.float32) for x in several if callable(x)]
    return jnp.mean(~_inside(jnp.stack(now))) if now else None


def _inside(rate: jax.Array) -> jax.Array:
    return (rate >= 0) & (rate < 1)


def level(rate: Rate, step: jax.Array) -> jax.Array:
    """Compute the threshold of a step in deviations, ``float32[]``.

    A schedule that leaves [0, 1) prunes nothing there, as inside compiled functions
    nothing can be raised; `outside` tells.
    """
    if callable(rate):
        now = jnp.asarray(rate(step), jnp.float32)
        inside = _inside(now)
        return jnp.where(inside, quantile(jnp.where(inside, now, 0)), 0)
    return jnp.asarray(quantile(rate), jnp.float32)
