"""How large many networks of a space are, without making each."""

import dataclasses
import functools
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

    Where an operation costs the same on every edge, as in cells of one kind all of
    whose edges are there, a network is the mean of those that have one of its
    operations everywhere, and as many networks are made as there are operations. Edges
    that nothing comes to count then, as published counts have them. Otherwise every
    network is made, about a tenth of a second each.

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
    of_each = _of_each(space, tuple(shape), classes) if genotypes else None
    if of_each is not None:
        (kind,) = space.kinds
        rows = np.array([space.encode(genotype)[kind] for genotype in genotypes])
        counts = of_each[rows].mean(1)
    else:
        found = {g: _size(space, shape, classes, g) for g in set(genotypes)}
        counts = np.array([found[genotype] for genotype in genotypes])
    params, flops = counts.reshape(-1, 2).T / 1e6
    return {"params": params, "flops": flops}


@functools.lru_cache(maxsize=8)  # commands and proxies ask for the same again
def _of_each(
    space: Space, shape: tuple[int, int, int], classes: int
) -> np.ndarray | None:
    """Count networks with one operation on all edges; None if edges are not alike."""
    if len(space.kinds) > 1 or space.kept is not None:
        return None
    count = len(space.edges[space.kinds[0]])
    alike = [_genotype(space, [op] * count) for op in space.ops]
    found = np.array([_size(space, shape, classes, genotype) for genotype in alike])
    return found if _edges_are_alike(space, found[:, 0], shape, classes) else None


def _edges_are_alike(
    space: Space, weights: np.ndarray, shape: tuple[int, int, int], classes: int
) -> bool:
    """Tell whether the largest operation costs the same on whichever edge it is."""
    least, most = (space.ops[i] for i in (weights.argmin(), weights.argmax()))
    edges = len(space.edges[space.kinds[0]])
    moved = [[most if i == j else least for j in range(edges)] for i in range(edges)]
    found = {
        space.network(_genotype(space, ops), shape, classes).weights for ops in moved
    }
    return len(found) == 1


def _genotype(space: Space, ops: Sequence[str]) -> Genotype:
    (kind,) = space.kinds
    choices = ((*edge, op) for edge, op in zip(space.edges[kind], ops, strict=True))
    return Genotype(((kind, tuple(choices)),))


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
    space: Space, shape: tuple[int, int, int], classes: int, genotype: Genotype
) -> tuple[int, int]:
    network = space.network(genotype, shape, classes)
    return network.weights, network.macs
