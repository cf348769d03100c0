"""What swapjax train measures after each epoch, and the attacks in the end."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import robust
from swapjax.cli.console import progress
from swapjax.cli.robust_options import Against
from swapjax.cli.train_found import Found
from swapjax.cli.train_labels import WrongLabels
from swapjax.cli.train_robust import epsilon_of
from swapjax.core.types import Params
from swapjax.experiments import runner
from swapjax.experiments.robustness import (
    CHEAP,
    Robustness,
    attack_table,
    draw_epochs,
    draw_radii,
)
from swapjax.experiments.runner import Setting
from swapjax.robust.fast import DROP, ROBUST_BATCH
from swapjax.training import Epoch, Level

_ATTACKS = 2**31 + 2  # folded into the key of the seed
_RADII = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of epsilon, that a curve is drawn at
_WATCHED = 250  # test images that are attacked after each epoch


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """What measures after each epoch, and tells which test set its history is of.

    Attributes:
        measure: ``params -> numbers by name``.
        told: a fingerprint.
    """

    measure: Callable[[Params], Mapping[str, float]]
    told: str

    def __call__(self, params: Params) -> Mapping[str, float]:
        """Measure."""
        return self.measure(params)

    def describe(self) -> str:
        """Return the fingerprint."""
        return self.told


def measure(options: Against, setting: Setting, labels: WrongLabels | None) -> Any:
    """Make what measures after each epoch: ``params -> accuracy``, or more numbers.

    Args:
        options: of the command.
        setting: network and data.
        labels: of training, None where all are right.
    """
    model, data = setting.model, setting.data
    found: Any = runner.Accuracy(setting)
    again = runner.recalibration(setting)
    if labels is not None:
        found = robust.NoisyLabels(model.apply, data.test, data.x_train, *labels)
    if options.robust is None:
        return found if labels is None else _settled(found, again)
    low, high = data.box
    images, classes = (part[:_WATCHED] for part in data.test)
    watch = robust.watch_robustness(
        model.apply, (jnp.asarray(np.clip(images, low, high)), jnp.asarray(classes)),
        epsilon=epsilon_of(options, data) * (high - low), key=jax.random.key(0),
        evaluate=found, head=model.sphere, box=data.box,
    )  # fmt: skip
    told = f"attacked, {found.describe()}"
    return _settled(Watched(watch, told), again)


def _settled(measure: Any, again: Callable[[Params], Params] | None) -> Any:
    """Estimate the statistics of batch norm first, which training leaves alone."""
    if again is None:
        return measure
    return Watched(lambda params: measure(again(params)), measure.describe())


def collapse(history: Sequence[Epoch] | Sequence[Level]) -> str:
    """Say where robust accuracy has fallen from one epoch to the next; else nothing.

    Training by one step may end so (Wong et al., ICLR 2020, arXiv:2001.03994).

    Args:
        history: of a run that was watched.
    """
    told = [part.told[ROBUST_BATCH] for part in history if isinstance(part, Epoch)]
    for number, (before, after) in enumerate(itertools.pairwise(told), 2):
        if before - after > DROP:
            return (
                f"accuracy under attack fell from {100 * before:.0f}% to "
                f"{100 * after:.0f}% in epoch {number}, as where training by one step "
                "collapses; a shorter --attack-step or --robust pgd-at may not"
            )
    return ""


def attack(
    options: Against, setting: Setting, params: Params, seed: int, state: Path
) -> Robustness | None:
    """Attack a network on test images, if asked to.

    Args:
        options: of the command.
        setting: network and data.
        params: trained.
        seed: of the run.
        state: the file to keep the evaluation in.

    Raises:
        ValueError: as `swapjax.robust.evaluate` does.
    """
    if not options.attacks:
        return None
    data = setting.data
    images, labels = (part[: options.attack_images] for part in data.test)
    (low, high), taken = data.box, (np.clip(images, *data.box), labels)
    sphere = setting.model.sphere
    radius = epsilon_of(options, data)
    evaluate = functools.partial(
        robust.evaluate, setting.model.apply, params, box=data.box,
        key=jax.random.fold_in(jax.random.key(seed), _ATTACKS),
        batch=min(250, len(labels)), scale=None if sphere is None else sphere.scale,
    )  # fmt: skip
    with progress("attacking", 1) as (bar, task), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the result keeps them
        found = evaluate(
            taken, epsilon=radius * (high - low), attacks=options.attacks,
            checkpoint=state,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
        bar.update(task, description="at other radii", completed=0, total=len(_RADII))
        radii = []
        for part in _RADII:
            left = evaluate(taken, epsilon=part * radius * (high - low), attacks=CHEAP)
            radii.append((part * radius, 100 * left.robust))
            bar.update(task, completed=len(radii))
    return Robustness(radius, found, tuple(radii))


def found(
    options: Against,
    held: Robustness | None,
    history: Sequence[Epoch] | Sequence[Level],
) -> Found:
    """Tell what attacks left, and show what epochs tell of attacks and labels.

    Args:
        options: of the command.
        held: from `attack`.
        history: of the run.
    """
    panels: list[Callable] = []
    shown: list[Any] = []
    if held is not None:
        panels.append(functools.partial(draw_radii, robustness=held))
        shown.append(attack_table(held))
        shown += [f"Take care: {text}." for text in held.found.warnings]
    epochs = [part for part in history if isinstance(part, Epoch)]
    if epochs and (options.noise or options.robust):
        panels.append(functools.partial(draw_epochs, history=epochs))
    result = {} if held is None else {"robustness": held.to_dict()}
    return Found(result, tuple(panels), tuple(shown))
