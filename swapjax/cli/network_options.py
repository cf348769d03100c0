"""The options of a network and its data, which several commands share."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

from swapjax.cli.fields import check_seed, shown
from swapjax.core.text import printable
from swapjax.experiments.names import NETWORKS

# What --help tells of networks that have no name here.
_OTHERS = {
    "SPACE:GENOTYPE": (
        'what search finds, as "nb201(8,1):|nor_conv_3x3~0|+...", of 8 channels and 1 '
        "cell a stage"
    ),
    "MODULE:FUNCTION": (
        "your own: my_file:make calls make() in my_file.py of this folder, or "
        "dir/my_file.py:make. It returns (params, apply, loss): a pytree of arrays, "
        "apply(params, images) -> logits, loss(params, (images, labels)) -> mean loss; "
        "it may have arguments shape, classes, seed. Batch norm needs two functions "
        "more, see the documentation, Command line"
    ),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the data that it is for."""

    data: Annotated[str, shown("digits|PATH|tfds:NAME")] = "digits"
    """scikit-learn's digits, an .npz (x_train, y_train, x_test, y_test), or tfds."""
    data_dir: Annotated[Path | None, shown("DIR", "")] = None
    """Where tensorflow-datasets keeps its files."""
    mean: Annotated[str | None, shown("M[,M,M]", "(default: the data's own)")] = None
    """What to subtract from pixels, of 0 to 1; kept with weights, and read back."""
    std: Annotated[str | None, shown("S[,S,S]", "(default: the data's own)")] = None
    """What to divide them by then; one number, as the mean, or one per channel."""
    model: Annotated[str, shown("NAME|MODULE:FUNCTION")] = "mlpnet"
    """One of those above, or your own."""
    seed: int = 0
    """Of all that is random; the same seed gives the same result."""
    quiet: bool = False
    """Show nothing but errors and warnings."""


def networks() -> str:
    """Write what --help says of networks, one in a line."""
    lines = (f"- {name}: {text}." for name, text in (NETWORKS | _OTHERS).items())
    return "Networks:\n" + "\n".join(lines)


def check(options: Network) -> None:
    """Find bad values before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    check_seed(options.seed, "--seed")
    numbers(options.mean, "--mean")
    numbers(options.std, "--std")


def numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    """Read numbers separated by commas.

    Args:
        text: of the option, None where it was not given.
        name: of the option; deviations must be positive.

    Raises:
        ValueError: naming the option.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    least = 0 if name == "--std" else -math.inf
    if not all(least < number < math.inf for number in found):
        wanted = "positive numbers" if name == "--std" else "numbers"
        raise ValueError(
            f"{name}: {wanted} wanted, one or one per channel separated by commas, got "
            f"{printable(text)!r}"
        )
    return found
