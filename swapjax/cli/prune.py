"""swapjax prune: one network, one method, one sparsity."""

import functools
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from swapjax.cli import dense, methods, pixels, setup, unseen
from swapjax.cli.console import console, progress, require_writable
from swapjax.cli.options import Prune, check, noises
from swapjax.cli.output import (
    Output,
    circumstances,
    draw,
    folder,
    require_file,
    tell,
)
from swapjax.core import keys
from swapjax.core.text import printable
from swapjax.experiments import plot, report, runner
from swapjax.experiments.noise import Noise
from swapjax.experiments.row import Row
from swapjax.experiments.runner import Setting
from swapjax.io import checkpoint
from swapjax.pruning import Pruned, Stage
from swapjax.sparsity.plan import Plan

_STATE = "state.safetensors"
_RESULTS = ("params.safetensors", "masks.safetensors", "report.json", "report.png")
_FILES = (_STATE, unseen.NAME, dense.NAME, *_RESULTS)


def prune(options: Prune) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments and data, and where another run writes to the
            folder; results in it are then as they were.
    """
    check(options, [options.method])
    methods.require_patterns([options.method], options.pattern, "--method")
    require_writable(options.out, "--out")
    require_file(options.json)
    (noise,) = noises(options)
    (sparsity,) = setup.levels(options, [options.sparsity])
    with folder(options.out, _FILES) as output:
        inputs = setup.set_up(options, [sparsity])
        trained = None
        if options.checkpoint is None:
            notes = pixels.notes(inputs.data, inputs.model)
            trained = dense.Dense(options.out, inputs.origin, notes)
            trained.require_own(options.out / _STATE)
        console.print(inputs.pixels.sentence(inputs.data), soft_wrap=True)
        setting = setup.network(options, inputs, trained)
        measured = runner.evaluate(setting, setting.params)
        console.print(
            f"Dense {options.model} on {printable(setting.data.name)}: "
            f"{measured[0]:.2f}% of the test set correct, loss {measured[1]:.4f}.\n",
            soft_wrap=True,
        )
        target = setup.make_plan(options, setting.model, setting.data, sparsity)
        console.print(f"{target}\n", highlight=False, soft_wrap=True)
        row, pruned = _run(options, setting, target, noise, trained)
        summary = _write(options, output, setting, measured, row, pruned)
        if trained is not None:
            trained.settle()
        draw(
            functools.partial(_figure, options, setting, measured[0], row, pruned),
            options.out / _RESULTS[-1],
        )
        for name in (_STATE, unseen.NAME):
            (options.out / name).unlink(missing_ok=True)
    tell(options.json, summary)
    console.print(report.stage_table(pruned.history))
    console.print(report.layer_table(report.layers(pruned.params, pruned.masks)))
    console.print(
        f"Test accuracy {measured[0]:.2f}% before, {row.accuracy:.2f}% with "
        f"{row.nonzeros:,} of {row.total:,} weights ({row.seconds:.1f} s).\n"
        f"Written to {printable(options.out)}: {', '.join(_RESULTS)}.",
        soft_wrap=True,
    )


def _run(
    options: Prune,
    setting: Setting,
    target: Plan,
    noise: Noise,
    trained: dense.Dense | None,
) -> tuple[Row, Pruned]:
    """Prune, from where an earlier call has stopped if it has."""
    state, depends = options.out / _STATE, unseen.of(options, setting)

    def keep() -> None:
        if trained is not None and trained.find() is None:
            trained.keep(setting.params)

    if state.exists():
        unseen.require_same(state, depends)
        console.print(f"Going on from {printable(state)}.", soft_wrap=True)
    else:
        keep()
    with progress("compiling", options.stages) as (bar, task):

        def advance(stage: Stage) -> None:
            keep()  # only now was a state that was there found to be of this run
            unseen.keep(options.out, depends)
            bar.update(task, completed=stage.stage, description="pruning")

        method = methods.make(options.method, options)
        done = runner.run(
            setting,
            method,
            plan=target,
            seed=options.seed,
            noise=noise,
            checkpoint=state,
            callback=advance,
            **setup.run_options(options, setting, method),
        )
    keep()
    return done


def _write(
    options: Prune,
    output: Output,
    setting: Setting,
    measured: tuple[float, float],
    row: Row,
    pruned: Pruned,
) -> dict[str, Any]:
    summary = {
        "dense": {"accuracy": measured[0], "loss": measured[1]},
        "result": row.to_dict(),
        "stages": [stage.to_dict() for stage in pruned.history],
        "layers": report.layers(pruned.params, pruned.masks),
        **circumstances("prune", options, setting.data),
    }
    notes = pixels.notes(setting.data, setting.model)
    params, masks, told, _ = _RESULTS
    output.replace(
        {
            params: lambda path: checkpoint.save_params(path, pruned.params, notes),
            masks: lambda path: checkpoint.save_masks(path, pruned.masks),
            told: lambda path: report.write_json(path, summary),
        }
    )
    return summary


def _figure(
    options: Prune, setting: Setting, before: float, row: Row, pruned: Pruned
) -> Figure:
    return plot.report_figure(
        pruned.history,
        report.layers(pruned.params, pruned.masks),
        title=f"{options.model} on {setting.data.name}, {row.method} to "
        f"{row.sparsity:g}: {before:.2f}% before, {row.accuracy:.2f}% after",
        first_layer=np.asarray(keys.bits(jax.tree.leaves(pruned.params)[0])),
        image_shape=setting.data.shape,
    )
