"""swapjax train: a network that is sparse when its training ends."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from swapjax.cli import train_algorithms
from swapjax.cli.console import console, require_writable
from swapjax.cli.options import Network, check_seed, shown
from swapjax.cli.output import circumstances, folder
from swapjax.cli.train_algorithms import GRADUAL, AlgorithmName
from swapjax.cli.train_run import Outcome, carry_out
from swapjax.core.checks import require_fraction
from swapjax.core.types import Params
from swapjax.experiments import plot, report, runner
from swapjax.experiments.runner import Setting
from swapjax.io import checkpoint
from swapjax.loops import steps
from swapjax.sparsity import masks
from swapjax.sparsity.plan import Plan, plan

_STATE = "training.safetensors"
_RESULTS = ("params.safetensors", "masks.safetensors", "report.json", "train.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Network):
    """Train a network that is sparse in the end.

    The algorithms, by when weights go and whether others come:
    - dense: nothing goes, the control.
    - gmp: dense at first; little by little the smallest weights go for good.
    - granet: as gmp, and as many return where the gradient is large.
    - granet-st: as granet, from a random half of the weights.
    - set, rigl: sparse from the start; as weights go, as many come elsewhere, at random
    or where the gradient is large.
    - static, snip, synflow: masks are made before training, at random or as one of
    these methods does, and stay.
    - ste: the sparse copy of dense weights, which its gradients train.
    - acdc: dense and sparse by turns.
    - gsm: most weights follow their decay alone, and are cut in the end.
    - lottery: train, prune a little, go back to the start, again and again.

    Writes params.safetensors, masks.safetensors (one bit a weight), report.json and
    train.png to a folder. Called again in the same words after an interruption, it goes
    on after the last epoch that was finished.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write to; made if need be."""
    algorithm: AlgorithmName = "granet"
    """One of those above."""
    sparsity: float = 0.9
    """The fraction of prunable weights that are zero in the end."""
    allocation: Annotated[
        Literal["global", "uniform", "erk"] | None,
        shown("global|uniform|erk", "(default: the algorithm's)"),
    ] = None
    """How the weights to keep are spread over layers."""
    epochs: int = 30
    """Passes over the training set; for lottery, of each level."""
    batch: int = 64
    """Examples a step."""
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"] | None,
        shown("sgd|adam|adamw", "(default: adam, for gsm sgd)"),
    ] = None
    """What moves the weights; its learning rate falls to 0 along a cosine."""
    learning_rate: Annotated[
        float | None, shown("R", "(default: sgd 0.05, adam 0.003)")
    ] = None
    """The learning rate at the start. By default that of gsm is 1 - momentum."""
    momentum: Annotated[float | None, shown("M", "(default: 0.9)")] = None
    """Of sgd, Nesterov's. By default that of gsm is 0.99, or less in a short run."""
    weight_decay: Annotated[
        float | None, shown("D", "(default: sgd 1e-4, adamw 0.01, adam 0)")
    ] = None
    """On kernels only. By default that of gsm is what a run of this length needs."""
    every: Annotated[int | None, shown("N", "(default: a 50th of the run)")] = None
    """Steps between changes of masks. By default acdc has ten phases, ste no pause."""
    stop: Annotated[float | None, shown("F", "(default: 0.75)")] = None
    """The fraction of the run after which masks stay; those of granet move on."""
    rate: Annotated[float | None, shown("F", "(default: 0.2)")] = None
    """lottery: the fraction of the weights left that goes after each level."""

    def check(self) -> None:
        """Find bad values before anything is loaded or trained.

        Raises:
            ValueError: naming the option.
        """
        self.require_counts("epochs", "batch")
        if self.every is not None:
            self.require_counts("every")
        require_fraction("--sparsity", self.sparsity)
        if self.momentum is not None:
            require_fraction("--momentum", self.momentum)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"--learning-rate must be positive, got {self.learning_rate}"
            )
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"--weight-decay must be 0 or more, got {self.weight_decay}"
            )
        if self.stop is not None:
            require_fraction("--stop", self.stop, zero=False, one=True)
        if self.rate is not None:
            require_fraction("--rate", self.rate, zero=False)
        self._check_use()
        check_seed(self.seed, "--seed")

    def _check_use(self) -> None:
        """Raise for what the algorithm would leave aside without a word.

        All but the sparsity of dense, which is the control of what is called with it.
        """
        sparse = tuple(name for name in get_args(AlgorithmName) if name != "dense")
        gradual = tuple(GRADUAL)
        for name, users in (
            ("every", gradual), ("stop", gradual), ("rate", ("lottery",)),
            ("allocation", sparse),
        ):  # fmt: skip
            if getattr(self, name) is not None and self.algorithm not in users:
                raise ValueError(
                    f"--{name}: {self.algorithm} has no use for it; leave it out (it "
                    f"is for {', '.join(users)})"
                )
        if self.algorithm == "gsm" and self.optimizer not in (None, "sgd"):
            raise ValueError(
                f"--optimizer {self.optimizer}: gsm works by the momentum of sgd; "
                "leave it out"
            )
        name = train_algorithms.optimizer_name(self)
        if self.momentum is not None and name != "sgd":
            raise ValueError(
                f"--momentum: {name} has none of its own; leave it out, or take "
                "--optimizer sgd"
            )

    def plan(self, params: Params) -> Plan:
        """What to prune of params.

        Raises:
            ValueError: as `swapjax.plan` does.
        """
        sparsity = 0.0 if self.algorithm == "dense" else self.sparsity
        return plan(params, sparsity, allocation=train_algorithms.allocation(self))


