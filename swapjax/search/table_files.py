"""Tables of architectures from a file, which may be damaged or of something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from swapjax.core.text import printable
from swapjax.io.npz import read_npz
from swapjax.search.genotype import Choice, Genotype
from swapjax.search.tables import Table, Tables

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
_NB201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_DARTS = (
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
    *("dil_conv_3x3", "dil_conv_5x5"),
)
_CELLS = ("normal", "reduce")
# Of the file: the kind of the dtype and the shape; words are lengths of its own.
_ARRAYS: Mapping[str, tuple[str, tuple[int | str, ...]]] = {
    "ops": ("U", (5,)),
    "edges": ("i", (6, 2)),
    "nb201_all_ops": ("i", ("all", 6)),
    "nb201_all_accuracy_12_epochs": ("f", ("all", 6)),
    "nb201_all_columns": ("U", (6,)),
    "columns": ("U", ("columns",)),
    "nb201_ops": ("i", ("some", 6)),
    "nb201_values": ("f", (3, "some", "columns")),
    "nb201_datasets": ("U", (3,)),
    "darts_ops": ("U", (7,)),
    "darts_cells": ("i", ("darts", 2, 8, 2)),
    "darts_values": ("f", ("darts", "columns")),
}
_KINDS = {"U": "str", "i": "int", "f": "float"}
_ACCURACY, _SIZES = "val_accuracy", ("params", "flops")


def load_tables(path: str | Path) -> Tables:
    """Read tables of architectures from one .npz file; nothing is unpickled.

    The arrays that the file has to hold, n architectures each:

    - ``ops``, ``edges``: names of the five operations of NAS-Bench-201, and its six
      edges (from, to) in the order of all cells.
    - ``nb201_all_ops`` int[n, 6], ``nb201_all_accuracy_12_epochs`` float[n, 6] with
      ``nb201_all_columns`` ``"cifar10-test"``, ``"cifar10-val"`` and so on, in percent.
    - ``nb201_ops`` int[n, 6], ``nb201_values`` float[3, n, columns] for the three
      ``nb201_datasets``, with ``columns`` that hold ``"params"``, ``"flops"`` and
      ``"val_accuracy"`` after 200 epochs.
    - ``darts_ops``, ``darts_cells`` int[n, 2, 8, 2]: of the normal and the reduction
      cell eight (input node, operation), two for each of four nodes; ``darts_values``
      float[n, columns], accuracies as a surrogate predicts them.

    Args:
        path: of the file.

    Raises:
        ValueError: naming the file and the array, where one is missing, damaged, of
            another shape or kind, holds operations, edges, accuracies or names that
            cannot be, or an architecture twice.
    """
    # Only what is known is read: others may be of any size.
    arrays = read_npz(path, lambda names: [name for name in _ARRAYS if name in names])
    _check_shapes(path, arrays)
    columns = [str(name) for name in arrays["columns"]]
    lacking = sorted({_ACCURACY, *_SIZES} - set(columns))
    if lacking or len(set(columns)) < len(columns):
        _refuse(path, "columns", f"lacks {', '.join(lacking) or 'different names'}")
    if tuple(arrays["nb201_datasets"]) != DATASETS:
        _refuse(path, "nb201_datasets", f"is not {', '.join(DATASETS)}")
    tables = _all_nb201(path, arrays)
    cells = _nb201(path, arrays, "nb201_ops")
    for dataset, values in zip(DATASETS, arrays["nb201_values"], strict=True):
        tables.append(_published("nb201", dataset, 200, cells, columns, values))
    cells, values = _darts(path, arrays), arrays["darts_values"]
    tables.append(_published("darts", DATASETS[0], None, cells, columns, values))
    for table in tables:
        _check(path, table)
    return Tables(tables)


def _all_nb201(path: str | Path, arrays: Mapping[str, np.ndarray]) -> list[Table]:
    """Make the tables of all cells, which have a validation accuracy to choose by."""
    genotypes = _nb201(path, arrays, "nb201_all_ops")
    places = {str(name): i for i, name in enumerate(arrays["nb201_all_columns"])}
    values = arrays["nb201_all_accuracy_12_epochs"].astype(np.float64)
    tables = []
    for dataset in DATASETS:
        name = "imagenet" if dataset.startswith("ImageNet") else dataset
        wanted = [f"{name}-test", f"{name}-val"]
        lacking = [column for column in wanted if column not in places]
        if lacking:
            _refuse(path, "nb201_all_columns", f"lacks {', '.join(lacking)}")
        test, validation = (values[:, places[column]] for column in wanted)
        tables.append(
            Table("nb201", dataset, 12, "test", genotypes, test, validation, {})
        )
    return tables


def _published(
    space: str,
    dataset: str,
    epochs: int | None,
    genotypes: tuple[Genotype, ...],
    columns: list[str],
    values: np.ndarray,
) -> Table:
    told = dict(zip(columns, values.astype(np.float64).T, strict=True))
    accuracy = told.pop(_ACCURACY)
    return Table(space, dataset, epochs, "validation", genotypes, accuracy, None, told)


def _nb201(
    path: str | Path, arrays: Mapping[str, np.ndarray], name: str
) -> tuple[Genotype, ...]:
    ops = arrays["ops"]
    if sorted(ops) != sorted(_NB201):
        _refuse(path, "ops", f"is not {', '.join(_NB201)} in some order")
    if tuple((int(a), int(b)) for a, b in arrays["edges"]) != _EDGES:
        _refuse(path, "edges", f"is not {', '.join(map(str, _EDGES))}")
    _require_indices(path, name, arrays[name], len(ops))
    return tuple(
        Genotype(
            (("cell", tuple((*e, op) for e, op in zip(_EDGES, cell, strict=True))),)
        )
        for cell in ops[arrays[name]].tolist()
    )


def _darts(path: str | Path, arrays: Mapping[str, np.ndarray]) -> tuple[Genotype, ...]:
    ops, cells = arrays["darts_ops"], arrays["darts_cells"]
    if sorted(ops) != sorted(_DARTS):
        _refuse(path, "darts_ops", f"is not {', '.join(_DARTS)} in some order")
    _require_indices(path, "darts_cells", cells[..., 1], len(ops))
    nodes, sources = 2 + np.arange(8) // 2, cells[..., 0]
    if np.any((sources < 0) | (sources >= nodes)):
        _refuse(path, "darts_cells", "holds an input that is not before its node")
    pairs = sources.reshape(len(cells), 2, 4, 2)
    if np.any(pairs[..., 0] == pairs[..., 1]):
        _refuse(path, "darts_cells", "holds a node with one input twice")

    def choices(cell: np.ndarray) -> tuple[Choice, ...]:
        told = [
            (int(source), int(node), str(ops[op]))
            for node, (source, op) in zip(nodes, cell, strict=True)
        ]
        return tuple(sorted(told, key=lambda choice: (choice[1], choice[0])))

    return tuple(
        Genotype(tuple((k, choices(c)) for k, c in zip(_CELLS, both, strict=True)))
        for both in cells
    )


def _require_indices(
    path: str | Path, name: str, array: np.ndarray, count: int
) -> None:
    if np.any((array < 0) | (array >= count)):
        _refuse(path, name, f"holds operations outside 0 to {count - 1}")


def _check_shapes(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Compare kinds and shapes; lengths of one name have to be the same."""
    lengths: dict[str, int] = {}
    for name, (kind, shape) in _ARRAYS.items():
        if name not in arrays:
            _refuse(path, name, "is missing")
        array = arrays[name]
        wanted = tuple(
            lengths.setdefault(n, size) if isinstance(n, str) else n
            for n, size in zip(shape, array.shape, strict=False)
        )
        if (array.dtype.kind, len(shape), array.shape) != (kind, array.ndim, wanted):
            told = ", ".join(str(lengths.get(str(n), n)) for n in shape)
            got = f"{array.dtype}{list(array.shape)}"
            _refuse(path, name, f"is {got}, not {_KINDS[kind]}[{told}]")
        if not array.size:
            _refuse(path, name, "is empty")


def _check(path: str | Path, table: Table) -> None:
    what = f"its table of {table.space} ({table})"
    if len(set(table.genotypes)) < len(table):
        _refuse(path, what, "holds an architecture twice")
    for values in (table.accuracy, table.validation):
        # NaN is neither.
        if values is not None and not np.all((values >= 0) & (values <= 100)):
            _refuse(path, what, "holds accuracies outside 0 to 100")
    for name, values in table.columns.items():
        if not np.all(np.isfinite(values)):
            _refuse(path, what, f"holds a {printable(name)} that is not finite")


def _refuse(path: str | Path, name: str, trouble: str) -> NoReturn:
    raise ValueError(
        f"{printable(path)}: not a table of architectures: {name} {trouble}"
    )
