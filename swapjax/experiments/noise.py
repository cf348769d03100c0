"""Kinds of noise by name, and what each does to all that pruning looks at.

A kind and its level are one word, as ``gaussian:4,0.5``; the name alone has a level
too. What is tested on stays as it is.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from swapjax.core.text import printable
from swapjax.core.types import LossFn, Params
from swapjax.corruptions import (
    IMAGE_CORRUPTIONS,
    AnalogMemory,
    corrupt_images,
    fgsm,
    flip_labels,
    pgd,
)
from swapjax.experiments.datasets import Dataset
from swapjax.gradients.noise import GradientNoise
from swapjax.gradients.operator import Corruption

_STEPS, _STEP = 10, 4  # of PGD, and how many make its radius
_PART = 2000  # images in a pass
_DEGREES = 1.5  # of Student's t: no deviation exists
_LEVELS = 16  # of a device of memory

Box = tuple[float, float]


class Scene(NamedTuple):
    """What there is to spoil, and the network that attacks are made with.

    Attributes:
        data: of which the training part is spoilt.
        loss_fn: ``(params, (images, labels)) -> mean loss``.
        params: of the dense network.
    """

    data: Dataset
    loss_fn: LossFn
    params: Params


class Spoilt(NamedTuple):
    """What pruning looks at.

    Attributes:
        data: images and labels to train on.
        corruption: of gradient rows, or None.
    """

    data: tuple[Any, Any]
    corruption: Corruption | None = None


class Number(NamedTuple):
    """A number of a level.

    Attributes:
        name: as help and errors call it.
        default: that the name of the kind alone means.
        low: the least.
        high: the most.
        whole: whether only whole numbers will do.
        below: whether it must stay below the most.
    """

    name: str
    default: float
    low: float = 0
    high: float = math.inf
    whole: bool = False
    below: bool = False

    def read(self, text: str) -> float:
        """Read it.

        Raises:
            ValueError: saying what is wanted.
        """
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = self.low <= value <= self.high and value < math.inf
        fits = fits and not (self.below and value == self.high)
        if not fits or (self.whole and value != int(value)):
            number = "a whole number" if self.whole else "a number"
            span = f"from {self.low:g} to {'below ' * self.below}{self.high:g}"
            if self.high == math.inf:
                span = f"of {self.low:g} or more"
            raise ValueError(f"{self.name} must be {number} {span}, got '{text}'")
        return value


class Kind(NamedTuple):
    """A row of `KINDS`.

    Attributes:
        told: what it does, the numbers of a level by position.
        spoil: ``(key, scene, *level)`` to what pruning looks at.
        level: its numbers.
        images: whether it needs to know which pixels are beside which.
    """

    told: str
    spoil: Callable[..., Spoilt]
    level: tuple[Number, ...] = ()
    images: bool = False


class Noise(NamedTuple):
    """A kind of noise at a level, whose text is the word for it.

    Attributes:
        kind: a key of `KINDS`.
        level: its numbers.
    """

    kind: str
    level: tuple[float, ...] = ()

    def __str__(self) -> str:
        numbers = (repr(float(number)).removesuffix(".0") for number in self.level)
        return ":".join((self.kind, *([",".join(numbers)] if self.level else ())))

    @property
    def told(self) -> str:
        """What it does, in a few words."""
        return KINDS[self.kind].told.format(*self.level)

    def require_fits(self, data: Dataset) -> None:
        """Raise for data that it cannot spoil.

        Raises:
            ValueError: naming it and the data.
        """
        if KINDS[self.kind].images and len(data.shape) not in (2, 3):
            raise ValueError(
                f"noise {self} wants images of [height, width] or [height, width, "
                f"channels]; those of {printable(data.name)} are of {data.shape}"
            )

    def spoil(self, key: jax.Array, scene: Scene) -> Spoilt:
        """Spoil what pruning looks at.

        Args:
            key: of what is drawn at random.
            scene: data and network.

        Raises:
            ValueError: as `require_fits` does.
        """
        self.require_fits(scene.data)
        return KINDS[self.kind].spoil(key, scene, *self.level)


def parse(word: str, name: str = "noise") -> Noise:
    """Read a kind of noise and its level.

    Args:
        word: ``KIND`` or ``KIND:LEVEL``, numbers of a level separated by commas.
        name: of the argument, for errors.

    Raises:
        ValueError: for a kind that there is not, and a level that it has not.
    """
    kind, colon, level = word.partition(":")
    what = f"{name} {printable(word)}"
    if kind not in KINDS:
        if _is_number(kind):
            raise ValueError(
                f"{what}: the name of a kind wanted; noise of 4 deviations on half of "
                "each gradient is gaussian:4,0.5"
            )
        raise ValueError(f"{what}: not one of {', '.join(KINDS)}")
    numbers = KINDS[kind].level
    if not colon:
        return Noise(kind, tuple(number.default for number in numbers))
    texts = level.split(",")
    if not numbers:
        raise ValueError(f"{what}: {kind} has no level")
    if len(texts) != len(numbers):
        raise ValueError(f"{what}: {spelling(kind)} wanted, as {parse(kind)}")
    try:
        pairs = zip(numbers, texts, strict=True)
        return Noise(kind, tuple(number.read(text) for number, text in pairs))
    except ValueError as e:
        raise ValueError(f"{what}: {printable(e)}") from None


def spelling(kind: str) -> str:
    """Tell how a kind is written, as ``gaussian:SCALE,PROPORTION``."""
    numbers = ",".join(number.name for number in KINDS[kind].level)
    return f"{kind}:{numbers}" if numbers else kind


def _is_number(text: str) -> bool:
    try:
        float(text.split(",")[0])
    except ValueError:
        return False
    return True


def _clean(key: jax.Array, scene: Scene) -> Spoilt:
    return Spoilt(scene.data.train)


def _noisy(
    key: jax.Array, scene: Scene, scale: float, share: float, **kind: Any
) -> Spoilt:
    return Spoilt(scene.data.train, GradientNoise(scale, share, **kind))


def _stored(key: jax.Array, scene: Scene, deviation: float) -> Spoilt:
    return Spoilt(scene.data.train, AnalogMemory(levels=_LEVELS, additive=deviation))


def _flipped(key: jax.Array, scene: Scene, rate: float, kind: str) -> Spoilt:
    (images, labels), classes = scene.data.train, scene.data.classes
    return Spoilt(
        (images, flip_labels(key, labels, rate, classes=classes, kind=kind)[0])
    )


def _corrupted(key: jax.Array, scene: Scene, severity: float, kind: str) -> Spoilt:
    def corrupt(key: jax.Array, images: Any, labels: Any, box: Box) -> jax.Array:
        return corrupt_images(key, images, kind, int(severity), box=box)

    return _in_parts(corrupt, key, scene.data)


def _attacked(key: jax.Array, scene: Scene, epsilon: float, steps: int) -> Spoilt:
    """Attack with the dense network; by FGSM where there are no steps."""

    def attack(key: jax.Array, images: Any, labels: Any, box: Box) -> jax.Array:
        batch, radius = (images, labels), epsilon * (box[1] - box[0])
        network = scene.loss_fn, scene.params
        if not steps:
            return fgsm(*network, batch, radius, box=box)
        return pgd(key, *network, batch, radius, radius / _STEP, steps, box=box)

    return _in_parts(attack, key, scene.data)


def _in_parts(
    change: Callable[[jax.Array, Any, Any, Box], jax.Array],
    key: jax.Array,
    data: Dataset,
) -> Spoilt:
    """Change images some at a time: a pass takes memory for several times as many."""
    (images, labels), box, parts = data.train, data.box, []
    for start in range(0, len(labels), _PART):
        part = slice(start, start + _PART)
        own = jax.random.fold_in(key, start)
        few = np.clip(images[part], *box)
        parts.append(np.asarray(change(own, few, labels[part], box)))
    return Spoilt((np.concatenate(parts), labels))


KINDS: Mapping[str, Kind] = {
    "clean": Kind("nothing is spoilt", _clean),
    "gaussian": Kind(
        "Gaussian noise of {0:g} deviations on {1:.0%} of each gradient",
        _noisy,
        (Number("SCALE", 4), Number("PROPORTION", 0.5, high=1)),
    ),
    "rows": Kind(
        "Gaussian noise of {0:g} deviations on all of {1:.0%} of the gradients",
        functools.partial(_noisy, unit="row"),
        (Number("SCALE", 16), Number("PROPORTION", 0.25, high=1)),
    ),
    "tails": Kind(
        "heavy-tailed noise, {0:g} times the deviation, on {1:.0%} of each gradient",
        functools.partial(_noisy, degrees=_DEGREES),
        (Number("SCALE", 1), Number("PROPORTION", 0.5, high=1)),
    ),
    "memory": Kind(
        f"gradients read from analog memory of {_LEVELS} levels with noise of {{0:g}}",
        _stored,
        (Number("DEVIATION", 0.05),),
    ),
    "labels": Kind(
        "each label wrong with a probability of {0:.0%}",
        functools.partial(_flipped, kind="symmetric"),
        (Number("RATE", 0.4, high=1, below=True),),
    ),
    "pairs": Kind(
        "each label that of the next class with a probability of {0:.0%}",
        functools.partial(_flipped, kind="pairs"),
        (Number("RATE", 0.4, high=1, below=True),),
    ),
    "fgsm": Kind(
        "images attacked in one step of {0:g} of their range",
        functools.partial(_attacked, steps=0),
        (Number("EPSILON", 0.1, high=1),),
    ),
    "pgd": Kind(
        f"images attacked in {_STEPS} steps, up to {{0:g}} of their range",
        functools.partial(_attacked, steps=_STEPS),
        (Number("EPSILON", 0.1, high=1),),
    ),
    **{
        kind.replace("_", "-"): Kind(
            f"images spoilt by {kind.replace('_', ' ')}, severity {{0:g}} of 5",
            functools.partial(_corrupted, kind=kind),
            (Number("SEVERITY", 3, low=1, high=5, whole=True),),
            images=True,
        )
        for kind in IMAGE_CORRUPTIONS
    },
}
CLEAN = Noise("clean")