def train(options: Train) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments and data; the folder is then as it was.
    """
    options.check()
    require_writable(options.out, "--out")
    data, model = options.load()
    setting = Setting(data, model, model.params)
    total = options.epochs * steps.per_epoch(data.train, options.batch, "--batch")
    target = options.plan(model.params)
    console.print(_introduction(options, data.name, total), soft_wrap=True)
    console.print(f"\n{target}\n", highlight=False)

    state = options.out / _STATE
    with folder(options.out, (_STATE, *_RESULTS)):
        if state.exists():
            console.print(f"Going on from {state}.", soft_wrap=True)
        outcome = carry_out(options, setting, target, total, state)
        accuracy, loss = runner.evaluate(setting, outcome.params)
        result = _result(options, outcome, accuracy, loss)
        _write(options, setting, outcome, result, total)
    state.unlink(missing_ok=True)
    console.print(report.training_table(outcome.history))
    console.print(report.layer_table(report.layers(outcome.params, outcome.masks)))
    before = ""
    if outcome.before is not None:
        before = f"{outcome.before[0]:.2f}% before the cut, "
    console.print(
        f"Test accuracy {before}{accuracy:.2f}% with {result['nonzeros']:,} of "
        f"{result['total']:,} weights ({result['seconds']:.1f} s).\n"
        f"Written to {options.out}: {', '.join(_RESULTS)}.",
        soft_wrap=True,
    )


def _introduction(options: Train, data: str, total: int) -> str:
    """What will happen, in a sentence or two."""
    rate, momentum, decay = train_algorithms.settings(options, total)
    name = train_algorithms.optimizer_name(options)
    text = f"Training {options.model} on {data}: {options.epochs} epochs, {total:,} "
    text += f"steps of {name} at {rate:.2g}"
    text += f" with momentum {momentum:.2g}" if name == "sgd" else ""
    text += f" and weight decay {decay:.2g}" if decay else ""
    if options.algorithm in GRADUAL:
        every, end = train_algorithms.mask_steps(options, total)
        often = f"every {every} steps" if every > 1 else "at every step"
        text += f". Masks change {often}"
        goes_on = GRADUAL[options.algorithm].rule().goes_on
        text += "; sparsity rises until" if goes_on else " until"
        text += f" step {end:,}"
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
    setting: Setting,
    outcome: Outcome,
    result: dict[str, Any],
    total: int,
) -> None:
    layers = report.layers(outcome.params, outcome.masks)
    title = f"{options.model} on {setting.data.name}, {options.algorithm} to "
    title += f"{result['sparsity']:g}: {result['accuracy']:.2f}%"
    params, kept, summary, picture = (options.out / name for name in _RESULTS)
    checkpoint.save_params(params, outcome.params)
    checkpoint.save_masks(kept, outcome.masks)
    plot.save(plot.training_figure(outcome.history, layers, title=title), picture)
    parts = "levels" if options.algorithm == "lottery" else "epochs"
    report.write_json(
        summary,
        {
            "result": result,
            "training": train_algorithms.told(options, total),
            parts: [part.to_dict() for part in outcome.history],
            "layers": layers,
            **circumstances(options, setting.data),
        },
    )
