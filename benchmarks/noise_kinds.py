"""The kinds of noise in the study, by their words, and one on the dense weights."""

import dataclasses
from collections.abc import Mapping

import jax

from swapjax.corruptions import AnalogMemory
from swapjax.experiments import noise
from swapjax.experiments.runner import Setting

WEIGHTS = "weights"
_MEMORY = AnalogMemory(levels=16, additive=0.05)
_OF_MEMORY = 2**30  # folded into a key for the weights; other noise has its own

KINDS: Mapping[str, str] = {
    word: noise.parse(word).told
    for word in (
        "clean",
        "gaussian:1,0.25",
        "gaussian:4,0.5",
        "gaussian:8,0.5",
        "rows:16,0.25",
        "tails:1,0.5",
        "memory:0.05",
        "labels:0.2",
        "labels:0.4",
        "pairs:0.4",
        "fgsm:0.1",
        "pgd:0.1",
        *(
            f"{kind}:{severity}"
            for kind in ("gaussian-noise", "gaussian-blur", "contrast", "jpeg")
            for severity in (3, 5)
        ),
    )
} | {WEIGHTS: f"weights read from analog memory of {_MEMORY.levels} levels"}
"""What each does, by its word; the word of `noise.parse`, or `WEIGHTS`."""


def spoil_weights(setting: Setting, seed: int) -> Setting:
    """Read the dense weights from analog memory once."""
    key = jax.random.fold_in(jax.random.key(seed), _OF_MEMORY)
    return dataclasses.replace(setting, params=_MEMORY.read(key, setting.params))


MAIN_KINDS = (
    *("clean", "gaussian:1,0.25", "gaussian:4,0.5", "gaussian:8,0.5", "rows:16,0.25"),
    *("labels:0.4", "pairs:0.4", "fgsm:0.1"),
)
