"""The options of the commands as data, and what finds bad ones."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from swapjax.cli import methods
from swapjax.cli.methods import users
from swapjax.core import extras
from swapjax.core.checks import require_fraction
from swapjax.core.text import printable
from swapjax.experiments.noise import KINDS, Noise, parse

try:
    import tyro
    from tyro.extras import literal_type_from_choices
except ImportError:
    extras.require("cli", __name__)
    raise

SPARSITY = 0.9


def shown(metavar: str, default: str | None = None, help: str | None = None) -> Any:
    """Say how --help names a value, tells of its default and explains it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default, help=help)


def inlined() -> Any:
    """Name the options of a group without a prefix of the group."""
    return tyro.conf.arg(name="")


def one_of(names: tuple[str, ...], default: str) -> Any:
    """Accept one of some names, which --help lists."""
    return tyro.conf.arg(
        constructor=literal_type_from_choices(names),
        help_behavior_hint=f"(default: {default})",
    )


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the data that it is for."""

    data: Annotated[str, shown("digits|PATH|tfds:NAME")] = "digits"
    """scikit-learn's digits, an .npz (x_train, y_train, x_test, y_test), or tfds."""
    data_dir: Annotated[Path | None, shown("DIR", "")] = None
    """Where tensorflow-datasets keeps its files."""
    model: Literal["mlpnet", "lenet300", "cnn"] = "mlpnet"
    """mlpnet: the paper's, 40 and 20 hidden units. lenet300: 300 and 100. cnn: two
    convolutions, two dense."""
    seed: int = 0
    """Of all that is random; the same seed gives the same result."""


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """What to prune, and how."""

    checkpoint: Annotated[Path | None, shown("PATH", "(default: train first)")] = None
    """Trained weights, .safetensors or .npz, PyTorch's names and layouts included."""
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
        tyro.conf.arg(
            help="Follow the mean gradient too, as far as it holds up; for "
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Options):
    """Prune a trained network.

    Writes params.safetensors, masks.safetensors (one bit a weight), report.json and
    report.png to a folder, and dense.safetensors if it trained the network. Called
    again in the same words after an interruption, it goes on where it stopped.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write to; made if need be."""


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

    file: tyro.conf.Positional[Path]
    """A .safetensors or .npz file."""


def description(command: type[Options]) -> str:
    """Write what --help says of a command that prunes, a kind of noise in a line."""
    first, _, last = (inspect.getdoc(command) or "").partition("\n\n")
    noises = [parse(kind) for kind in KINDS]
    lines = [f"- {n}: {n.told}." for n in noises if not KINDS[n.kind].images]
    words = ", ".join(str(n) for n in noises if KINDS[n.kind].images)
    lines.append(f"- {words}: images spoilt so, severity 1 to 5, as in CIFAR-10-C.")
    told = "Kinds of noise, at the level that a name alone means:\n" + "\n".join(lines)
    return f"{first}\n\n{told}\n\n{last}"


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
    check_seed(options.seed, "--seed")
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


def require_counts(options: object, *names: str) -> None:
    """Raise for options that count something, and are not 1 or more.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} must be 1 or more, got {getattr(options, name)}"
            )


def check_seed(seed: int, name: str) -> None:
    """Find seeds that JAX would not tell apart.

    Raises:
        ValueError: naming the option.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must be from 0 to {2**32 - 1}, got {seed}")
