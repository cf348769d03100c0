"""The options of the commands as data, and what finds bad ones."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from swapjax.cli import methods, network_options
from swapjax.cli.fields import (
    Positional,
    explained,
    one_of,
    require_counts,
    shown,
)
from swapjax.cli.methods import users
from swapjax.cli.network_options import Network
from swapjax.core.checks import require_fraction
from swapjax.core.text import printable
from swapjax.experiments.noise import KINDS, Noise, parse

SPARSITY = 0.9


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """What to prune, and how."""

    checkpoint: Annotated[Path | None, shown("PATH", "(default: train first)")] = None
    """Trained weights, .safetensors or .npz, PyTorch's names and layouts included; or a
    folder of shards, or their index."""
    epochs: int = 60
    """Passes over the training set, if the network is trained first."""
    method: Annotated[str, one_of(methods.NAMES, "kfac-regression")] = "kfac-regression"
    """How to choose and re-fit; the documentation has a page on each."""
    sparsity: float = SPARSITY
    """The fraction of prunable weights to remove."""
    pattern: Annotated[str | None, shown("N:M|channel", "(default: any entries)")] = (
        None
    )
    """Keep N of every M weights along the inputs, as 2:4, which implies the sparsity;
    or whole channels."""
    exclude: Annotated[str | None, shown("REGEX", "(default: nothing)")] = None
    """Leave weights whose path matches alone."""
    stages: int = 10
    """Rounds of gradients, support and re-fit on the way there."""
    schedule: Literal["exponential", "cubic", "linear", "one-shot"] = "exponential"
    """How sparsity climbs over the stages."""
    allocation: Literal["global", "uniform", "erk"] = "global"
    """How the weights to keep are spread over layers."""
    samples: int = 1000
    """Gradient rows a stage."""
    batch: int = 1
    """Training examples averaged into a row: 16 sees 16 times the data."""
    noise: Annotated[tuple[str, ...], shown("KIND[:LEVEL]…", "(default: clean)")] = (
        "clean",
    )
    """Spoil what pruning looks at, never the test set, in a way that is told above;
    compare takes several at once."""
    validation: Annotated[float | None, shown("FRACTION", "(default: none)")] = None
    """Hold this part of each stage's rows out, and judge by the loss on them."""
    target: Literal["hybrid", "smoothed", "debiased", "exact"] = "hybrid"
    """The variant of swap; hybrid is half regression, half transport."""
    epsilon: Annotated[float | None, shown("E", "(default: 0)")] = None
    """Entropic regularisation, in variances of projections; 0 sorts, inf averages."""
    perplexity: Annotated[float | None, shown("N", "")] = None
    """Choose epsilon so that an example has this many neighbours on average."""
    damping: Annotated[float | None, shown("L", "(default: whichever of several)")] = (
        None
    )
    """The ridge that holds weights, relative to gradients; more for noisier ones."""
    kappa: Annotated[float | None, shown("K", "(default: whichever of several)")] = None
    """How firmly what layers read holds weights; for kfac-regression."""
    block: Annotated[
        int | None,
        shown(
            "C",
            "(default: the method's)",
            f"Entries of a diagonal block of the Fisher; for {users('block')}.",
        ),
    ] = None
    first_order: Annotated[
        bool,
        explained(
            "Follow the mean gradient too, as far as it holds up; for "
            f"{users('first_order')}."
        ),
    ] = True
    finetune_steps: int = 0
    """Adam steps after each stage."""
    finetune_rate: float = 1e-3
    """The learning rate of those steps."""
    finetune_batch: int = 64
    """Examples in each of those steps."""
    storage: Literal["auto", "stored", "matrix-free"] = "auto"
    """Keep the gradient rows in memory, or recompute them in every product."""
    recalibrate: bool = True
    """Estimate statistics of batch norm anew after each stage, if there are any; with a
    --batch of 8 or more the harm is told by those of each row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Options):
    """Prune a trained network.

    Writes params.safetensors, masks.safetensors (one bit a weight), report.json and
    report.png to a folder, and dense.safetensors if it trained the network. Called
    again in the same words after an interruption, it goes on where it stopped.
    """

    out: Annotated[Path, shown("DIR")]
    """The folder to write to; made if need be."""
    json: Annotated[str | None, shown("FILE|-", "(default: none)")] = None
    """Write report.json here too; - for the standard output, which is then alone."""
    config: Annotated[Path | None, shown("REPORT", "(default: none)")] = None
    """Take the options that a report.json records; those given here win."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Options):
    """Compare methods at several sparsities and seeds.

    Prints a table of test accuracies. With --json each run is one line of a JSON list;
    runs that are already there are not repeated, so that an interrupted comparison
    goes on when it is called again in the same words. With --noise it takes one or more
    kinds, and tells what each method gains over linear-regression under each.
    """

    methods: Annotated[str | None, shown("A,B,C", "")] = None
    """Separated by commas, or all. By default --method alone."""
    sparsities: Annotated[str | None, shown("S1,S2", "")] = None
    """Separated by commas. By default --sparsity alone."""
    seeds: Annotated[str | None, shown("I,J", "")] = None
    """Separated by commas. By default --seed alone."""
    json: Annotated[Path | None, shown("FILE", "")] = None
    """The file to write the runs to."""
    out: Annotated[Path | None, shown("DIR", "")] = None
    """A folder for compare.png, under noise gains.png, and compare.json unless --json
    says where."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Prune a small network on real digits in three ways, in about a minute.

    Trains MLPNet on the scans that ship with scikit-learn, prunes it to five
    sparsities, from clean gradients and from noisy ones, prints a table and draws a
    picture.
    """

    out: Path = Path("demo")
    """The folder for demo.json and demo.png; made if need be."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show the arrays of a file of params or masks, and how sparse they are."""

    file: Positional[Path]
    """A .safetensors or .npz file."""


