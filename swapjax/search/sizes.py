"""How large many networks of a space are, without making each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from swapjax.search.genotype import Genotype
from swapjax.search.space import Space
from swapjax.search.tables import Table


def count_sizes(
    space: Space,
    genotypes: Sequence[Genotype],
    shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
) -> dict[str, np.ndarray]:
    """Count weights and multiplications of the networks of genotypes.

    Where cells are of one kind and have all of their edges, an operation costs the same
    on each of them: a network is the mean of the six, say, that have its operations
    everywhere, and as many networks are made as there are operations. Edges that
    nothing comes to count then, as published counts have them. Otherwise every network
    is made, about a tenth of a second each.

    Args:
        space: of all genotypes.
        genotypes: n of them.
        shape: of one image.
        classes: how many logits.

    Returns:
        ``"params"`` and ``"flops"``, float64[n], in millions.

    Raises:
        ValueError: for genotypes that are not of the space, and a shape that it cannot
            take.
    """
    if len(space.kinds) == 1 and space.kept is None:
        (kind,) = space.kinds
        edges = space.edges[kind]
        found = []
        for op in space.ops:
            one = Genotype(((kind, tuple((*edge, op) for edge in edges)),))
            found.append(_size(space, one, shape, classes))
        rows = np.array([space.encode(genotype)[kind] for genotype in genotypes])
        counts = np.array(found)[rows].mean(1) if len(rows) else np.zeros((0, 2))
    else:
        counts = np.array([_size(space, g, shape, classes) for g in genotypes])
    params, flops = counts.reshape(-1, 2).T / 1e6
    return {"params": params, "flops": flops}


def with_sizes(space: Space, tables: Sequence[Table]) -> tuple[Table, ...]:
    """Count the sizes of all architectures of tables that do not tell them.

    Args:
        space: of the tables.
        tables: those of the same architectures are counted once.

    Returns:
        The tables, all with columns ``"params"`` and ``"flops"``.

    Raises:
        ValueError: as `count_sizes` does.
    """
    counted: dict[int, dict[str, np.ndarray]] = {}
    found = []
    for table in tables:
        if not {"params", "flops"} <= set(table.columns):
            at = id(table.genotypes)
            if at not in counted:
                counted[at] = count_sizes(space, table.genotypes)
            columns = {**table.columns, **counted[at]}
            table = dataclasses.replace(table, columns=columns)
        found.append(table)
    return tuple(found)


def _size(
    space: Space, genotype: Genotype, shape: tuple[int, int, int], classes: int
) -> tuple[int, int]:
    network = space.network(genotype, shape, classes)
    return network.weights, network.macs
