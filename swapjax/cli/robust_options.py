"""The options of what training has to hold against, and what finds bad ones."""

import dataclasses
import math
from typing import Annotated, Literal, NamedTuple, get_args

from swapjax.cli.fields import one_of, require_counts, shown
from swapjax.core.checks import take_amount
from swapjax.core.text import printable
from swapjax.corruptions import LABEL_MAPS
from swapjax.robust import LABEL_LOSSES, LABEL_OBJECTIVES, suite

Framework = Literal["pgd-at", "trades", "alp", "mart", "freeat", "fastat"]
FRAMEWORKS: tuple[str, ...] = get_args(Framework)
MANY_STEPS = ("pgd-at", "trades", "alp", "mart")
SPARSE_LOSSES = tuple(name for name in LABEL_OBJECTIVES if name.startswith("sr-"))
LABEL_NOISES = ("symmetric", "pairs", *LABEL_MAPS)

TOLD = {
    "pgd-at": "the loss where the attack of many steps leads",
    "trades": "the loss, and how far an attack moves the outputs, weighed by --beta",
    "alp": "the loss here and there, and the distance of outputs, weighed by --beta",
    "mart": "as trades, images that are misclassified weighing more",
    "freeat": "each batch --replays times, its attack made of the same gradients",
    "fastat": "the loss where one long step from a random start leads",
}


