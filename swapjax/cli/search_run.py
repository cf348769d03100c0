"""What swapjax search does with a space and a proxy, seed by seed."""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from swapjax import search
from swapjax.cli import search_state
from swapjax.cli.console import console, progress
from swapjax.cli.search_options import Search, seeds_of
from swapjax.cli.search_state import Row
from swapjax.cli.search_tables import PROXIES, SPACES
from swapjax.experiments import datasets, runner
from swapjax.search import Genotype, Space

_SHAPE, _CLASSES = (32, 32, 3), 10  # without data


class Setup(NamedTuple):
    """What a search works with.

    Attributes:
        space: of the architectures.
        shape: of one image.
        classes: how many logits.
        batch: images and labels; None without data.
        origin: tells the data from other data, "" where there are none.
    """

    space: Space
    shape: tuple[int, int, int]
    classes: int
    batch: tuple[np.ndarray, np.ndarray] | None
    origin: str


def set_up(options: Search) -> Setup:
    """Make the space, and load data if the proxy is to look at any.

    Raises:
        ValueError: for data that cannot be loaded, and numbers of no such space.
    """
    given = {"channels": options.channels, "cells": options.cells}
    make = SPACES[options.space].make
    taken = {name: value for name, value in given.items() if value is not None}
    for name in taken.keys() - inspect.signature(make).parameters.keys():
        raise ValueError(f"--{name} {taken[name]}: {options.space} has no such number")
    space = make(**taken)
    if options.data is None:
        return Setup(space, _SHAPE, _CLASSES, None, "")
    data = datasets.load(options.data)
    height, width, *channels = data.shape
    shape = (height, width, *(channels or [1]))
    if len(shape) != 3:
        raise ValueError(f"--data {options.data}: images wanted, got {data.shape}")
    x, y = (part[: options.batch] for part in data.train)
    return Setup(
        space, shape, data.classes, (x.reshape(-1, *shape), y), runner.digest(data)
    )


def run(options: Search, setup: Setup, state: Path) -> list[Row]:
    """Search with each seed that no earlier call has finished, and keep each.

    Raises:
        ValueError: for a state of another search.
    """
    own = search_state.fingerprint(options, setup.origin)
    rows = search_state.read(state, own, setup.space)
    seeds = seeds_of(options)
    left = [seed for seed in seeds if seed not in rows]
    if rows:
        done = len(seeds) - len(left)
        console.print(f"{done} of {len(seeds)} seeds are done already.")
    if not left:
        return [rows[seed] for seed in seeds]
    with progress("compiling", len(left)) as (bar, task):
        one = _search_of(options, setup)
        for seed in left:
            bar.update(task, description=f"seed {seed}")
            started = time.perf_counter()
            genotype, scores, drawn = one(seed)
            seconds = time.perf_counter() - started
            rows[seed] = Row(seed, genotype, scores, drawn, seconds)
            search_state.write(state, own, rows.values())
            bar.advance(task)
            console.print(
                f"seed {seed}: {genotype} ({seconds:.1f} s)",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    return [rows[seed] for seed in seeds]


_One = Callable[[int], tuple[Genotype, dict[str, np.ndarray], dict[Genotype, float]]]


def _search_of(options: Search, setup: Setup) -> _One:
    """Make what searches with a seed; what it compiles is compiled and told now."""
    proxy, space = PROXIES[options.proxy], setup.space
    sizes: dict[str, Any] = {"shape": setup.shape, "classes": setup.classes}
    find = proxy.find
    if find is not None:
        images = None if setup.batch is None else setup.batch[0]
        told = {"images": images, "examples": options.batch, **sizes}
        return lambda seed: (find(space, jax.random.key(seed), **told), {}, {})
    if proxy.make is None:
        return lambda seed: _best_of_random(options, setup, seed)
    if proxy.needs == "nothing":
        score = proxy.make(space, shape=setup.shape)
    else:
        score = proxy.make(space, setup.batch)
    started = time.perf_counter()
    score(space.init(jax.random.key(0), **sizes), space.alpha())
    console.print(
        f"Compiled in {time.perf_counter() - started:.1f} s.", highlight=False
    )

    def one(seed: int) -> tuple[Genotype, dict[str, np.ndarray], dict]:
        found = search.remove(
            space, score, jax.random.key(seed),
            steps=options.steps, scope=options.scope,
            alpha=options.alpha or proxy.alpha, **sizes,
        )  # fmt: skip
        return found.genotype, found.scores, {}

    return one


def _best_of_random(
    options: Search, setup: Setup, seed: int
) -> tuple[Genotype, dict, dict[Genotype, float]]:
    """Score random architectures, and take the best."""
    genotypes = draw_genotypes(setup.space, seed, options.draws)
    images, labels = setup.batch or (None, None)
    scores = search.score_architectures(
        setup.space, genotypes, options.proxy, jax.random.key(seed),
        shape=setup.shape, classes=setup.classes, images=images, labels=labels,
        examples=options.batch,
    )  # fmt: skip
    drawn = dict(zip(genotypes, scores.tolist(), strict=True))
    return genotypes[int(scores.argmax())], {}, drawn


def draw_genotypes(space: Space, seed: int, count: int) -> list[Genotype]:
    """Draw architectures, all alike, each once: as many as asked for, or all."""
    rng, found = np.random.default_rng(seed), dict[Genotype, None]()
    shapes = {kind: (len(e), len(space.ops)) for kind, e in space.edges.items()}
    while len(found) < min(count, space.size):
        # Of random scores any operation may be the best.
        scores = {kind: rng.random(shape) for kind, shape in shapes.items()}
        found[space.genotype(scores)] = None
    return list(found)
