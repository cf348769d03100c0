"""The options of swapjax train, what finds bad ones, and what follows from them."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Annotated, Literal

from swapjax.cli import backward_options, network_options, robust_options
from swapjax.cli.fields import inlined, one_of, require_counts, shown
from swapjax.cli.network_options import Network
from swapjax.core.checks import require_fraction, take_amount
from swapjax.pruning.methods import METHODS
from swapjax.training.rules import RULES

# Rules that change masks as they train, and methods whose masks of the initial weights
# stay; a method that looks at nothing but weights has no use there.
GRADUAL = {name: rule for name, rule in RULES.items() if rule.schedule is not None}
BEFORE = {
    name: row
    for name, row in METHODS.items()
    if row.kind == "untrained" and row.needs in ("gradients", "network")
}
# Those that train all weights, and cut them in the end; of these, those by ADMM.
CUT = {
    "gsm": "most weights follow their decay alone, and are cut in the end",
    "admm": "weights are drawn to a sparse copy of themselves, and cut in the end",
    "safe": "as admm, along gradients from where the loss is worse nearby",
    "elsa": "as admm, and Adam's second moment tells which weights matter",
}
DRAWN = ("admm", "safe", "elsa")
NAMES = ("dense", *RULES, *BEFORE, *CUT, "lottery")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Network):
    """Train a network that is sparse in the end.

    Writes params.safetensors, masks.safetensors (one bit a weight), report.json and
    train.png to a folder. Called again in the same words after an interruption, it goes
    on after the last epoch that was finished.
    """

    out: Annotated[Path, shown("DIR")]
    """The folder to write to; made if need be."""
    algorithm: Annotated[str, one_of(NAMES, "granet")] = "granet"
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
        shown("sgd|adam|adamw", "(default: adam; gsm, admm, safe, sr- losses: sgd)"),
    ] = None
    """What moves the weights; its learning rate falls to 0 along a cosine."""
    learning_rate: Annotated[
        float | None, shown("R", "(default: sgd 0.05, adam 0.003)")
    ] = None
    """The learning rate at the start. By default that of gsm is 1 - momentum, and of
    sgd with sr- losses 0.01."""
    momentum: Annotated[float | None, shown("M", "(default: 0.9)")] = None
    """Of sgd, Nesterov's but with sr- losses. By default that of gsm is 0.99, or less
    in a short run."""
    weight_decay: Annotated[
        float | None, shown("D", "(default: sgd 1e-4, adamw 0.01, adam 0)")
    ] = None
    """On kernels only. By default that of gsm is what a run of this length needs."""
    every: Annotated[int | None, shown("N", "(default: a 50th of the run)")] = None
    """Steps between changes of masks. By default acdc has ten phases, ste no pause, and
    admm, safe and elsa change their sparse copy every 32 steps."""
    stop: Annotated[float | None, shown("F", "(default: 0.75)")] = None
    """The fraction of the run after which masks stay; those of granet move on."""
    rate: Annotated[float | None, shown("F", "(default: 0.2)")] = None
    """lottery: the fraction of the weights left that goes after each level."""
    penalty: Annotated[float | None, shown("P", "(default: 78 / steps)")] = None
    """admm, safe, elsa: how firmly weights are drawn to their sparse copy, but for elsa
    in the end. That of sgd is by default times (1 - momentum) / rate."""
    radius: Annotated[float | None, shown("R", "(default: 0.1)")] = None
    """safe: how far away gradients are taken."""
    against: Annotated[robust_options.Against, inlined()] = dataclasses.field(
        default_factory=robust_options.Against
    )
    """What it has to hold against."""
    backward: Annotated[backward_options.Backward, inlined()] = dataclasses.field(
        default_factory=backward_options.Backward
    )
    """How gradients are sent back."""
    json: Annotated[str | None, shown("FILE|-", "(default: none)")] = None
    """Write report.json here too; - for the standard output, which is then alone."""
    config: Annotated[Path | None, shown("REPORT", "(default: none)")] = None
    """Take the options that a report.json records; those given here win."""


def description() -> str:
    """Write what --help says of the command, every algorithm in a line."""
    told = {
        "dense": "nothing goes, the control",
        **{name: rule.summary for name, rule in RULES.items()},
        **{name: f"static masks, made before training by this method ({row.summary})"
           for name, row in BEFORE.items()},
        **CUT,
        "lottery": "train, prune a little, go back to the start, again and again",
    }  # fmt: skip
    first, _, last = (inspect.getdoc(Train) or "").partition("\n\n")
    algorithms = "\n".join(f"- {name}: {text}." for name, text in told.items())
    against = "\n".join(f"- {n}: {text}." for n, text in robust_options.TOLD.items())
    return (
        f"{first}\n\n{network_options.networks()}\n\nThe algorithms:\n{algorithms}"
        f"\n\nTraining on attacked images, --robust, minimises:\n{against}\n\n{last}"
    )


def check(options: Train) -> None:
    """Find bad values before anything is loaded or trained.

    Raises:
        ValueError: naming the option.
    """
    require_counts(options, "epochs", "batch")
    if options.every is not None:
        require_counts(options, "every")
    require_fraction("--sparsity", options.sparsity)
    if options.momentum is not None:
        require_fraction("--momentum", options.momentum)
    if options.learning_rate is not None and not 0 < options.learning_rate < math.inf:
        raise ValueError(
            f"--learning-rate must be positive, got {options.learning_rate}"
        )
    if options.weight_decay is not None and not 0 <= options.weight_decay < math.inf:
        raise ValueError(
            f"--weight-decay must be 0 or more, got {options.weight_decay}"
        )
    if options.stop is not None:
        require_fraction("--stop", options.stop, zero=False, one=True)
    if options.rate is not None:
        require_fraction("--rate", options.rate, zero=False)
    for name in ("penalty", "radius"):
        if getattr(options, name) is not None:
            take_amount(f"--{name}", getattr(options, name))
    _check_use(options)
    robust_options.check(options.against, options.algorithm)
    backward_options.check(options.backward, options.algorithm, options.against)
    network_options.check(options)


def _check_use(options: Train) -> None:
    """Raise for options that the algorithm would ignore.

    The sparsity is not one of them: dense ignores it, but is the control of algorithms
    that are called with it.
    """
    sparse = tuple(name for name in NAMES if name != "dense")
    gradual = tuple(GRADUAL)
    for name, users in (
        ("every", (*gradual, *DRAWN)), ("stop", gradual), ("rate", ("lottery",)),
        ("allocation", sparse), ("penalty", DRAWN), ("radius", ("safe",)),
    ):  # fmt: skip
        if getattr(options, name) is not None and options.algorithm not in users:
            raise ValueError(
                f"--{name}: {options.algorithm} has no use for it; leave it out (it "
                f"is for {', '.join(users)})"
            )
    if options.algorithm == "gsm" and options.optimizer not in (None, "sgd"):
        raise ValueError(
            f"--optimizer {options.optimizer}: gsm works by the momentum of sgd; "
            "leave it out"
        )
    if options.algorithm == "elsa" and options.optimizer == "sgd":
        raise ValueError(
            "--optimizer sgd: elsa goes by the second moment of adam; leave it out"
        )
    optimizer = optimizer_name(options)
    if options.momentum is not None and optimizer != "sgd":
        raise ValueError(
            f"--momentum: {optimizer} has none of its own; leave it out, or take "
            "--optimizer sgd"
        )


def optimizer_name(options: Train) -> str:
    """Return the name of what moves the weights."""
    if options.algorithm == "gsm":
        return "sgd"
    # What their authors have; elsa goes by the second moment of adam.
    own = "sgd" if options.algorithm in ("admm", "safe") else "adam"
    if regularized(options) and options.algorithm != "elsa":
        own = "sgd"
    return options.optimizer or own


def regularized(options: Train) -> bool:
    """Tell whether the loss is a sparse regularisation."""
    return options.against.loss in robust_options.SPARSE_LOSSES
