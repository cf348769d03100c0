"""What spoils the gradients of the study of noise, one entry a kind and level."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from swapjax import GradientNoise
from swapjax.core.types import Params
from swapjax.corruptions import (
    AnalogMemory,
    corrupt_images,
    fgsm,
    flip_labels,
    pgd,
)
from swapjax.experiments.runner import Setting
from swapjax.gradients.operator import Corruption

Examples = tuple[jax.Array, jax.Array]
Spoil = Callable[[jax.Array, Setting], Examples]
_PART = 2000  # images attacked at once


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of noise.

    Attributes:
        title: for pictures and tables.
        data: makes the training examples that pruning sees, of a key; by default they
            stay as they are. The test set is always clean.
        noise: of the gradient rows.
        memory: that the dense weights were read from before pruning.
    """

    title: str
    data: Spoil | None = None
    noise: Corruption | None = None
    memory: AnalogMemory | None = None

    def examples(self, setting: Setting, seed: int) -> Examples:
        """Spoil the training examples."""
        x, y = setting.data.train
        if self.data is None:
            return jnp.asarray(x), jnp.asarray(y)
        return jax.block_until_ready(self.data(_key(seed), setting))

    def weights(self, setting: Setting, seed: int) -> Params:
        """Read the weights that are pruned."""
        if self.memory is None:
            return setting.params
        return self.memory.read(_key(seed), setting.params)


def _key(seed: int) -> jax.Array:
    """Make a key that is not the run's, which draws examples."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def gradients(
    scale: float,
    proportion: float,
    unit: Literal["coordinate", "row"] = "coordinate",
    degrees: float | None = None,
) -> Kind:
    """Put noise on gradient rows, Gaussian or with heavy tails."""
    what = "entries" if unit == "coordinate" else "rows"
    name = "Gaussian" if degrees is None else f"Student's t of {degrees:g} degrees"
    title = f"{name}, {scale:g} deviations on {proportion:.0%} of {what}"
    return Kind(title, noise=GradientNoise(scale, proportion, unit, degrees))


def flipped(rate: float, kind: str = "symmetric") -> Kind:
    """Replace a share of the labels by wrong ones."""

    def spoil(key: jax.Array, setting: Setting) -> Examples:
        x, y = setting.data.train
        classes = setting.data.classes
        labels, _ = flip_labels(key, jnp.asarray(y), rate, classes=classes, kind=kind)
        return jnp.asarray(x), labels

    how = "" if kind == "symmetric" else ", to the next class"
    return Kind(f"{rate:.0%} of labels flipped{how}", spoil)


def attacked(epsilon: float, steps: int = 0) -> Kind:
    """Let an adversary change images who knows the dense network; pixels are in [0, 1].

    Args:
        epsilon: the most that a pixel changes by.
        steps: of PGD, each a quarter of epsilon; 0 for FGSM.
    """

    def spoil(key: jax.Array, setting: Setting) -> Examples:
        loss_fn, params = setting.model.loss_fn, setting.params
        size, limits = epsilon / setting.data.std, box(setting)

        def attack(key: jax.Array, batch: Examples) -> jax.Array:
            if not steps:
                return fgsm(loss_fn, params, batch, size, box=limits)
            return pgd(key, loss_fn, params, batch, size, size / 4, steps, box=limits)

        return by_parts(attack, key, setting)

    name = f"PGD, {steps} steps" if steps else "FGSM"
    return Kind(f"images attacked by {name}, {epsilon:g}", spoil)


def images(kind: str, severity: int) -> Kind:
    """Spoil images in a way of CIFAR-10-C."""

    def spoil(key: jax.Array, setting: Setting) -> Examples:
        limits = box(setting)

        def corrupt(key: jax.Array, batch: Examples) -> jax.Array:
            return corrupt_images(key, batch[0], kind, severity, box=limits)

        return by_parts(corrupt, key, setting)

    return Kind(f"images: {kind.replace('_', ' ')}, severity {severity}", spoil)


def by_parts(
    change: Callable[[jax.Array, Examples], jax.Array], key: jax.Array, setting: Setting
) -> Examples:
    """Change the training images some at a time, each with a key of its own."""
    x, y = map(jnp.asarray, setting.data.train)
    parts = []
    for start in range(0, len(y), _PART):
        part = slice(start, start + _PART)
        parts.append(change(jax.random.fold_in(key, start), (x[part], y[part])))
    return jnp.concatenate(parts), y


def box(setting: Setting) -> tuple[float, float]:
    """Tell where pixels of 0 and 1 are after standardisation."""
    data = setting.data
    return -data.mean / data.std, (1 - data.mean) / data.std


KINDS: Mapping[str, Kind] = {
    "clean": Kind("clean"),
    "gaussian-1-0.25": gradients(1, 0.25),
    "gaussian-4-0.5": gradients(4, 0.5),
    "gaussian-8-0.5": gradients(8, 0.5),
    "rows-16-0.25": gradients(16, 0.25, "row"),
    "tails-1-0.5": gradients(1, 0.5, degrees=1.5),
    "labels-0.2": flipped(0.2),
    "labels-0.4": flipped(0.4),
    "pairs-0.4": flipped(0.4, "pairs"),
    "fgsm-0.1": attacked(0.1),
    "pgd-0.1": attacked(0.1, steps=10),
    "memory-rows": Kind(
        "gradients in analog memory", noise=AnalogMemory(levels=16, additive=0.05)
    ),
    "memory-weights": Kind(
        "weights in analog memory", memory=AnalogMemory(levels=16, additive=0.05)
    ),
    **{
        f"{kind}-{severity}": images(kind, severity)
        for kind in ("gaussian_noise", "gaussian_blur", "contrast")
        for severity in (3, 5)
    },
}
