"""How long functions take once they are compiled, and what memory they need."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from swapjax.core.checks import require_count

_SHORTEST = 1e-2  # seconds; what takes less is called several times in a row
_WARM = 2  # calls that are not measured


@dataclasses.dataclass(frozen=True)
class Time:
    """What was measured of a function.

    Attributes:
        seconds: the median of a call.
        quartiles: of its calls, seconds.
        compile_seconds: what compilation took. Where JAX has a cache of programs on the
            disk, what reading took.
        temporary: bytes of memory that a call needs beside what it takes and gives;
            None where the compiler does not tell.
        flops: floating-point operations of the program as its compiler counts them,
            those of a loop once; None where it does not.
    """

    seconds: float
    quartiles: tuple[float, float]
    compile_seconds: float
    temporary: int | None
    flops: float | None


def time_side_by_side(
    calls: Mapping[str, tuple[Callable, tuple]], repeats: int
) -> tuple[dict[str, Time], dict[str, list[float]]]:
    """Time several functions in turn, so that all see the same machine.

    Args:
        calls: by name, a function and its arguments, pytrees of arrays. Those that
            share a function and the shapes of arguments share a program.
        repeats: how often each is measured, after two calls that are not.

    Returns:
        What was measured of each; and the seconds of each in each round.

    Raises:
        ValueError: for repeats below 1.
    """
    require_count("repeats", repeats)
    compiled: dict[Any, tuple[Any, float]] = {}
    runs: dict[str, tuple[Any, float, tuple]] = {}
    for name, (function, arguments) in calls.items():
        arguments = jax.block_until_ready(jax.device_put(arguments))
        signature = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(arguments)]
        key = (id(function), jax.tree.structure(arguments), str(signature))
        if key not in compiled:
            lowered = jax.jit(function).lower(*arguments)
            start = time.perf_counter()
            program = lowered.compile()
            compiled[key] = program, time.perf_counter() - start
        runs[name] = (*compiled[key], arguments)
    inner = {
        name: _times(program, arguments)
        for name, (program, _, arguments) in runs.items()
    }
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        # To and fro, so that none is always behind another.
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            program, _, arguments = runs[name]
            rounds[name].append(_seconds(program, arguments, inner[name]))
    found = {
        name: _measured(program, seconds, rounds[name])
        for name, (program, seconds, _) in runs.items()
    }
    return found, rounds


def _times(program: Any, arguments: tuple) -> int:
    """Find how often to call something at a time, and warm it up."""
    for _ in range(_WARM):
        seconds = _seconds(program, arguments, 1)
    return max(1, int(np.ceil(_SHORTEST / max(seconds, 1e-9))))


def _seconds(program: Any, arguments: tuple, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(program(*arguments))
    return (time.perf_counter() - start) / times


def _measured(program: Any, compile_seconds: float, seconds: Sequence[float]) -> Time:
    low, high = np.quantile(seconds, [0.25, 0.75])
    memory, cost = program.memory_analysis(), program.cost_analysis()
    temporary = getattr(memory, "temp_size_in_bytes", None)
    flops = cost.get("flops") if isinstance(cost, Mapping) else None
    return Time(
        statistics.median(seconds),
        (float(low), float(high)),
        compile_seconds,
        None if temporary is None else int(temporary),
        None if flops is None else float(flops),
    )
