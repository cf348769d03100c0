"""How pixels are standardised: as told, as a checkpoint tells, or by the data's own.

Weights are of use with the pixels that they were trained on, and no shape tells those.
So the standardisation is kept with weights, in the metadata of their file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors

from swapjax.cli.network_options import Network, numbers
from swapjax.core.text import printable
from swapjax.experiments.datasets import Dataset, told
from swapjax.experiments.models import Model

_KEYS = {"mean": "pixel_mean", "std": "pixel_std"}
_Numbers = tuple[float, ...]


class Pixels(NamedTuple):
    """What to standardise pixels with.

    Attributes:
        mean: what to subtract; None for the data's own.
        std: what to divide by; None for the data's own.
        sources: who says so, in words, of both.
        doubt: what to take care of, if anything.
    """

    mean: _Numbers | None
    std: _Numbers | None
    sources: tuple[str, str]
    doubt: str = ""

    def sentence(self, data: Dataset) -> str:
        """Say what was done to the pixels, and why."""
        of_mean, of_std = self.sources
        text = f"Pixels of {printable(data.name)}: less {told(data.mean)}"
        text += "" if of_mean == of_std else f" ({of_mean})"
        text += f", divided by {told(data.std)} ({of_std})."
        return f"{text}\nTake care: {self.doubt}." if self.doubt else text


def choose(options: Network, checkpoint: Path | None = None) -> Pixels:
    """Choose between the command line, a checkpoint and the data.

    Args:
        options: of the command.
        checkpoint: the file of weights, if they are not trained here.

    Raises:
        ValueError: for a checkpoint that tells otherwise than the options.
    """
    kept = {} if checkpoint is None else _kept(checkpoint)
    chosen: dict[str, _Numbers | None] = {}
    sources = []
    for name in _KEYS:
        given, there = numbers(getattr(options, name), f"--{name}"), kept.get(name)
        if given and there and _one(given) != _one(there):
            raise ValueError(
                f"--{name} {told(given)}: {printable(checkpoint)} was trained on "
                f"pixels with {told(there)}; leave it out"
            )
        chosen[name] = given or there
        source = "as the checkpoint has it" if there else "the data's own"
        sources.append("as given" if given else source)
    missing = [f"--{name}" for name, value in chosen.items() if value is None]
    doubt = ""
    if checkpoint is not None and missing:
        doubt = f"{printable(checkpoint)} does not tell what pixels it was trained on; "
        doubt += f"unless on those, give {' and '.join(missing)}"
    return Pixels(chosen["mean"], chosen["std"], (sources[0], sources[1]), doubt)


def _one(scale: _Numbers) -> _Numbers:
    """Say once what is the same for all channels."""
    return scale[:1] if len(set(scale)) == 1 else scale


def notes(data: Dataset, model: Model) -> dict[str, str]:
    """Return what to keep with weights in their file."""
    scales = {key: told(getattr(data, name)) for name, key in _KEYS.items()}
    return {"model": model.name, **scales}


def _kept(path: Path) -> Mapping[str, _Numbers]:
    """Read what a file of weights tells of pixels; nothing where it tells nothing.

    Raises:
        ValueError: for what are no numbers.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}  # which is told by whoever reads the weights
    return {
        name: numbers(metadata[key], f"--{name} of {printable(path)}") or ()
        for name, key in _KEYS.items()
        if key in metadata
    }
