"""Sparsity over the stages of a run, or over training, as exact tables of fractions.

A schedule without steps says how far each stage of `swapjax.prune` goes. With steps it
also says when: `swapjax.sparse` changes its masks with update number ``start``, 0 being
the initialisation, and with every ``every``-th from there, until ``end``.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction

from swapjax.core.checks import require_count


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The climb of sparsity from an initial to a final value.

    Attributes:
        name: for reports.
        initial: the sparsity of the first stage, unless the final one is lower; of the
            network before it where the schedule takes none.
        level: the sparsity at a stage, given the initial and the final sparsity, the
            stage's number from 0, and the number of stages, which is 2 or more.
        start: the update with the first mask step, from 1, or 0 for the initialisation
            of the optimizer; None for stages.
        end: the update after which no mask step comes.
        every: the updates from one mask step to the next.
    """

    name: str
    initial: float
    level: Callable[[Fraction, Fraction, int, int], Fraction]
    start: int | None = None
    end: int = 0
    every: int = 1

    @property
    def mask_steps(self) -> int:
        """The number of mask steps, the last at `end` or less than `every` before."""
        return 0 if self.start is None else (self.end - self.start) // self.every + 1

    def table(self, final: float | Fraction, stages: int) -> tuple[Fraction, ...]:
        """List the sparsity of every stage; the last is exactly the final one.

        Args:
            final: the sparsity to reach, in [0, 1).
            stages: how many, 1 or more. One stage goes straight to the final value.

        Raises:
            ValueError: for fewer than one stage.
        """
        if stages < 1:
            raise ValueError(f"stages must be 1 or more, got {stages}")
        end = final if isinstance(final, Fraction) else Fraction(repr(float(final)))
        if stages == 1:
            return (end,)
        start = min(Fraction(repr(float(self.initial))), end)
        steps = tuple(self.level(start, end, t, stages) for t in range(stages - 1))
        return (*steps, end)

    def __str__(self) -> str:
        steps = ""
        if self.start is not None:
            steps = f"{self.start}, {self.end}, every={self.every}, "
        return f"{self.name}({steps}initial={self.initial:g})"


def cubic(
    start: int | None = None,
    end: int | None = None,
    *,
    every: int = 1,
    initial: float = 0.0,
) -> Schedule:
    """Climb fast at first, then ever slower: by 1 minus the cube of what is left.

    ``s_t = s_T + (s_0 - s_T) (1 - t/(T-1))^3`` for t = 0..T-1 (Zhu and Gupta,
    arXiv:1710.01878, equation 1). With ``initial=0`` the first stage prunes nothing.

    Args:
        start: the update with the first mask step, for training, counted from 1; 0 is
            when the optimizer is initialised. Neither start nor end for stages.
        end: the update with the last mask step, which reaches the final sparsity.
        every: the updates from one of them to the next.
        initial: the sparsity at the first, in [0, 1).

    Raises:
        ValueError: for an initial sparsity out of range, other than whole numbers of
            steps, an end before the start, and one of the two without the other.
    """

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        return end + (start - end) * (1 - Fraction(t, stages - 1)) ** 3

    return _schedule("cubic", initial, level, start, end, every)


def exponential(
    start: int | None = None,
    end: int | None = None,
    *,
    every: int = 1,
    initial: float = 0.1,
) -> Schedule:
    """Halve the distance to the final sparsity at every stage; see `cubic`.

    ``s_t = s_0 + (s_T - s_0) (1 - 2^-t) 2^(T-1) / (2^(T-1) - 1)`` for t = 0..T-1.
    """

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        last = 2 ** (stages - 1)
        return start + (end - start) * Fraction(last, last - 1) * (
            1 - Fraction(1, 2**t)
        )

    return _schedule("exponential", initial, level, start, end, every)


def linear(
    start: int | None = None,
    end: int | None = None,
    *,
    every: int = 1,
    initial: float = 0.0,
) -> Schedule:
    """Climb by the same amount at every stage; see `cubic`."""

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        return start + (end - start) * Fraction(t, stages - 1)

    return _schedule("linear", initial, level, start, end, every)


def geometric() -> Schedule:
    """Keep the same share of what is left at every stage, the first among them.

    The density is ``d^((t+1)/T)`` for t = 0..T-1 and a final density d, rounded to 15
    digits before the last stage: the way of SynFlow (Tanaka et al., NeurIPS 2020).
    """

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        del start
        density = float(1 - end) ** ((t + 1) / stages)
        # As decimals, so that roots that are exact come out exact.
        return min(1 - Fraction(f"{density:.15g}"), end)

    return _schedule("geometric", 0.0, level, None, None)


def one_shot(step: int | None = None) -> Schedule:
    """Prune to the final sparsity at the first stage, and again at each after it.

    Args:
        step: for training, the update with the one mask step.
    """
    return _schedule("one_shot", 0.0, _at_once, step, step)


def constant(start: int, end: int, *, every: int) -> Schedule:
    """Stay at the final sparsity; entries are exchanged at mask steps; see `cubic`."""
    return _schedule("constant", 0.0, _at_once, start, end, every)


def _at_once(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
    del start, t, stages
    return end


def _schedule(
    name: str,
    initial: float,
    level: Callable,
    start: int | None,
    end: int | None,
    every: int = 1,
) -> Schedule:
    if not 0 <= initial < 1:
        raise ValueError(f"initial must be in [0, 1), got {initial}")
    require_count("every", every)
    if start is None and end is None and every == 1:
        return Schedule(name, initial, level)
    if start is None or end is None:
        raise ValueError(
            f"start, end: give both, to count updates, or neither and no every, to "
            f"count stages; got {start} and {end} with every={every}"
        )
    require_count("start", start, least=0)
    require_count("end", end, least=0)
    if end < start:
        raise ValueError(f"end must be {start}, the start, or more, got {end}")
    return Schedule(name, initial, level, start, end, every)
