"""Sparsity over the stages of a run, as exact tables of fractions."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How sparsity climbs from an initial to a final value.

    Attributes:
        name: for reports.
        initial: the sparsity of the first stage, unless the final one is lower; of the
            network before it where the schedule takes none.
        level: the sparsity at a stage, given the initial and the final sparsity, the
            stage's number from 0, and the number of stages, which is 2 or more.
    """

    name: str
    initial: float
    level: Callable[[Fraction, Fraction, int, int], Fraction]

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
        return f"{self.name}(initial={self.initial:g})"


def cubic(*, initial: float = 0.0) -> Schedule:
    """Fast at first, then slowing down: 1 minus the cube of what is left.

    ``s_t = s_T + (s_0 - s_T) (1 - t/(T-1))^3`` for t = 0..T-1 (Zhu and Gupta,
    arXiv:1710.01878, equation 1). With ``initial=0`` the first stage prunes nothing.
    """

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        return end + (start - end) * (1 - Fraction(t, stages - 1)) ** 3

    return _schedule("cubic", initial, level)


def exponential(*, initial: float = 0.1) -> Schedule:
    """Halve the distance to the final sparsity at every stage.

    ``s_t = s_0 + (s_T - s_0) (1 - 2^-t) 2^(T-1) / (2^(T-1) - 1)`` for t = 0..T-1.
    """

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        last = 2 ** (stages - 1)
        return start + (end - start) * Fraction(last, last - 1) * (
            1 - Fraction(1, 2**t)
        )

    return _schedule("exponential", initial, level)


def linear(*, initial: float = 0.0) -> Schedule:
    """Climb by the same amount at every stage."""

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        return start + (end - start) * Fraction(t, stages - 1)

    return _schedule("linear", initial, level)


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

    return _schedule("geometric", 0.0, level)


def one_shot() -> Schedule:
    """Prune to the final sparsity at the first stage, and again at each after it."""

    def level(start: Fraction, end: Fraction, t: int, stages: int) -> Fraction:
        del start, t, stages
        return end

    return _schedule("one_shot", 0.0, level)


def _schedule(name: str, initial: float, level: Callable) -> Schedule:
    if not 0 <= initial < 1:
        raise ValueError(f"initial must be in [0, 1), got {initial}")
    return Schedule(name, initial, level)
