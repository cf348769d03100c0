"""swapjax train: a network that is sparse when its training ends."""

import functools
import math
from typing import Any

from matplotlib.figure import Figure

from swapjax.cli import (
    pixels,
    setup,
    train_algorithms,
    train_attack,
    train_backward,
    train_found,
    train_labels,
    train_robust,
)
from swapjax.cli.console import console, require_writable
from swapjax.cli.output import (
    Output,
    circumstances,
    draw,
    folder,
    require_file,
    tell,
)
from swapjax.cli.train_options import (
    DRAWN,
    GRADUAL,
    Train,
    check,
    optimizer_name,
)
from swapjax.cli.train_run import Outcome, carry_out
from swapjax.core.text import printable
from swapjax.experiments import plot, report, runner
from swapjax.experiments.datasets import Dataset
from swapjax.experiments.runner import Setting
from swapjax.io import checkpoint
from swapjax.loops import steps
from swapjax.sparsity import masks

_STATE = "training.safetensors"
_ATTACKS = "attacks.safetensors"
_RESULTS = ("params.safetensors", "masks.safetensors", "report.json", "train.png")


def train(options: Train) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments and data, and where another run writes to the
            folder; results in it are then as they were.
    """
    check(options)
    require_writable(options.out, "--out")
    require_file(options.json)
    with folder(options.out, (_STATE, _ATTACKS, *_RESULTS)) as output:
        sphere = train_robust.head(options.against)
        data, model, chosen = setup.load(options, sphere)
        labels = train_labels.wrong_labels(options.against, data, options.seed)
        taught = data if labels is None else data._replace(y_train=labels.noisy)
        setting = Setting(taught, model, model.params)
        total = options.epochs * steps.per_epoch(data.train, options.batch, "--batch")
        total *= train_robust.replays(options.against)
        target = train_algorithms.make_plan(options, setting)
        console.print(chosen.sentence(data), soft_wrap=True)
        told = _introduction(options, printable(data.name), total)
        told += train_robust.introduction(options.against, data)
        gauge = train_backward.gauge(options, setting, total)
        told += train_backward.introduction(options, gauge, total)
        if labels is not None:
            told += f" {labels.flipped.sum():,} of {labels.flipped.size:,} labels are "
            told += "wrong in training."
        console.print(told, soft_wrap=True)
        console.print(f"\n{target}\n", highlight=False, soft_wrap=True)
        state = options.out / _STATE
        if state.exists():
            console.print(f"Going on from {printable(state)}.", soft_wrap=True)
        outcome = carry_out(options, setting, labels, target, total, state, gauge)
        accuracy, loss = runner.evaluate(setting, outcome.params)
        layers = report.layers(outcome.params, outcome.masks)
        held = train_attack.attack(
            options.against, setting, outcome.params, options.seed,
            options.out / _ATTACKS,
        )  # fmt: skip
        found = train_found.joined([
            train_attack.found(options.against, held, outcome.history),
            train_labels.learnt(
                options.against, setting, labels, outcome.params, outcome.history
            ),
            train_backward.measured(
                options, gauge, outcome.params, layers, outcome.history
            ),
        ])  # fmt: skip
        result = _result(options, outcome, accuracy, loss) | found.result
        summary = _write(options, output, setting, outcome, layers, result, total)
        draw(
            functools.partial(_figure, options, data, outcome, layers, result, found),
            options.out / _RESULTS[-1],
        )
        for name in (_ATTACKS, _STATE):
            (options.out / name).unlink(missing_ok=True)
    tell(options.json, summary)
    console.print(report.training_table(outcome.history))
    console.print(report.layer_table(layers))
    train_found.show(found)
    warned = [train_labels.lopsided(setting, outcome.params)]
    if options.against.robust == "fastat":
        warned.append(train_attack.collapse(outcome.history))
    for text in filter(None, warned):
        console.print(f"Take care: {text}.", soft_wrap=True)
    before = ""
    if outcome.before is not None:
        before = f"{outcome.before[0]:.2f}% before the cut, "
    console.print(
        f"Test accuracy {before}{accuracy:.2f}% with {result['nonzeros']:,} of "
        f"{result['total']:,} weights ({result['seconds']:.1f} s).\n"
        f"Written to {printable(options.out)}: {', '.join(_RESULTS)}.",
        soft_wrap=True,
    )


def _introduction(options: Train, data: str, total: int) -> str:
    """Say what will happen, in a sentence or two."""
    rate, momentum, decay = train_algorithms.settings(options, total)
    name = optimizer_name(options)
    text = f"Training {options.model} on {data}: {options.epochs} epochs, {total:,} "
    text += f"steps of {name} at {rate:.2g}"
    text += f" with momentum {momentum:.2g}" if name == "sgd" else ""
    text += f" and weight decay {decay:.2g}" if decay else ""
    if options.algorithm in GRADUAL:
        every, end = train_algorithms.mask_steps(options, total)
        often = f"every {every} steps" if every > 1 else "at every step"
        text += f". Masks change {often}"
        goes_on = GRADUAL[options.algorithm].factory().goes_on
        text += "; sparsity rises until" if goes_on else " until"
        text += f" step {end:,}"
    elif options.algorithm in DRAWN:
        penalty, every = train_algorithms.drawing(options, total)
        by = "by" if options.algorithm == "elsa" else "by up to"
        text += f", drawn {by} {penalty:.2g} to a sparse copy that changes every "
        text += f"{every} steps"
        if options.algorithm == "safe":
            text += f", gradients taken {train_algorithms.radius(options):.2g} away"
    elif options.algorithm == "lottery":
        levels = math.ceil(
            math.log1p(-options.sparsity) / math.log1p(-train_algorithms.rate(options))
        )
        text += f", once in each of {1 + levels} levels"
    return text + "."


def _result(
    options: Train, outcome: Outcome, accuracy: float, loss: float
) -> dict[str, Any]:
    left, total = masks.count(masks.from_zeros(outcome.params, outcome.masks))
    result: dict[str, Any] = {
        "algorithm": options.algorithm,
        "sparsity": 0.0 if options.algorithm == "dense" else options.sparsity,
        "seed": options.seed,
        "accuracy": accuracy,
        "loss": loss,
        "seconds": sum(part.seconds for part in outcome.history),
        "nonzeros": left,
        "total": total,
    }
    if outcome.before is not None:
        result["before"] = dict(zip(("accuracy", "loss"), outcome.before, strict=True))
    return result


def _write(
    options: Train,
    output: Output,
    setting: Setting,
    outcome: Outcome,
    layers: list[dict[str, Any]],
    result: dict[str, Any],
    total: int,
) -> dict[str, Any]:
    data, notes = setting.data, pixels.notes(setting.data, setting.model)
    parts = "levels" if options.algorithm == "lottery" else "epochs"
    summary = {
        "result": result,
        "training": train_algorithms.told(options, total)
        | train_robust.settings(options.against, data, total),
        parts: [part.to_dict() for part in outcome.history],
        "layers": layers,
        **circumstances("train", options, data),
    }
    params, kept, told, _ = _RESULTS
    output.replace(
        {
            params: lambda path: checkpoint.save_params(path, outcome.params, notes),
            kept: lambda path: checkpoint.save_masks(path, outcome.masks),
            told: lambda path: report.write_json(path, summary),
        }
    )
    return summary


def _figure(
    options: Train,
    data: Dataset,
    outcome: Outcome,
    layers: list[dict[str, Any]],
    result: dict[str, Any],
    found: train_found.Found,
) -> Figure:
    title = f"{options.model} on {data.name}, {options.algorithm} to "
    title += f"{result['sparsity']:g}: {result['accuracy']:.2f}%"
    return plot.training_figure(outcome.history, layers, title=title, more=found.panels)
