"""What a search has found, for people, programs and the eye."""

import collections
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table as Grid
from rich.text import Text

from swapjax.cli.console import console
from swapjax.cli.search_options import Search
from swapjax.cli.search_run import Setup
from swapjax.cli.search_state import Row
from swapjax.cli.search_tables import SPACES
from swapjax.experiments.cell_plot import cell_figure
from swapjax.search import (
    Agreement,
    Genotype,
    Place,
    Repeats,
    Table,
    add_scores,
    count_sizes,
    load_tables,
    place,
    rank,
    repeats,
    with_sizes,
)
from swapjax.search.space import Space

_FEWEST = 10  # architectures to rank, as fewer tell nothing
_RESAMPLES = 100  # of the bootstrap


class Judged(NamedTuple):
    """A search beside what needs none, on one table.

    Attributes:
        table: of accuracies.
        places: of choices.
        ranks: of scores.
        left_out: scores that rank nothing, as all are equal or some not finite.
    """

    table: Table
    places: Mapping[str, Place]
    ranks: Mapping[str, Agreement]
    left_out: tuple[str, ...] = ()


class Found(NamedTuple):
    """What comes of all seeds.

    Attributes:
        at: the first of the rows with the genotype that was found most often.
        row: itself.
        sizes: params and flops of each row's network, in millions, with the channels
            and cells of the supernet that was searched.
        repeats: how far seeds agree; None of one seed.
        judged: table by table.
    """

    at: int
    row: Row
    sizes: list[tuple[float, float]]
    repeats: Repeats | None
    judged: list[Judged]


def load(options: Search) -> tuple[Table, ...]:
    """Load the tables of the space, none without --tables.

    Raises:
        ValueError: for a file that does not match, and one without tables of the space.
    """
    if options.tables is None:
        return ()
    return load_tables(options.tables).of(options.space)


def find(setup: Setup, rows: Sequence[Row], tables: Sequence[Table]) -> Found:
    """Count, compare and judge."""
    space = setup.space
    genotypes = [row.genotype for row in rows]
    often = collections.Counter(genotypes).most_common(1)[0][0]
    counts = count_sizes(space, genotypes, setup.shape, setup.classes)
    sizes = list(zip(*(counts[n].tolist() for n in ("params", "flops")), strict=True))
    agree = None
    if len(rows) > 1:
        agree = repeats(genotypes)
    at = genotypes.index(often)
    row = rows[at]
    # Tables are of the space as published, whatever supernet has searched.
    published = SPACES[setup.space.name].make() if tables else space
    judged = [
        _judge(space, row, genotypes, table) for table in with_sizes(published, tables)
    ]
    return Found(at, row, sizes, agree, judged)


def _judge(
    space: Space, row: Row, genotypes: Sequence[Genotype], table: Table
) -> Judged:
    """Place the choices, and rank all architectures that there are scores of."""
    placed, scores = place(table, {"found": genotypes}), {}
    if row.drawn:
        some = [genotype for genotype in row.drawn if table.has(genotype)]
        table = table.take([table.row(genotype) for genotype in some])
        scores["score"] = np.array([row.drawn[genotype] for genotype in some])
    elif row.scores:
        scores["sum of scores"] = add_scores(space, row.scores, table.genotypes)
    if len(table) < _FEWEST:
        return Judged(table, placed, {})
    bad = tuple(
        name
        for name, values in scores.items()
        if not np.isfinite(values).all() or not np.ptp(values)
    )
    scores = {name: x for name, x in scores.items() if name not in bad}
    if not np.ptp(table.accuracy):
        return Judged(table, placed, {}, bad)
    return Judged(table, placed, rank(table, scores, resamples=_RESAMPLES), bad)


