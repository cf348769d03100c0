"""swapjax prune: one network, one method, one sparsity."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from swapjax import checkpoint, experiments, files, plot, report
from swapjax.cli.options import Options
from swapjax.cli.screen import console, progress, require_writable
from swapjax.experiments import Row, Setting
from swapjax.oneshot import Pruned

_STATE = "state.safetensors"
_DENSE = "dense.safetensors"
_RESULTS = ("params.safetensors", "masks.safetensors", "report.json", "report.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Options):
    """Prune a trained network.

    Writes params.safetensors, masks.safetensors (one bit a weight), report.json and
    report.png to a folder, and dense.safetensors if it trained the network. Called
    again in the same words after an interruption, it goes on where it stopped.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write to; made if need be."""


def prune(options: Prune) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments and data; the folder is then as it was.
    """
    options.check()
    require_writable(options.out, "--out")
    (sparsity,) = options.levels([options.sparsity])
    setting = options.set_up([sparsity], trained=options.out / _DENSE)
    accuracy, loss = experiments.evaluate(setting, setting.params)
    console.print(
        f"Dense {options.model} on {setting.data.name}: {accuracy:.2f}% of the test "
        f"set correct, loss {loss:.4f}.\n"
    )
    target = options.plan(setting.params, sparsity)
    console.print(f"{target}\n", highlight=False)

    state = options.out / _STATE
    with _folder(options.out), progress("compiling", options.stages) as (bar, task):
        if state.exists():
            console.print(f"Going on from {state}.", soft_wrap=True)
        if options.checkpoint is None:
            options.save_trained(options.out / _DENSE, setting)
        row, pruned = experiments.run(
            setting,
            options.make_method(options.method),
            sparsity=target,
            seed=options.seed,
            checkpoint=state,
            callback=lambda stage: bar.update(
                task, completed=stage.stage, description="pruning"
            ),
            **options.run_options,
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


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder; on bad input leave it, and our files in it, as they were."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    ours = [path / name for name in (_STATE, _DENSE, *_RESULTS)]
    before = {file: file.read_bytes() for file in ours if file.exists()}
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except ValueError:
        for file in ours:
            _restore(file, before.get(file))
        for folder in missing:
            with suppress(OSError):  # somebody else may use it by now
                folder.rmdir()
        raise


def _restore(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif file.read_bytes() != content:
        files.write_atomically(file, lambda p: p.write_bytes(content))


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
            "data": {
                "name": setting.data.name,
                "mean": setting.data.mean,
                "std": setting.data.std,
                "train": len(setting.data.y_train),
                "test": len(setting.data.y_test),
            },
            "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("swapjax", "jax", "ott-jax")
            },
        },
    )