class LabelNoise(NamedTuple):
    """What ``--label-noise`` asks for.

    Attributes:
        kind: of `LABEL_NOISES`.
        rate: the share of labels that become wrong, of the classes concerned.
    """

    kind: str
    rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against:
    """What training has to hold against."""

    robust: Annotated[
        Framework | None, shown("|".join(FRAMEWORKS), "(default: none)")
    ] = None
    """Train on attacked images, in one of the ways above; dense or with any algorithm
    but lottery."""
    hypersphere: bool = False
    """Normalise features and weights of the last layer, so that outputs are cosines."""
    scale: Annotated[
        float | None, shown("S", "(default: 10; trades, fastat 15; alp 20)")
    ] = None
    """hypersphere: what cosines are multiplied by in the loss."""
    margin: Annotated[float | None, shown("M", "(default: 0.2, alp 0.3)")] = None
    """hypersphere: what the cosine of the label is lowered by in training."""
    epsilon: Annotated[
        float | None, shown("E", "(default: 0.1, for colour images 8/255)")
    ] = None
    """How far an attack may move each pixel, in training and in the end, as a part of
    the range of pixels."""
    attack_steps: Annotated[int | None, shown("N", "(default: 10)")] = None
    """pgd-at, trades, alp, mart: steps of the attack in training."""
    attack_step: Annotated[float | None, shown("A", "(default: 2.5 E / N)")] = None
    """How long one of them is, as a part of the range of pixels. That of fastat is by
    default 1.25 epsilon, of freeat epsilon."""
    replays: Annotated[int | None, shown("R", "(default: 8)")] = None
    """freeat: steps that a batch is taken for in a row; divide --epochs by it."""
    beta: Annotated[float | None, shown("B", "(default: 6, 0.5, 5)")] = None
    """trades, alp, mart: the weight of the second term."""
    loss: Annotated[str, one_of(tuple(LABEL_OBJECTIVES), "ce")] = "ce"
    """What is minimised: losses for noisy labels, and sr-NAME, sparse regularisation of
    one, whose settings follow from the kind of images."""
    label_noise: Annotated[str | None, shown("KIND:RATE", "(default: none)")] = None
    """Make this part of the labels of each class wrong in training, never in the test:
    symmetric, pairs (the next class), or classes that look alike of mnist, cifar10,
    cifar100."""
    attack: Annotated[
        tuple[str, ...],
        shown("NAME[:STEPS]…", "(default: four with --robust, else none)"),
    ] = ()
    """What to attack the network with in the end, the worst for each image counting:
    fgsm, pgd-ce, pgd-margin, pgd-dlr, apgd-ce, apgd-margin, apgd-dlr, apgd-t, square;
    or none."""
    attack_images: int = 1000
    """How many of the test images, at most, the first ones."""

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks in the end."""
        if self.attack == ("none",):
            return ()
        return self.attack or (suite.DEFAULT if self.robust else ())

    @property
    def noise(self) -> LabelNoise | None:
        """The noise of labels that is asked for.

        Raises:
            ValueError: for what is none.
        """
        if self.label_noise is None:
            return None
        kind, _, text = self.label_noise.partition(":")
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if kind not in LABEL_NOISES or not 0 <= rate < 1:
            raise ValueError(
                f"--label-noise: KIND:RATE wanted, KIND one of "
                f"{', '.join(LABEL_NOISES)} and RATE in [0, 1), got "
                f"{printable(self.label_noise)!r}"
            )
        return LabelNoise(kind, rate)


def check(options: Against, algorithm: str) -> None:
    """Find bad values before anything is loaded or trained.

    Args:
        options: of the command.
        algorithm: that they go with.

    Raises:
        ValueError: naming the option.
    """
    for name in ("attack_steps", "replays", "attack_images"):
        if getattr(options, name) is not None:
            require_counts(options, name)
    for name in ("epsilon", "attack_step", "beta", "margin"):
        if getattr(options, name) is not None:
            take_amount(f"--{name.replace('_', '-')}", getattr(options, name))
    if options.epsilon is not None and options.epsilon > 1:
        raise ValueError(
            "--epsilon is a part of the range of pixels, from 0 to 1, got "
            f"{options.epsilon}"
        )
    if options.scale is not None and not 0 < options.scale < math.inf:
        raise ValueError(f"--scale must be positive, got {options.scale}")
    _ = options.noise
    _check_attacks(options)
    _check_use(options)
    _check_together(options, algorithm)


def _check_attacks(options: Against) -> None:
    if not options.attacks:
        return
    try:
        suite.attacks_of(options.attacks, classes=10, scale=None, restarts=1)
    except ValueError:
        raise ValueError(
            f"--attack: none, or some of {', '.join(suite.NAMES)} wanted, each once "
            "and as NAME or NAME:STEPS (fgsm has one step), got "
            f"{printable(' '.join(options.attacks))!r}"
        ) from None


def _check_use(options: Against) -> None:
    """Raise for options that nothing would look at."""
    framework = options.robust
    for name, users in (
        ("attack_steps", MANY_STEPS), ("attack_step", FRAMEWORKS),
        ("replays", ("freeat",)), ("beta", ("trades", "alp", "mart")),
    ):  # fmt: skip
        if getattr(options, name) is not None and framework not in users:
            got = f"--robust {framework}" if framework else "a run without --robust"
            raise ValueError(
                f"--{name.replace('_', '-')}: {got} has no use for it; leave it out "
                f"(it is for --robust {', '.join(users)})"
            )
    for name in ("scale", "margin"):
        if getattr(options, name) is not None and not options.hypersphere:
            raise ValueError(
                f"--{name}: a run without --hypersphere has no use for it; leave it out"
            )
    if options.epsilon is not None and not (framework or options.attacks):
        raise ValueError(
            "--epsilon: nothing is attacked; leave it out, or give --robust or --attack"
        )


def _check_together(options: Against, algorithm: str) -> None:
    """Raise for what cannot be combined."""
    plain = options.loss in LABEL_LOSSES
    if not plain and (options.robust or options.hypersphere):
        other = f"--robust {options.robust}" if options.robust else "--hypersphere"
        raise ValueError(
            f"--loss {options.loss}: {other} takes a loss of an example and its label, "
            f"one of {', '.join(LABEL_LOSSES)}"
        )
    if algorithm != "lottery":
        return
    wrong = "" if plain else f"--loss {options.loss}"
    wrong = f"--robust {options.robust}" if options.robust else wrong
    if wrong:
        raise ValueError(
            f"{wrong}: lottery trains its levels by a loss that draws and remembers "
            "nothing; take another algorithm"
        )
