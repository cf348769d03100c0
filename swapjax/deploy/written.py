"""Whether sizes of arrays are written in a function, as numbers that it reckons with.

A mean over channels divides by their number, attention by the root of the size of a
head. Some inputs may not show that such a number is another with smaller arrays, as
zeros do not; the program does.
"""

from collections.abc import Callable, Sequence
from typing import Any

from swapjax.core import identity
from swapjax.core.types import Params
from swapjax.roles.ties.steps import Steps, every_step
from swapjax.roles.ties.trace import trace


def has_sizes(
    function: Callable[..., Any],
    program: Steps,
    smaller: Params,
    inputs: Sequence[Any],
) -> bool:
    """Tell whether a function does other things with smaller arrays.

    Args:
        function: ``(params, *inputs)``.
        program: of it, for the params before.
        smaller: params.
        inputs: examples.

    Returns:
        True where its operations or the constants in it are others, or where it cannot
        be traced with smaller params.
    """
    try:
        other, _ = trace(function, smaller, *inputs)
    except Exception:  # a module that knows its sizes says so in its own way
        return True
    before, after = (list(every_step(p)) for p in (program, other))
    if [step.name for step in before] != [step.name for step in after]:
        return True
    pairs = zip(_constants(program, before), _constants(other, after), strict=False)
    return any(
        a is not b and identity.digest(a) != identity.digest(b) for a, b in pairs
    )


def _constants(program: Steps, steps: Sequence[Any]) -> list[Any]:
    """List the constants of a program and of those within it, in order."""
    parts = [program, *(inner for step in steps for inner in step.inner)]
    return [array for part in parts for array in part.constants.values()]
