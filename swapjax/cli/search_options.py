"""The options of swapjax search, what finds bad ones, and what --help says."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Literal

from swapjax.cli.fields import check_seed, one_of, shown
from swapjax.cli.search_tables import PROXIES, SPACES, ProxyRow
from swapjax.core.checks import require_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Find an architecture without training it.

    Makes a network that has all operations of a space on all edges, with random
    weights; scores each operation; removes those that score least, until one is left on
    every edge. Prints the genotype of each seed, what it costs and how far seeds agree;
    with --tables also how accurate it is once trained, beside the largest network and
    beside random search, which a score has to beat. Writes report.json and search.png
    to a folder. Called again in the same words after an interruption, it goes on after
    the last seed that was finished. A first call compiles, for up to a minute.

    First: swapjax search --space toy --out found
    """

    out: Annotated[Path, shown("DIR")]
    """The folder to write to; made if need be."""
    space: Annotated[str, one_of(tuple(SPACES), "nb201")] = "nb201"
    """One of those above."""
    proxy: Annotated[str, one_of(tuple(PROXIES), "freeflow")] = "freeflow"
    """What scores, one of those above."""
    steps: int = 1
    """Scores are taken anew between so many removals; 1 takes the best at once."""
    scope: Literal["global", "edge"] = "global"
    """Which operations compete in a removal: all, or those of an edge."""
    alpha: Annotated[
        Literal["ones", "random"] | None, shown("ones|random", "(default: the proxy's)")
    ] = None
    """What operations are multiplied by: ones, or small random numbers, which
    synflow-ops takes, as all operations tie without them."""
    seeds: Annotated[str, shown("I,J", "(default: 0)")] = "0"
    """Of the weights, separated by commas; each gives an architecture."""
    tables: Annotated[Path | None, shown("PATH", "(default: none)")] = None
    """An .npz of the accuracies of trained architectures."""
    data: Annotated[str | None, shown("digits|PATH|tfds:NAME", "(default: none)")] = (
        None
    )
    """Images and labels, as for train, for proxies that look at them; random images,
    where labels do not matter, without it."""
    batch: int = 32
    """How many images: the first to train with."""
    draws: int = 100
    """Random architectures to choose among, for proxies that score whole networks."""
    channels: Annotated[int | None, shown("C", "(default: the space's)")] = None
    """Of the first stage of the supernet."""
    cells: Annotated[int | None, shown("N", "(default: the space's)")] = None
    """In the supernet; in nb201, in each of its three stages."""


def description() -> str:
    """Write what --help says of the command, a space and a proxy in a line."""
    first, _, last = (inspect.getdoc(Search) or "").partition("\n\n")
    spaces = "\n".join(f"- {name}: {row.summary}." for name, row in SPACES.items())
    proxies = "\n".join(f"- {name}: {row.summary}." for name, row in PROXIES.items())
    return f"{first}\n\nThe spaces:\n{spaces}\n\nThe proxies:\n{proxies}\n\n{last}"


def seeds_of(options: Search) -> list[int]:
    """Read --seeds, each once.

    Raises:
        ValueError: for what are no whole numbers.
    """
    try:
        seeds = [int(word) for word in options.seeds.split(",")]
    except ValueError:
        raise ValueError(
            f"--seeds: whole numbers separated by commas wanted, got {options.seeds!r}"
        ) from None
    return list(dict.fromkeys(seeds))


def check(options: Search) -> None:
    """Find bad values before anything is loaded or compiled.

    Raises:
        ValueError: naming the option.
    """
    for seed in seeds_of(options):
        check_seed(seed, "--seeds")
    for name in ("steps", "batch", "draws", "channels", "cells"):
        value = getattr(options, name)
        if value is not None:
            require_count(f"--{name}", value)
    proxy = PROXIES[options.proxy]
    if proxy.needs == "nothing" and options.data is not None:
        raise ValueError(
            f"--data {options.data}: {options.proxy} looks at no data; leave it out"
        )
    if proxy.needs == "labels" and options.data is None:
        raise ValueError(
            f"--proxy {options.proxy} looks at images and labels: name them by --data"
        )
    for name in unused(proxy):
        value = getattr(options, name)
        if value != getattr(Search, name):
            raise ValueError(
                f"--{name} {value}: {options.proxy} has no use for it; leave it out"
            )


def unused(proxy: ProxyRow) -> tuple[str, ...]:
    """Name the options that a proxy does not look at."""
    idle = {
        "steps": proxy.make is None,
        "scope": proxy.make is None,
        "alpha": proxy.make is None,
        "draws": proxy.make is not None or proxy.find is not None,
        "batch": proxy.needs == "nothing",
    }
    return tuple(name for name, whether in idle.items() if whether)
