"""Accuracies of trained architectures: what searches are judged by."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from swapjax.search.genotype import Genotype


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Architectures of a space, and how accurate they are on one data set.

    Attributes:
        space: ``"nb201"`` or ``"darts"``.
        dataset: one of ``"cifar10"``, ``"cifar100"``, ``"ImageNet16-120"``.
        epochs: of the training that the accuracies are after; None where a surrogate
            has predicted them.
        measured: what `accuracy` is of, ``"test"`` or ``"validation"`` images.
        genotypes: [n] architectures.
        accuracy: float64[n] in percent.
        validation: float64[n] in percent, to choose by; None where there is no other
            accuracy than the one above.
        columns: what else is published of each, by name: float64[n]. Proxies among
            them, and ``"params"`` and ``"flops"`` in millions.
    """

    space: str
    dataset: str
    epochs: int | None
    measured: str
    genotypes: tuple[Genotype, ...]
    accuracy: np.ndarray
    validation: np.ndarray | None
    columns: Mapping[str, np.ndarray]

    def __str__(self) -> str:
        told = "a surrogate's" if self.epochs is None else f"after {self.epochs} epochs"
        return f"{self.dataset}, {self.measured}, {told}"

    def __len__(self) -> int:
        return len(self.genotypes)

    def has(self, genotype: Genotype) -> bool:
        """Tell whether an architecture is in the table."""
        return genotype in self._rows

    def row(self, genotype: Genotype) -> int:
        """Return the row of an architecture.

        Raises:
            ValueError: if it is not in the table.
        """
        if not self.has(genotype):
            raise ValueError(
                f"genotype {genotype} is none of the {len(self):,} in the table of "
                f"{self.space} ({self})"
            )
        return self._rows[genotype]

    def take(self, rows: Sequence[int]) -> "Table":
        """Return the table of some of the architectures."""
        chosen = np.asarray(rows, int)
        validation = None if self.validation is None else self.validation[chosen]
        return dataclasses.replace(
            self,
            genotypes=tuple(self.genotypes[row] for row in chosen),
            accuracy=self.accuracy[chosen],
            validation=validation,
            columns={name: x[chosen] for name, x in self.columns.items()},
        )

    def accuracy_of(self, genotype: Genotype) -> float:
        """Return the accuracy of an architecture in percent.

        Raises:
            ValueError: if it is not in the table.
        """
        return float(self.accuracy[self.row(genotype)])

    @functools.cached_property
    def _rows(self) -> dict[Genotype, int]:
        return {genotype: row for row, genotype in enumerate(self.genotypes)}


class Tables:
    """The tables of a file.

    Args:
        tables: all of them.
    """

    def __init__(self, tables: Collection[Table]) -> None:
        self.all = tuple(tables)

    def of(
        self, space: str, dataset: str | None = None, epochs: int | None = None
    ) -> tuple[Table, ...]:
        """Return the tables of a space.

        Args:
            space: ``"nb201"`` or ``"darts"``.
            dataset: of which they are to be; by default of any.
            epochs: after how many they are to be; by default after any number.

        Raises:
            ValueError: if there is none, naming those there are.
        """
        found = tuple(
            table
            for table in self.all
            if table.space == space
            and dataset in (None, table.dataset)
            and epochs in (None, table.epochs)
        )
        if not found:
            known = "; ".join(f"{table.space} ({table})" for table in self.all)
            wanted = f"{space}, {dataset or 'any data'}, {epochs or 'any'} epochs"
            raise ValueError(f"there is no table of {wanted}; there are {known}")
        return found

    def table(self, space: str, dataset: str, epochs: int | None = None) -> Table:
        """Return one table; of several, that of the most architectures.

        Raises:
            ValueError: as for `of`.
        """
        return max(self.of(space, dataset, epochs), key=len)