def description(command: type[Options]) -> str:
    """Write what --help says of a command that prunes, of networks and of noise."""
    first, _, last = (inspect.getdoc(command) or "").partition("\n\n")
    noises = [parse(kind) for kind in KINDS]
    lines = [f"- {n}: {n.told}." for n in noises if not KINDS[n.kind].images]
    words = ", ".join(str(n) for n in noises if KINDS[n.kind].images)
    lines.append(f"- {words}: images spoilt so, severity 1 to 5, as in CIFAR-10-C.")
    told = "Kinds of noise, at the level that a name alone means:\n" + "\n".join(lines)
    return f"{first}\n\n{network_options.networks()}\n\n{told}\n\n{last}"


def check(options: Options, names: Sequence[str]) -> None:
    """Find bad values before anything is loaded or trained.

    Args:
        options: of the command.
        names: of the methods that will run.

    Raises:
        ValueError: naming the option.
    """
    counts = ("epochs", "stages", "samples", "batch", "finetune_batch")
    require_counts(options, *counts)
    if options.finetune_steps < 0:
        raise ValueError(
            f"--finetune-steps must be 0 or more, got {options.finetune_steps}"
        )
    if not options.finetune_rate > 0:
        raise ValueError(
            f"--finetune-rate must be positive, got {options.finetune_rate}"
        )
    network_options.check(options)
    if options.validation is not None:
        require_fraction("--validation", options.validation, zero=False)
    noises(options)
    for name in methods.NAMES:  # an option may be bad for a method not asked for
        methods.make(name, options)
    methods.require_use(names, options)


def noises(options: Options) -> list[Noise]:
    """Read the kinds of noise asked for, each once.

    Raises:
        ValueError: for what is none, and for several where one network is pruned.
    """
    found = list(dict.fromkeys(parse(word, "--noise") for word in options.noise))
    if not found or (len(found) > 1 and isinstance(options, Prune)):
        wanted = "one kind" if isinstance(options, Prune) else "one or more kinds"
        got = " ".join(options.noise) or "none"
        raise ValueError(f"--noise: {wanted} wanted, got {printable(got)}")
    return found
