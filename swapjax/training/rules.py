"""Rules of sparse training: which masks follow from weights and gradients, and when.

A rule is data and one pure function, `choose`; `swapjax.sparse` does the rest. To make
one of your own, fill in a `Rule`.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_fraction
from swapjax.core.types import Leaves, Masks
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.patterns import Block
from swapjax.sparsity.schedules import Schedule
from swapjax.sparsity.scores import magnitude
from swapjax.training.drop_and_grow import exchange, random_score

Grow = Literal["gradient", "random"]


class MaskStep(NamedTuple):
    """What a rule sees when masks are to change. All leaves are prunable ones.

    Attributes:
        weights: params, zero outside of the masks; for `ste` the dense weights behind
            them, after their update.
        gradients: at params, dense.
        masks: as they are.
        within: where entries may ever be active; None for anywhere.
        budget: how many to keep now.
        fraction: of the active entries of each leaf to exchange, ``float32[]``.
        key: a PRNG key of this mask step.
    """

    weights: Leaves
    gradients: Leaves
    masks: Leaves
    within: Leaves | None
    budget: Budget
    fraction: jax.Array
    key: jax.Array


def follow(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """The sparsities that a schedule has."""
    return schedule.table(final, schedule.mask_steps)


def stay(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """The final sparsity from the start; a schedule then says when, not how far."""
    del schedule
    return (final,)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How masks change while a network trains.

    Attributes:
        name: as on the command line.
        choose: new masks, bool leaves, of a `MaskStep`; None where they never change.
        settings: pairs of hyper-parameter and value.
        begin: ``"magnitude"`` keeps what `levels` says of the initial weights if the
            schedule starts at 0, and all otherwise; ``"random"`` keeps as many at
            random, by the Erdos-Renyi kernel where the plan lets leaves compete.
        allocation: of a sparsity that comes without a plan.
        levels: the sparsities of the mask steps; the last is kept after them.
        fraction: of the active entries to exchange, by the number of updates and the
            last update with a mask step.
        goes_on: whether mask steps go on after the schedule, to the end of training.
        grows: by which score entries grow, if they do.
        skips: whether a mask step takes the place of an update.
        straight_through: whether gradients go to dense weights beside the params.
        decay: of those that are not active, if so.
        masks: to begin with, instead of what `begin` says.
    """

    name: str
    choose: Callable[[MaskStep], Leaves] | None
    settings: tuple[tuple[str, Any], ...] = ()
    begin: Literal["magnitude", "random"] = "magnitude"
    allocation: Allocation = "global"
    levels: Callable[[Schedule, Fraction], tuple[Fraction, ...]] = follow
    fraction: Callable[[int, int], float] = lambda t, last: 0.0
    goes_on: bool = False
    grows: Grow | None = None
    skips: bool = False
    straight_through: bool = False
    decay: float = 0.0
    masks: Masks | None = None

    def masks_at(self, step: MaskStep, block: Block | None = None) -> Leaves:
        """New masks at a mask step.

        Args:
            step: what is there.
            block: what lives or dies as one, by its mean magnitudes; the budget then
                counts blocks.
        """
        assert self.choose is not None
        if block is None:
            return self.choose(step)
        inside = step.within
        chosen = self.choose(
            step._replace(
                weights=tuple(map(block.strength, step.weights)),
                gradients=tuple(map(block.strength, step.gradients)),
                masks=tuple(map(block.whole, step.masks)),
                within=None if inside is None else tuple(map(block.whole, inside)),
            )
        )
        return tuple(map(block.expand, chosen))

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings)
        return f"{self.name}({inner})"


def static(masks: Masks | None = None) -> Rule:
    """Masks that never change.

    Args:
        masks: such as `swapjax.prune` gives with ``method=swapjax.snip()`` before
            training; by default as many as the plan keeps, at random.
    """
    return Rule("static", None, begin="random", allocation="erk", levels=stay,
                masks=masks)  # fmt: skip


