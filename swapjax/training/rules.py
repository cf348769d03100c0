"""The rules of sparse training, and the table that lists them.

A rule is data and one pure function; `swapjax.training.Rule` says how to write one. A
new one is a function here, a row in `RULES` and its name in ``__all__``.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

from swapjax.core.checks import require_fraction
from swapjax.core.types import Leaves, Masks
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.schedules import Schedule, constant, cubic
from swapjax.training.drop_and_grow import exchange_by, keep_largest, prune_smallest
from swapjax.training.rule import (
    Begin,
    Grow,
    MaskStep,
    Rule,
    by_entry,
    is_by_entry,
    stay,
)

__all__ = ["acdc", "gmp", "granet", "granet_st", "rigl", "set_", "static", "ste"]


def static(masks: Masks | None = None) -> Rule:
    """Keep the same masks from the start to the end of training.

    With random masks this is random pruning at initialisation, the baseline of sparse
    training (Liu et al., ICLR 2022, arXiv:2202.02643).

    Args:
        masks: such as `swapjax.prune` gives with ``method=swapjax.snip()`` before
            training; by default as many entries as the plan keeps, drawn at random.
    """
    return Rule("static", None, begin="random", allocation="erk", levels=stay,
                masks=masks)  # fmt: skip


def gmp() -> Rule:
    """Prune gradually by magnitude: at each mask step the smallest weights go for good.

    Zhu and Gupta, 2017, arXiv:1710.01878, with their `swapjax.cubic` schedule.
    """
    return Rule("gmp", prune_smallest)


def set_(*, fraction: float = 0.3, anneal: bool = True) -> Rule:
    """Drop the smallest weights at each mask step and grow as many at random.

    Sparse evolutionary training, SET (Mocanu et al., 2018, arXiv:1707.04780), which
    starts from random masks and keeps its sparsity: a schedule says when masks change,
    not how far. The smallest magnitudes go, whatever their sign, as in the code of
    RigL's authors.

    Args:
        fraction: of the active weights of a leaf to exchange, rounded up, in [0, 1).
        anneal: whether the fraction falls to zero along a cosine until the schedule's
            end, as that of `rigl` does; otherwise it stays.

    Raises:
        ValueError: for a fraction out of range.
    """
    shrink = _cosine(fraction, 0.0) if anneal else _constant(fraction)
    return Rule("set", exchange_by("random"), (("fraction", fraction),
                ("anneal", anneal)), begin="random", allocation="erk", levels=stay,
                fraction=shrink, grows="random")  # fmt: skip


def rigl(
    *, fraction: float = 0.3, last: float = 0.0, skip_update: bool = False
) -> Rule:
    """Drop the smallest weights at each mask step and grow where gradients are largest.

    RigL (Evci et al., ICML 2020, arXiv:1911.11134, algorithm 1), which starts from
    random masks and keeps its sparsity: a schedule says when masks change, not how far.
    The fraction falls along ``last + (fraction - last) (1 + cos(pi t / T)) / 2``, T the
    schedule's end. The authors round the number of entries down, so that small leaves
    may never change; here it is rounded up.

    Args:
        fraction: of the active weights of a leaf to exchange, at the start, in [0, 1).
        last: the same fraction at the end.
        skip_update: whether a mask step takes the place of an update, as in the
            authors' code; otherwise the update follows, so that there are as many as
            with other rules.

    Raises:
        ValueError: for a fraction out of range.
    """
    return Rule("rigl", exchange_by("gradient"), (("fraction", fraction),
                ("last", last), ("skip_update", skip_update)), begin="random",
                allocation="erk", levels=stay, fraction=_cosine(fraction, last),
                grows="gradient", skips=skip_update)  # fmt: skip


def granet(
    *, fraction: float = 0.5, last: float = 0.005, grow: Grow = "gradient"
) -> Rule:
    """Prune gradually by magnitude, and let pruned weights regenerate.

    GraNet (Liu et al., NeurIPS 2021, arXiv:2106.10404). At each mask step the smallest
    weights go as in `gmp`, and then a fraction of each leaf is exchanged as in `rigl`.
    The fraction falls along a cosine over the whole of training, ``steps`` of
    `swapjax.sparse`, and exchanges go on until then. The network starts dense; see
    `granet_st` for a sparse start. A plan of ``allocation="uniform"`` or ``"erk"``
    prunes leaf by leaf.

    Two details differ from the authors' code. Weights are those before the update, as
    gradients are; there weights are taken after it. An entry that pruning removes and
    the exchange brings back in the same mask step keeps its value; there it starts
    again at zero.

    Args:
        fraction: of the active weights of a leaf to exchange, at the start, rounded up,
            in [0, 1). With 0 this is `gmp`.
        last: the same fraction at the end of training.
        grow: entries where the ``"gradient"`` is largest, or ``"random"`` ones.

    Raises:
        ValueError: for a fraction out of range.
    """
    return _granet("granet", "magnitude", fraction, last, grow)


def granet_st(
    *, fraction: float = 0.5, last: float = 0.005, grow: Grow = "gradient"
) -> Rule:
    """Do as `granet` does, from a sparse network whose masks are drawn at random.

    GraNet-ST (Liu et al., NeurIPS 2021, arXiv:2106.10404). The schedule says how sparse
    the network is at first: the authors take ``swapjax.cubic(..., initial=0.5)``.
    """
    return _granet("granet-st", "random", fraction, last, grow)


def ste(*, decay: float = 0.0) -> Rule:
    """Train dense weights with the gradients of their sparse copy.

    The straight-through estimator (Bengio et al., 2013, arXiv:1308.3432) as SR-STE
    prunes by it (Zhou et al., ICLR 2021, arXiv:2102.04010): the optimizer moves dense
    weights, kept in its state, and params are those among them with the largest
    magnitudes. Take a schedule of every step.

    Args:
        decay: times the value of each weight that is not active, added to its gradient;
            SR-STE takes 2e-4.

    Raises:
        ValueError: for a negative decay.
    """
    return Rule("ste", keep_largest, (("decay", decay),), straight_through=True,
                decay=decay)  # fmt: skip


def acdc() -> Rule:
    """Train in sparse and dense phases by turns; the last phase is sparse.

    AC/DC (Peste et al., NeurIPS 2021, arXiv:2106.12379). Mask steps alternate between
    masks of the largest weights and no masks. Take ``swapjax.constant(start, end,
    every=...)`` with phases of some epochs.
    """

    def levels(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
        n = schedule.mask_steps
        return tuple(final if (n - i) % 2 else Fraction(0) for i in range(n))

    return Rule("acdc", keep_largest, levels=levels)


def _granet(
    name: str,
    begin: Begin,
    fraction: float,
    last: float,
    grow: Grow,
) -> Rule:
    if grow not in ("gradient", "random"):
        raise ValueError(f"grow must be 'gradient' or 'random', got {grow!r}")
    regenerate = exchange_by(grow)

    def choose(step: MaskStep) -> Leaves:
        return regenerate(step._replace(masks=prune_smallest(step)))

    settings = (("fraction", fraction), ("last", last), ("grow", grow))
    shrink = _cosine(fraction, last)
    if fraction == 0:
        return Rule(name, prune_smallest, settings, begin=begin)
    chosen = by_entry(choose) if is_by_entry(regenerate) else choose
    return Rule(name, chosen, settings, begin=begin, fraction=shrink,
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


@dataclasses.dataclass(frozen=True)
class RuleEntry:
    """A row of the table of rules.

    Attributes:
        name: on the command line, and that of the rule it makes.
        factory: of the rule; without arguments it makes it as it is normally run.
        summary: what happens, in a line.
        source: the paper with its arXiv id; empty where there is none.
        colour: in plots.
        schedule: ``(end, every) -> Schedule``, as the rule is normally run: the update
            of the last mask step, and the updates from one to the next. None where
            masks never change.
        changes: mask steps that such a run has; no more than it has updates.
    """

    name: str
    factory: Callable[..., Rule]
    summary: str
    source: str
    colour: str
    schedule: Callable[[int, int], Schedule] | None = None
    changes: int = 50

    @property
    def allocation(self) -> Allocation:
        """How a sparsity is spread over leaves, unless a plan says otherwise."""
        return self.factory().allocation

    @property
    def needs_key(self) -> bool:
        """Whether anything is drawn at random, so that `swapjax.sparse` needs a key."""
        return self.factory().needs_key


def _climb(end: int, every: int) -> Schedule:
    return cubic(0, end, every=every)


def _climb_from_half(end: int, every: int) -> Schedule:
    return cubic(0, end, every=every, initial=0.5)


def _steady(end: int, every: int) -> Schedule:
    return constant(0, end, every=every)


def _phases(end: int, every: int) -> Schedule:
    # Dense at first, for a phase at least.
    return constant(min(every, end), end, every=every)


RULES: dict[str, RuleEntry] = {
    entry.name: entry
    for entry in (
        RuleEntry(
            "gmp", gmp, "dense at first; little by little the smallest weights go",
            "Zhu and Gupta, 2017, arXiv:1710.01878", "#7f7f7f", _climb,
        ),
        RuleEntry(
            "granet", granet, "as gmp, and as many return where the gradient is large",
            "Liu et al., NeurIPS 2021, arXiv:2106.10404", "#d62728", _climb,
        ),
        RuleEntry(
            "granet-st", granet_st, "as granet, from a random half of the weights",
            "Liu et al., NeurIPS 2021, arXiv:2106.10404", "#ff7f0e", _climb_from_half,
        ),
        RuleEntry(
            "set", set_, "sparse from the start; weights move to random places",
            "Mocanu et al., 2018, arXiv:1707.04780", "#2ca02c", _steady,
        ),
        RuleEntry(
            "rigl", rigl,
            "sparse from the start; weights move to where the gradient is large",
            "Evci et al., ICML 2020, arXiv:1911.11134", "#1f77b4", _steady,
        ),
        RuleEntry(
            "static", static, "sparse from the start; random masks that never change",
            "Liu et al., ICLR 2022, arXiv:2202.02643", "#8c564b",
        ),
        RuleEntry(
            "ste", ste, "dense weights, trained by the gradients of their sparse copy",
            "Zhou et al., ICLR 2021, arXiv:2102.04010", "#9467bd", _steady, 1_000_000,
        ),
        RuleEntry(
            "acdc", acdc, "dense and sparse by turns, and sparse in the end",
            "Peste et al., NeurIPS 2021, arXiv:2106.12379", "#17becf", _phases, 10,
        ),
    )
}  # fmt: skip
