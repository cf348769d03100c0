"""When masks change and how many entries to keep: integers, made once on the host."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.counts import LIMIT
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity.allocation import spread
from swapjax.sparsity.bounds import allowed, keep_inside, room
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.leaf_rules import exact_sparsity
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned
from swapjax.sparsity.schedules import Schedule
from swapjax.training.rule import Rule


@dataclasses.dataclass(frozen=True)
class Timetable:
    """The mask steps of one network.

    A mask step at t comes with update number t, counted from 1, before weights move;
    the dense weights of a straight-through rule move first. A mask step at 0 makes the
    first masks.

    Attributes:
        plan: what is prunable, at the final sparsity.
        begin: the plan of the first masks; None to begin with all that is allowed.
        keep_first: the entries of each of its groups; no more than may ever
            be active.
        keep: ``int32[levels, groups]``, the entries to keep at each mask
            step, no more than may ever be active; the last row holds for all mask steps
            that follow.
        patterns: ``int32[levels, leaves]``, the n of the pattern n:m of each leaf, 0
            without one.
        first: the update of the first mask step.
        every: updates from one mask step to the next.
        last: the update after which there are none; -1 where there are none at all.
        fractions: ``float32[mask steps]``, the fraction of the active entries to
            exchange.
        steps: updates in all, None if that is not known.
    """

    plan: Plan
    begin: Plan | None
    keep_first: tuple[int, ...]
    keep: np.ndarray
    patterns: np.ndarray
    first: int
    every: int
    last: int
    fractions: np.ndarray
    steps: int | None = None

    def is_mask_step(self, t: Any) -> Any:
        """Return whether update number t, from 1, is a mask step."""
        due = (t - self.first) % self.every == 0
        return due & (t >= self.first) & (t <= self.last)

    def at(self, t: jax.Array) -> tuple[Budget, jax.Array]:
        """Return the counts of the mask step at t, and the fraction to exchange.

        A mask step that is late goes as far as the last one that was due.
        """
        i = jnp.minimum((t - self.first) // self.every, len(self.fractions) - 1)
        level = jnp.minimum(i, len(self.keep) - 1)
        keep = jnp.asarray(self.keep)[level]
        # A gradual pattern goes from m:m to n:m.
        n: Any = jnp.asarray(self.patterns)[level]
        patterns = tuple(
            p and dataclasses.replace(p, n=n[leaf])
            for leaf, p in enumerate(self.plan.patterns)
        )
        budget = self.plan.budget_of(keep, patterns)
        fraction = jnp.asarray(self.fractions)[i]
        if self.steps is not None:
            # What grew at the last update would have no other to train it.
            fraction = jnp.where(t < self.steps, fraction, 0)
        return budget, fraction

    def first_budget(self) -> Budget:
        """Return the counts of the first masks."""
        assert self.begin is not None
        return self.begin.budget_of(jnp.asarray(self.keep_first, jnp.int32))


def make(
    rule: Rule,
    params: Params,
    sparsity: float | None,
    plan: Plan | None,
    schedule: Schedule | None,
    steps: int | None,
    within: Masks | None,
) -> Timetable:
    """Make the timetable of a network; the arguments are those of `sparse`.

    Args:
        rule: what happens at mask steps.
        params: the network, or its shapes and dtypes.
        sparsity: to reach, or None.
        plan: instead, or None.
        schedule: when, and how far; None for a rule without mask steps.
        steps: updates in all, if known.
        within: masks that may ever be active.

    Raises:
        ValueError: for a plan of other params, as `swapjax.plan` does, as
            `swapjax.sparsity.bounds.allowed` does, and for a rule whose ``levels`` or
            ``fraction`` return something else than `Rule` says.
    """
    target = planned(params, sparsity, plan, rule.allocation)
    target.layout.split(params)  # raises for another tree
    if schedule is None:
        schedule = Schedule("none", 0.0, lambda start, end, t, stages: end, 0, 0)
    assert schedule.start is not None
    levels = _levels(rule, schedule, target.sparsity)
    plans = [target.at(level) for level in levels]
    if any(count > LIMIT for p in plans for count in p.keep):
        # Rules that rank a larger group raise the same where they select.
        target.require_countable()
    begin = _begin(rule, target, levels[0], schedule.start)
    # A restored state may bring the first call of all under jit.
    with jax.ensure_compile_time_eval():
        inside = None if within is None else allowed(within, params, target)
        keep = [keep_inside(p, inside) for p in plans]
        first = _keep_first(begin, inside) if begin else ()
    last = -1
    if rule.choose is not None:
        last = steps if rule.goes_on and steps is not None else schedule.end
    times = range(schedule.start, last + 1, schedule.every)
    return Timetable(
        plan=target,
        begin=begin,
        keep_first=first,
        keep=np.asarray(keep, np.int32),
        patterns=np.asarray(
            [[p.n if p else 0 for p in at.patterns] for at in plans], np.int32
        ),
        first=schedule.start,
        every=schedule.every,
        last=last,
        fractions=_fractions(rule, times, last),
        steps=steps,
    )


def _levels(rule: Rule, schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """Ask the rule for the sparsities of the mask steps."""
    found: Any = rule.levels(schedule, final)
    listed = isinstance(found, Sequence | np.ndarray) and not isinstance(found, str)
    if not listed or len(found) == 0:
        raise ValueError(
            f"rule {rule.name}: levels must return sparsities, one at least, got "
            f"{found!r}"
        )
    return tuple(
        exact_sparsity(level, f"rule {rule.name}: levels[{i}]")
        for i, level in enumerate(found)
    )


def _fractions(rule: Rule, times: range, last: int) -> np.ndarray:
    """Ask the rule for the fractions to exchange at mask steps, ``float32[times]``."""
    found = [rule.fraction(t, last) for t in times]
    try:
        result = np.asarray(found, np.float32).reshape(len(found))
    except (TypeError, ValueError):
        raise ValueError(
            f"rule {rule.name}: fraction must return numbers in [0, 1], got "
            f"{found[0]!r}"
        ) from None
    (outside,) = np.nonzero(~((result >= 0) & (result <= 1)))
    if outside.size:
        i = outside[0]
        raise ValueError(
            f"rule {rule.name}: fraction must return numbers in [0, 1], got "
            f"{found[i]!r} for update {times[i]}"
        )
    return result


def _begin(rule: Rule, target: Plan, level: Fraction, start: int) -> Plan | None:
    """Make the plan of the first masks."""
    if rule.begin == "random":
        free = target.allocation == "global" and not any(target.patterns)
        layered = dataclasses.replace(target, allocation="erk") if free else target
        return layered.at(level)
    return target.at(level) if start == 0 and level > 0 else None


def _keep_first(begin: Plan, inside: Leaves | None) -> tuple[int, ...]:
    """Count what each group keeps at first.

    Where the leaves compete and random masks are spread over them all the same, others
    take what one has no room for: those whose units are as large.
    """
    kept = keep_inside(begin, inside)
    apart = len(kept) == begin.stacking.count
    if inside is None or not apart or any(begin.patterns):
        return kept
    free = [g for g, o in zip(begin.groups, begin.overrides, strict=True) if o is None]
    there, sizes, found = room(begin, inside), begin.group_units, list(kept)
    for size in dict.fromkeys(sizes[g] for g in free):
        own = [g for g in free if sizes[g] == size]
        left = [(there[g] - kept[g]) // size for g in own]
        short = min(sum(begin.keep[g] - kept[g] for g in own) // size, sum(left))
        even, none = [Fraction(1)] * len(own), [0] * len(own)
        for g, n in zip(own, spread(short, even, left, none), strict=True):
            found[g] += n * size
    return tuple(found)