def gmp() -> Rule:
    """Gradual magnitude pruning: at each mask step the smallest weights go for good.

    Zhu and Gupta, arXiv:1710.01878, with their `swapjax.cubic` schedule.
    """
    return Rule("gmp", _prune)


def set_(*, fraction: float = 0.3, anneal: bool = True) -> Rule:
    """Sparse from the start: the smallest weights go, as many others come at random.

    Sparse evolutionary training (Mocanu et al., 2018, arXiv:1707.04780); here the
    smallest magnitudes go, whatever their sign, as in the comparisons with RigL. A
    schedule says when, not how far: sparsity stays.

    Args:
        fraction: of the active weights of a leaf, rounded up, in [0, 1).
        anneal: whether it falls to zero along a cosine until the schedule's end, as in
            the same comparisons; the original keeps it. LeNet-300-100 on MNIST at 0.98
            ends at 95.9 with and at 95.7 without (benchmarks/sparse_training.py).

    Raises:
        ValueError: for a fraction out of range.
    """
    shrink = _cosine(fraction, 0.0) if anneal else _constant(fraction)
    return Rule("set", _exchange_by("random"), (("fraction", fraction),
                ("anneal", anneal)), begin="random", allocation="erk", levels=stay,
                fraction=shrink, grows="random")  # fmt: skip


def rigl(
    *, fraction: float = 0.3, last: float = 0.0, skip_update: bool = False
) -> Rule:
    """Sparse from the start: the smallest weights go, the steepest others come.

    RigL (Evci et al., ICML 2020, arXiv:1911.11134, algorithm 1). A schedule says when,
    not how far: sparsity stays. The fraction falls along ``last + (fraction - last)
    (1 + cos(pi t / T)) / 2``, T the schedule's end. The authors round the number of
    entries down, so that small leaves may never change; here it is rounded up.

    Args:
        fraction: of the active weights of a leaf, at the start, in [0, 1).
        last: the same at the end.
        skip_update: whether a mask step takes the place of an update, as in the
            authors' code; otherwise the update follows, so that there are as many as
            with other rules.

    Raises:
        ValueError: for a fraction out of range.
    """
    return Rule("rigl", _exchange_by("gradient"), (("fraction", fraction),
                ("last", last), ("skip_update", skip_update)), begin="random",
                allocation="erk", levels=stay, fraction=_cosine(fraction, last),
                grows="gradient", skips=skip_update)  # fmt: skip


def granet(
    *, fraction: float = 0.5, last: float = 0.005, grow: Grow = "gradient"
) -> Rule:
    """Gradual magnitude pruning that lets pruned weights regenerate.

    GraNet (Liu et al., NeurIPS 2021, arXiv:2106.10404). At each mask step the smallest
    weights go as in `gmp`, and then a fraction of each leaf is exchanged as in `rigl`.
    The fraction falls along a cosine over the whole of training, ``steps`` of
    `swapjax.sparse`, and exchanges go on till then. Start with a dense network, or as
    `granet_st` does. A plan of ``allocation="uniform"`` or ``"erk"`` prunes leaf by
    leaf. Weights and gradients are those of the same params, those before the update;
    the authors' code takes weights after it, and gradients before. An entry that the
    pruning takes and the exchange brings back at once keeps its value here; there it
    starts again at zero.

    Args:
        fraction: of the active weights of a leaf, rounded up, in [0, 1). With 0 this
            is `gmp`.
        last: the same at the end of training.
        grow: the ``"gradient"`` or ``"random"`` entries.

    Raises:
        ValueError: for a fraction out of range.
    """
    return _granet("granet", "magnitude", fraction, last, grow)


def granet_st(
    *, fraction: float = 0.5, last: float = 0.005, grow: Grow = "gradient"
) -> Rule:
    """The same as `granet` from a sparse network, its masks drawn at random.

    How sparse it is at first is up to the schedule: the authors take
    ``swapjax.cubic(..., initial=0.5)``.
    """
    return _granet("granet_st", "random", fraction, last, grow)


