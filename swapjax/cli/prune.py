"""swapjax prune: one network, one method, one sparsity."""

import jax
import numpy as np

from swapjax.cli import methods, setup
from swapjax.cli.console import console, progress, require_writable
from swapjax.cli.options import Prune, check
from swapjax.cli.output import circumstances, folder
from swapjax.experiments import plot, report, runner
from swapjax.experiments.runner import Row, Setting
from swapjax.io import checkpoint
from swapjax.pruning import Pruned

_STATE = "state.safetensors"
_DENSE = "dense.safetensors"
_RESULTS = ("params.safetensors", "masks.safetensors", "report.json", "report.png")
_FILES = (_STATE, _DENSE, *_RESULTS)


def prune(options: Prune) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments and data; the folder is then as it was.
    """
    check(options, [options.method])
    methods.require_patterns([options.method], options.pattern, "--method")
    require_writable(options.out, "--out")
    (sparsity,) = setup.levels(options, [options.sparsity])
    setting = setup.set_up(options, [sparsity], trained=options.out / _DENSE)
    accuracy, loss = runner.evaluate(setting, setting.params)
    console.print(
        f"Dense {options.model} on {setting.data.name}: {accuracy:.2f}% of the test "
        f"set correct, loss {loss:.4f}.\n"
    )
    target = setup.make_plan(options, setting.params, sparsity)
    console.print(f"{target}\n", highlight=False)

    state = options.out / _STATE
    with (
        folder(options.out, _FILES),
        progress("compiling", options.stages) as (bar, task),
    ):
        if state.exists():
            console.print(f"Going on from {state}.", soft_wrap=True)
        if options.checkpoint is None:
            setup.save_trained(options, options.out / _DENSE, setting)
        row, pruned = runner.run(
            setting,
            methods.make(options.method, options),
            plan=target,
            seed=options.seed,
            checkpoint=state,
            callback=lambda stage: bar.update(
                task, completed=stage.stage, description="pruning"
            ),
            **setup.run_options(options),
        )
        _write(options, setting, (accuracy, loss), row, pruned)
    state.unlink(missing_ok=True)
    console.print(report.stage_table(pruned.history))
    console.print(report.layer_table(report.layers(pruned.params, pruned.masks)))
    console.print(
        f"Test accuracy {accuracy:.2f}% before, {row.accuracy:.2f}% with "
        f"{row.nonzeros:,} of {row.total:,} weights ({row.seconds:.1f} s).\n"
        f"Written to {options.out}: {', '.join(_RESULTS)}.",
        soft_wrap=True,
    )


def _write(
    options: Prune,
    setting: Setting,
    dense: tuple[float, float],
    row: Row,
    pruned: Pruned,
) -> None:
    out, layers = options.out, report.layers(pruned.params, pruned.masks)
    title = (
        f"{options.model} on {setting.data.name}, {row.method} to {row.sparsity:g}: "
        f"{dense[0]:.2f}% before, {row.accuracy:.2f}% after"
    )
    figure = plot.report_figure(
        pruned.history,
        layers,
        title=title,
        first_layer=np.asarray(jax.tree.leaves(pruned.params)[0]),
        image_shape=setting.data.shape,
    )
    params, masks, summary, picture = (out / name for name in _RESULTS)
    checkpoint.save_params(params, pruned.params)
    checkpoint.save_masks(masks, pruned.masks)
    plot.save(figure, picture)
    report.write_json(
        summary,
        {
            "dense": {"accuracy": dense[0], "loss": dense[1]},
            "result": row.to_dict(),
            "stages": [stage.to_dict() for stage in pruned.history],
            "layers": layers,
            **circumstances(options, setting.data),
        },
    )
