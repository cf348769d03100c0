"""What swapjax train does with an algorithm, and what comes of it."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.cli import (
    train_algorithms,
    train_attack,
    train_backward,
    train_robust,
)
from swapjax.cli.console import progress
from swapjax.cli.train_labels import WrongLabels
from swapjax.cli.train_options import Train
from swapjax.core.types import Masks, Params
from swapjax.experiments import runner
from swapjax.experiments.backward import Gauge
from swapjax.experiments.runner import Setting
from swapjax.loops.finetune import FineTune
from swapjax.sparsity import masks
from swapjax.sparsity.magnitude import largest
from swapjax.sparsity.plan import Plan
from swapjax.training import Epoch, Level, Trainer, fit, lottery, masks_of
from swapjax.training.state import has_masks, is_sparse


class Outcome(NamedTuple):
    """What training gave.

    Attributes:
        params: zero where masks are False.
        masks: with the tree of params.
        history: epochs, or levels of lottery.
        before: accuracy and loss before the cut, of those that are cut in the end.
    """

    params: Params
    masks: Masks
    history: tuple[Epoch, ...] | tuple[Level, ...]
    before: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class _Trainer(Trainer):
    """Trains by a loss that it can tell from others.

    Attributes:
        loss: what tells it.
    """

    loss: str = "ce"

    def describe(self) -> str:
        """Return a fingerprint of settings, data and loss."""
        return f"{super().describe()}, loss={self.loss}"


def carry_out(
    options: Train,
    setting: Setting,
    labels: WrongLabels | None,
    target: Plan,
    total: int,
    state: Path,
    gauge: Gauge | None,
) -> Outcome:
    """Train, from where an earlier call has stopped if it has.

    Args:
        options: of the command.
        setting: network and data.
        labels: of training, None where all are right.
        target: what to prune.
        total: steps, of a level for lottery.
        state: the file to keep the run in.
        gauge: measures the way back after each epoch, if gradients are pruned.

    Raises:
        ValueError: as `swapjax.training.fit` and `swapjax.lottery` do.
    """
    work = _find_ticket if options.algorithm == "lottery" else _fit
    measure = train_attack.measure(options.against, setting, labels)
    measure = train_backward.watch(measure, gauge)
    return work(options, setting, measure, target, total, state)


def _fit(
    options: Train,
    setting: Setting,
    measure: Any,
    target: Plan,
    total: int,
    state: Path,
) -> Outcome:
    data, model = setting.data, setting.model
    order, draw = jax.random.split(jax.random.key(options.seed))
    with progress("compiling", total) as (bar, task):
        optimizer = train_algorithms.keep_on_sphere(
            train_algorithms.whole(options, setting, target, total, draw), model
        )
        params, last, history = fit(
            train_algorithms.objective(options, setting, total),
            model.params,
            optimizer,
            data.train,
            epochs=options.epochs,
            batch=options.batch,
            key=order,
            evaluate=measure,
            checkpoint=state,
            callback=lambda epoch: bar.update(
                task,
                description=f"epoch {epoch.epoch}: {epoch.accuracy:.2f}%"
                + train_backward.progress(epoch),
            ),
            progress=lambda done, _: bar.update(task, completed=done),
        )
    params = runner.settled(setting, params)
    if is_sparse(last):
        return Outcome(params, masks_of(last), history)
    if options.algorithm == "dense":
        return Outcome(params, target.layout.masks(target.layout.everything()), history)
    before = runner.evaluate(setting, params)
    kept = masks_of(last) if has_masks(last) else largest(target, params)
    cut = runner.settled(setting, masks.apply_masks(params, kept))
    return Outcome(cut, kept, history, before)


def _find_ticket(
    options: Train,
    setting: Setting,
    measure: Any,
    target: Plan,
    total: int,
    state: Path,
) -> Outcome:
    del measure  # levels have one number each
    data, model = setting.data, setting.model
    optimizer = train_algorithms.keep_on_sphere(
        train_algorithms.inner(options, total), model
    )
    settings = FineTune(optimizer, total, options.batch)
    examples = jax.tree.map(jnp.asarray, data.train)
    with progress("level 0", total) as (bar, task):
        ticket = lottery(
            _Trainer(
                train_robust.as_loss(options.against, setting),
                examples,
                settings,
                loss=f"{options.against.loss} {setting.model.sphere}",
                progress=lambda done, _: bar.update(task, completed=done),
            ),
            model.params,
            plan=target,
            rate=train_algorithms.rate(options),
            evaluate=runner.Accuracy(setting),
            key=jax.random.split(jax.random.key(options.seed))[0],
            checkpoint=state,
            callback=lambda level: bar.update(
                task,
                description=f"level {level.level}: {level.accuracy:.2f}%; the next",
                completed=0,
            ),
        )
    params = runner.settled(setting, ticket.params)
    return Outcome(params, ticket.masks, ticket.history)
