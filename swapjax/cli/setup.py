"""What the options of the commands that prune ask for: networks, plans, settings."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax

from swapjax.cli import pixels
from swapjax.cli.console import console, progress
from swapjax.cli.dense import Dense
from swapjax.cli.network_options import Network
from swapjax.cli.options import SPARSITY, Options, noises
from swapjax.cli.pixels import Pixels
from swapjax.core import identity
from swapjax.core.text import printable
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, runner
from swapjax.experiments.models.hypersphere import with_sphere
from swapjax.experiments.models.own import fingerprint
from swapjax.experiments.runner import Setting
from swapjax.loops.finetune import FineTune
from swapjax.pruning import Method
from swapjax.robust import Hypersphere
from swapjax.sparsity import schedules
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planning import plan
from swapjax.sparsity.unit_patterns import Channel


class Inputs(NamedTuple):
    """What a run starts from, before any training.

    Attributes:
        data: images and labels.
        model: the network with its initial weights.
        pixels: how those of the images were standardised, and who says so.
        params: the trained weights of a file, None where they are to be trained.
        origin: what the trained weights and all that is measured on them depend on,
            data and files by content: they may be renamed, or replaced under a name.
    """

    data: datasets.Dataset
    model: models.Model
    pixels: Pixels
    params: Params | None
    origin: dict[str, str]


def load(
    options: Network,
    sphere: Hypersphere | None = None,
    checkpoint: Path | None = None,
) -> tuple[datasets.Dataset, models.Model, Pixels]:
    """Load the data, and make the network with its initial weights.

    Args:
        options: of the command.
        sphere: for a network that returns cosines.
        checkpoint: of weights to come, which may tell how pixels are standardised.

    Raises:
        ValueError: for what cannot be loaded or does not go together.
    """
    models.find(options.model)
    chosen = pixels.choose(options, checkpoint)
    data = datasets.load(
        options.data, mean=chosen.mean, std=chosen.std, data_dir=options.data_dir
    )
    model = models.create(
        options.model, data.shape, data.classes, seed=options.seed,
        head="linear" if sphere is None else "cosines",
    )  # fmt: skip
    if sphere is not None:
        model = with_sphere(model, sphere)
    return data, model, chosen


def levels(options: Options, sparsities: Sequence[float]) -> list[float]:
    """Return the sparsities asked for, or the one that the pattern implies.

    Raises:
        ValueError: for others than that.
    """
    pattern = _pattern(options)
    if not isinstance(pattern, NM):
        return list(sparsities)
    implied = 1 - pattern.n / pattern.m
    if set(sparsities) - {SPARSITY, implied}:
        raise ValueError(
            f"--pattern {options.pattern} removes {implied:g}; leave the sparsity out"
        )
    return [implied]


def make_plan(
    options: Options, model: models.Model, data: datasets.Dataset, sparsity: float
) -> Plan:
    """Say what to prune of a network.

    Args:
        options: of the command.
        model: the network, whose program tells what each leaf does.
        data: that its loss takes.
        sparsity: how far.

    Raises:
        ValueError: as `swapjax.plan` does.
    """
    pattern, allocation = _pattern(options), options.allocation
    return plan(
        model.params,
        None if isinstance(pattern, NM) else sparsity,
        pattern=pattern,
        # The default of single weights; channels of several sizes cannot compete.
        allocation=None if pattern and allocation == "global" else allocation,
        exclude=options.exclude or (),
        loss_fn=model.loss_fn,
        batch=tuple(part[:2] for part in data.train),
    )


def _pattern(options: Options) -> NM | Channel | None:
    """Read which weights live or die together."""
    if options.pattern in (None, "channel"):
        return None if options.pattern is None else Channel()
    return NM.parse(options.pattern)


def run_options(options: Options, setting: Setting, method: Method) -> dict[str, Any]:
    """Return what `runner.run` takes besides method, plan, seed and noise."""
    tune = None
    if options.finetune_steps:
        tune = FineTune(
            _adam(options.finetune_rate), options.finetune_steps, options.finetune_batch
        )
    schedule = {
        "exponential": schedules.exponential(initial=0.1),
        "cubic": schedules.cubic(initial=0.1),
        "linear": schedules.linear(initial=0.1),
        "one-shot": schedules.one_shot(),
    }[options.schedule]
    again, judge = None, None
    if options.recalibrate:
        again = runner.recalibration(setting)
        judge = runner.judge(setting, method, options.batch)
    return {
        "stages": options.stages,
        "samples": options.samples,
        "batch": options.batch,
        "schedule": schedule,
        "finetune": tune,
        "storage": options.storage,
        "validation": options.validation,
        "recalibrate": again,
        "criterion": judge,
    }


def set_up(options: Options, sparsities: Sequence[float]) -> Inputs:
    """Load data and weights; train nothing.

    Args:
        options: of the command.
        sparsities: that will be asked of the network.

    Raises:
        ValueError: for what cannot be loaded or does not go together.
    """
    data, model, chosen = load(options, checkpoint=options.checkpoint)
    for sparsity in sparsities:
        make_plan(options, model, data, sparsity)
    for noise in noises(options):
        noise.require_fits(data)
    wanted, available = options.samples * options.batch, len(data.y_train)
    if wanted > available:
        raise ValueError(
            f"--samples {options.samples} times --batch {options.batch} are {wanted:,} "
            f"examples a stage; {data.name} has {available:,} to train"
        )
    own = {}
    if models.is_own(options.model):
        own = {"network": fingerprint(model, data.shape)}
    if options.checkpoint is None:
        origin = {
            "data": runner.digest(data),
            "model": options.model,
            "epochs": str(options.epochs),
            "seed": str(options.seed),
            "recipe": runner.RECIPE,
            **own,
        }
        return Inputs(data, model, chosen, None, origin)
    params = runner.load_weights(options.checkpoint, model)
    origin = {"data": runner.digest(data), "weights": identity.digest(params), **own}
    return Inputs(data, model, chosen, params, origin)


def network(options: Options, inputs: Inputs, dense: Dense | None = None) -> Setting:
    """Take the weights that were loaded or trained before, or train.

    Args:
        options: of the command.
        inputs: from `set_up`.
        dense: where an earlier call may have left the weights it trained.

    Raises:
        ValueError: for weights trained before that are damaged.
    """
    data, model, _, params, _ = inputs
    if params is not None:
        return Setting(data, model, params)
    found = None if dense is None else dense.find()
    if dense is not None and found is not None:
        console.print(
            f"Taking the network trained before from {printable(found)}.",
            soft_wrap=True,
        )
        return Setting(data, model, dense.load(found, model))
    console.print(
        f"No --checkpoint given: training {options.model} on {printable(data.name)} "
        f"for {options.epochs} epochs.",
        soft_wrap=True,
    )
    with progress("training", options.epochs) as (bar, task):
        return runner.set_up(
            data,
            model,
            epochs=options.epochs,
            seed=options.seed,
            callback=lambda done, of: bar.update(
                task, completed=options.epochs * done / of
            ),
        )


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    """One object a rate, so that runs share the compiled steps."""
    return optax.adam(rate)