def summary(
    options: Search, space: Space, rows: Sequence[Row], found: Found
) -> dict[str, Any]:
    """Return all of it, as JSON takes it."""
    return {
        "result": {
            "genotype": str(found.row.genotype),
            "params": found.sizes[found.at][0],
            "flops": found.sizes[found.at][1],
            "scores": {kind: x.tolist() for kind, x in found.row.scores.items()},
            "drawn": {str(g): score for g, score in found.row.drawn.items()},
        },
        "space": {
            "name": space.name,
            "architectures": space.size,
            "ops": space.ops,
            "edges": space.edges,
        },
        "seeds": [
            {
                "seed": row.seed,
                "genotype": str(row.genotype),
                "params": params,
                "flops": flops,
                "seconds": row.seconds,
            }
            for row, (params, flops) in zip(rows, found.sizes, strict=True)
        ],
        "repeats": None if found.repeats is None else found.repeats._asdict(),
        "tables": [
            {
                "table": str(judged.table),
                "places": {k: p._asdict() for k, p in judged.places.items()},
                "ranks": {
                    k: {
                        n: v._asdict() if hasattr(v, "_asdict") else v
                        for n, v in r._asdict().items()
                    }
                    for k, r in judged.ranks.items()
                },
                "left_out": judged.left_out,
            }
            for judged in found.judged
        ],
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "versions": {n: importlib.metadata.version(n) for n in ("swapjax", "jax")},
    }


def figure(options: Search, space: Space, rows: Sequence[Row], found: Found) -> Figure:
    """Draw the cells that were found most often, and the scores they come from."""
    count = sum(row.genotype == found.row.genotype for row in rows)
    title = f"{options.space} by {options.proxy}, {count} of {len(rows)} seeds"
    return cell_figure(
        found.row.genotype, title=title, scores=found.row.scores or None,
        edges=space.edges, ops=space.ops,
    )  # fmt: skip


def tell(found: Found) -> None:
    """Print the architecture, what it costs, and where it stands."""
    params, flops = found.sizes[found.at]
    console.print(f"\n{found.row.genotype}", soft_wrap=True, highlight=False)
    console.print(
        f"{params:.3f} million weights, {flops:.1f} million multiplications an image.",
        highlight=False,
    )
    if found.repeats is not None:
        many = found.repeats
        console.print(
            f"{many.often} of {many.runs} seeds find it, {many.distinct} different in "
            f"all; two seeds agree on {many.parts:.0%} of the operations.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    for group in _groups(found.judged):
        told = "a surrogate's"
        if group[0].table.epochs is not None:
            told = f"after {group[0].table.epochs} epochs"
        console.print(
            f"\nAccuracy in percent on {group[0].table.measured} images, {told}, and "
            "the percentage of architectures it surpasses:",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        console.print(place_table(group))
        for name in dict.fromkeys(name for part in group for name in part.left_out):
            console.print(
                f"The {name} ranks nothing here: equal for all, or not finite.",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
        if not group[0].ranks:
            continue
        console.print(
            f"Spearman correlation with it over {len(group[0].table):,} architectures, "
            "with 95% bootstrap intervals:",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        console.print(rank_table(group))
    if found.judged:
        console.print(
            "\nA score is worth its time where it beats the largest network and random "
            "search.\n",
            soft_wrap=True,
        )


def place_table(judged: Sequence[Judged]) -> Grid:
    """Show where choices stand: one line a choice, one column a data set."""
    grid = _grid("choice", [part.table.dataset for part in judged])
    for name in judged[0].places:
        cells = []
        for row in (part.places[name] for part in judged):
            share = "" if np.isnan(row.percentile) else f" ({row.percentile:2.0f})"
            there = not np.isnan(row.accuracy)
            cells.append(f"{row.accuracy:.2f}{share:5}" if there else "not there")
        grid.add_row(Text(name), *cells)
    return grid


def rank_table(judged: Sequence[Judged]) -> Grid:
    """Show how scores rank all architectures of a table."""
    grid = _grid("score", [part.table.dataset for part in judged])
    for name in judged[0].ranks:
        found = (part.ranks[name].spearman for part in judged)
        cells = (f"{x.value:.3f} [{x.low:.2f}, {x.high:.2f}]" for x in found)
        grid.add_row(Text(name), *cells)
    return grid


def _groups(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Put tables of the same architectures together."""
    groups: dict[tuple, list[Judged]] = {}
    for part in judged:
        key = part.table.epochs, len(part.table), part.table.measured
        groups.setdefault(key, []).append(part)
    return list(groups.values())


def _grid(first: str, others: Sequence[str]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    grid.add_column(first, no_wrap=True)
    for name in others:
        grid.add_column(name, justify="right", no_wrap=True)
    return grid
