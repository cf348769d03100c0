"""What an evaluation by attacks found, and what in it tells of masked gradients."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from swapjax.robust.suite import Attack

UNTRIED, RESISTED, FELL = 0, 1, 2
_ZEROS = 0.01  # of the input gradient, that are more than chance
# Cross-entropy leaves some 2 points more than ratios of logits do in adversarial
# training, 4 to 7 with cosines that it is flat on.
_GAP = 0.03
_BLIND = 0.01  # that an attack without gradients may add to those with
_ERRORS = 2  # standard errors of a fraction, that it must be above by


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What one attack of an evaluation did.

    Attributes:
        attack: its name.
        tried: images that it was run on.
        fell: of these, misclassified afterwards.
        left: the fraction of all images that stand after it and all before it.
        alone: the fraction that stands after it alone; None where it was not run on all
            that were classified right.
    """

    attack: str
    tried: int
    fell: int
    left: float
    alone: float | None


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one answer
class Evaluation:
    """What `evaluate` found.

    Attributes:
        examples: images.
        epsilon: radius of the ball.
        norm: of the ball.
        clean: the fraction of images that is classified right.
        robust: the fraction that every attack left so, the minimum over attacks.
        attempts: what each attack did, in their order.
        zero_gradients: of the values of the gradient of the cross-entropy at the images
            that are classified right, the fraction that is exactly zero; with a scale,
            of outputs times that.
        missed: the fraction of images that all attacks by cross-entropy left, and one
            by differences of logits did not; None without both.
        warnings: what was warned of.
        correct: whether each image is classified right, ``bool[n]``.
        outcomes: of each attack and image, ``int8[attacks, n]``: 0 where it was not
            run, 1 where the image stood, 2 where it fell.
    """

    examples: int
    epsilon: float
    norm: str
    clean: float
    robust: float
    attempts: tuple[Attempt, ...]
    zero_gradients: float
    missed: float | None
    warnings: tuple[str, ...]
    correct: np.ndarray
    outcomes: np.ndarray

    @property
    def standing(self) -> np.ndarray:
        """Whether each image stands after all attacks, ``bool[n]``."""
        return self.correct & ~(self.outcomes == FELL).any(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON takes, without what there is of each image."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if not isinstance(v, np.ndarray)}


def summary(
    attacks: Sequence[Attack],
    correct: np.ndarray,
    outcomes: np.ndarray,
    *,
    epsilon: float,
    norm: str,
    zeros: float,
    notes: Sequence[str],
) -> Evaluation:
    """Count what attacks left.

    Args:
        attacks: in their order.
        correct: whether each image was classified right, ``bool[n]``.
        outcomes: as `Evaluation` has them.
        epsilon: radius of the ball.
        norm: of the ball.
        zeros: the fraction of the input gradient that is exactly zero.
        notes: what there is to warn of already.
    """
    attempts, standing = [], correct.copy()
    for attack, outcome in zip(attacks, outcomes, strict=True):
        fell, tried = outcome == FELL, outcome != UNTRIED
        standing &= ~fell
        alone = None
        if np.array_equal(tried, correct):
            alone = float(np.mean(correct & ~fell))
        attempts.append(
            Attempt(
                attack.name, int(tried.sum()), int(fell.sum()),
                float(np.mean(standing)), alone,
            )
        )  # fmt: skip
    missed = _missed(attacks, outcomes, ("ce",), "logits")
    blind = _missed(attacks, outcomes, ("ce", "logits"), "black box")
    warnings = [*notes, *_signs(zeros, missed, blind, len(correct))]
    return Evaluation(
        examples=len(correct), epsilon=epsilon, norm=norm,
        clean=float(np.mean(correct)), robust=float(np.mean(standing)),
        attempts=tuple(attempts), zero_gradients=zeros, missed=missed,
        warnings=tuple(warnings), correct=correct, outcomes=outcomes,
    )  # fmt: skip


def _missed(
    attacks: Sequence[Attack], outcomes: np.ndarray, by: tuple[str, ...], found: str
) -> float | None:
    """Measure the images that attacks of some kinds left and those of another did not.

    None where there are not both. Only images count that all of the former were run on.
    """
    former = np.asarray([attack.kind in by for attack in attacks])
    latter = np.asarray([attack.kind == found for attack in attacks])
    if not (former.any() and latter.any()):
        return None
    left = (outcomes[former] == RESISTED).all(axis=0)
    return float(np.mean(left & (outcomes[latter] == FELL).any(axis=0)))


def _signs(
    zeros: float, missed: float | None, blind: float | None, count: int
) -> list[str]:
    """List the signs of masked gradients."""

    def above(part: float, limit: float) -> bool:
        return part - _ERRORS * math.sqrt(part * (1 - part) / count) > limit

    said = []
    if zeros > _ZEROS:
        said.append(
            f"{zeros:.1%} of the input gradient of the cross-entropy is exactly zero: "
            "either no weight reads those values, as under sparse first layers, or "
            "gradients are masked, and attacks that follow them weaker than they seem"
        )
    if missed is not None and above(missed, _GAP):
        said.append(
            f"attacks by cross-entropy left {missed:.1%} of the images to attacks by "
            "differences of logits: cross-entropy is flat there, and accuracies under "
            "it alone are too high"
        )
    if blind is not None and above(blind, _BLIND):
        said.append(
            f"an attack without gradients took {blind:.1%} of the images from those "
            "with: gradients are masked"
        )
    return said