def ste(*, decay: float = 0.0) -> Rule:
    """Train dense weights with the gradients of their sparse copy.

    The straight-through estimator: the optimizer moves dense weights, kept in its
    state, and params are those among them with the largest magnitudes. Take a schedule
    of every step.

    Args:
        decay: added to the gradient for those that are not active, times their values;
            2e-4 is what SR-STE takes (Zhou et al., ICLR 2021, arXiv:2102.04010).

    Raises:
        ValueError: for a negative decay.
    """
    if not decay >= 0:
        raise ValueError(f"decay must be 0 or more, got {decay}")
    return Rule("ste", _keep_largest, (("decay", decay),), straight_through=True,
                decay=decay)  # fmt: skip


def acdc() -> Rule:
    """Train sparse and dense by turns, and sparse at the end.

    AC/DC (Peste et al., NeurIPS 2021, arXiv:2106.12379). Mask steps alternate: masks
    of the largest weights, and no masks, so that the last is sparse. Take
    ``swapjax.constant(start, end, every)`` with phases of some epochs.
    """

    def levels(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
        n = schedule.mask_steps
        return tuple(final if (n - i) % 2 else Fraction(0) for i in range(n))

    return Rule("acdc", _keep_largest, levels=levels)


def _prune(step: MaskStep) -> Leaves:
    return select(magnitude(step.weights), step.budget, step.masks)


def _keep_largest(step: MaskStep) -> Leaves:
    # What comes of masks lies as they do on a mesh with explicit axes.
    within = step.within or tuple(m | True for m in step.masks)
    return select(magnitude(step.weights), step.budget, within)


def _exchange_by(grow: Grow) -> Callable[[MaskStep], Leaves]:
    def choose(step: MaskStep) -> Leaves:
        new = []
        for i, (weight, mask) in enumerate(zip(step.weights, step.masks, strict=True)):
            if grow == "gradient":
                score = jnp.abs(step.gradients[i])
            else:
                score = random_score(jax.random.fold_in(step.key, i), weight)
            active = jnp.sum(mask, dtype=jnp.int32)
            # In float32 0.3 of 50 is above 15: a little less before it is rounded up.
            share = step.fraction * (1 - 2.0**-21) * active.astype(jnp.float32)
            drop = jnp.ceil(share)
            within = None if step.within is None else step.within[i]
            new.append(
                exchange(
                    weight,
                    score,
                    mask,
                    drop.astype(jnp.int32),
                    within,
                    pattern=step.budget.pattern(i),
                )
            )
        return tuple(new)

    return choose


def _granet(
    name: str,
    begin: Literal["magnitude", "random"],
    fraction: float,
    last: float,
    grow: Grow,
) -> Rule:
    if grow not in ("gradient", "random"):
        raise ValueError(f"grow must be 'gradient' or 'random', got {grow!r}")
    regenerate = _exchange_by(grow)

    def choose(step: MaskStep) -> Leaves:
        return regenerate(step._replace(masks=_prune(step)))

    settings = (("fraction", fraction), ("last", last), ("grow", grow))
    shrink = _cosine(fraction, last)
    if fraction == 0:
        return Rule(name, _prune, settings, begin=begin)
    return Rule(name, choose, settings, begin=begin, fraction=shrink,
                goes_on=True, grows=grow)  # fmt: skip


def _constant(fraction: float) -> Callable[[int, int], float]:
    require_fraction("fraction", fraction)
    return lambda t, end: fraction


def _cosine(first: float, last: float) -> Callable[[int, int], float]:
    require_fraction("fraction", first)
    require_fraction("last", last)
    return lambda t, end: (
        last + (first - last) * (1 + math.cos(math.pi * t / max(end, 1))) / 2
    )
