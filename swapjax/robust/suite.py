"""The attacks that `evaluate` knows by name, each a list of runs in turn."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from swapjax.robust.apgd import apgd
from swapjax.robust.objectives import (
    OBJECTIVES,
    RANKED_CLASSES,
    ExampleObjective,
    Scaled,
    cross_entropy,
    margin,
)
from swapjax.robust.pgd import fgsm, pgd
from swapjax.robust.square import square

# Run ``(key, apply, params, images, labels, *, epsilon, norm, box) -> images``.
Run = Callable[..., jax.Array]
_LENGTHS = 2.5  # of the radius that the steps of PGD go together
_TARGETS = 9  # of AutoAttack
_STEPS = {"pgd": 20, "apgd": 100, "square": 5000}
NAMES = (
    "fgsm", "pgd-ce", "pgd-margin", "pgd-dlr", "apgd-ce", "apgd-margin", "apgd-dlr",
    "apgd-t", "square",
)  # fmt: skip
"""What `attacks` of `evaluate` may name."""
# Those of cross-entropy first, so that it is seen what they leave to the others.
DEFAULT = ("pgd-ce", "apgd-ce", "pgd-margin", "apgd-dlr")


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack for `evaluate`: what it is called, and what it runs.

    Attributes:
        name: in results.
        runs: functions ``(key, apply, params, images, labels, *, epsilon, norm, box) ->
            images``, one after the other on the images that the ones before have left,
            as restarts and targets are.
        kind: ``"ce"`` for an attack that climbs the cross-entropy, ``"logits"`` for one
            that climbs differences of logits, ``"black box"`` for one without
            gradients; gaps between them tell of masked gradients. None for others.
    """

    name: str
    runs: tuple[Run, ...]
    kind: str | None = None


def attacks_of(
    wanted: str | Attack | Iterable[str | Attack],
    *,
    classes: int,
    scale: float | None,
    restarts: int,
) -> tuple[tuple[Attack, ...], list[str]]:
    """Make the attacks that names stand for.

    Args:
        wanted: attacks, and names ``NAME`` or ``NAME:STEPS``.
        classes: how many the network tells apart.
        scale: s of a network that returns cosines: attacks that climb cross-entropy are
            run on s times the outputs, and on the outputs.
        restarts: starts of each attack with gradients.

    Returns:
        The attacks, and what there is to say about them.

    Raises:
        ValueError: for unknown names, and the same one twice.
    """
    found: list[Attack] = []
    notes: list[str] = []
    for each in (wanted,) if isinstance(wanted, str | Attack) else wanted:
        if isinstance(each, Attack):
            found.append(each)
            continue
        name, steps = _parsed(each)
        if classes < RANKED_CLASSES and name in ("pgd-dlr", "apgd-dlr", "apgd-t"):
            notes.append(
                f"{name} climbs the margin: a ratio of differences of logits needs "
                f"{RANKED_CLASSES} classes, here are {classes}"
            )
        found += _made(each, name, steps, classes, scale, restarts)
    names = [attack.name for attack in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks must be some, each once, got {names}")
    return tuple(found), notes


def _parsed(text: Any) -> tuple[str, int | None]:
    name, colon, steps = str(text).partition(":")
    if name not in NAMES or (colon and not steps.isdecimal()) or steps == "0":
        raise ValueError(
            f"attacks must be Attack, or NAME or NAME:STEPS with one of "
            f"{', '.join(NAMES)}, got {text!r}"
        )
    if colon and name == "fgsm":
        raise ValueError(f"attacks: fgsm has one step, got {text!r}")
    return name, int(steps) if colon else None


def _made(
    shown: str,
    name: str,
    steps: int | None,
    classes: int,
    scale: float | None,
    restarts: int,
) -> list[Attack]:
    family, _, climbed = name.partition("-")
    count = steps or _STEPS.get(family, 1)
    if family == "square":
        return [Attack(shown, (functools.partial(square, queries=count),), "black box")]
    if climbed == "t":
        return [Attack(shown, _towards(count, classes) * restarts, "logits")]
    ranked = climbed == "dlr" and classes >= RANKED_CLASSES
    plain = OBJECTIVES[climbed] if ranked else margin
    variants: list[tuple[str, ExampleObjective]] = [(shown, plain)]
    if climbed in ("ce", ""):
        variants = [(shown, cross_entropy)]
        if scale is not None:
            # A network of cosines is trained on them times s, and flat without.
            scaled = Scaled(cross_entropy, scale)
            variants.insert(0, (f"{shown}, outputs times {scale:g}", scaled))
    kind = "ce" if climbed in ("ce", "") else "logits"
    methods: dict[str, Run] = {"fgsm": _once, "pgd": _in_steps, "apgd": apgd}
    starts = 1 if family == "fgsm" else restarts
    return [
        Attack(
            label,
            (functools.partial(methods[family], steps=count, objective=objective),)
            * starts,
            kind,
        )
        for label, objective in variants
    ]


def _towards(steps: int, classes: int) -> tuple[Run, ...]:
    objective = "dlr" if classes >= RANKED_CLASSES else "margin"
    return tuple(
        functools.partial(
            apgd,
            steps=steps,
            objective=f"{objective}-targeted",
            targets=range(i, i + 1),
        )
        for i in range(min(_TARGETS, classes - 1))
    )


def _once(key: jax.Array, *args: Any, steps: int, **settings: Any) -> jax.Array:
    del key, steps
    return fgsm(*args, **settings)


def _in_steps(*args: Any, epsilon: float, steps: int, **settings: Any) -> jax.Array:
    step = _LENGTHS * epsilon / steps
    return pgd(*args, epsilon=epsilon, step=step, steps=steps, **settings)
