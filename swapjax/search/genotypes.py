"""Which architectures a space has, and their genotypes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.search import genotype as texts
from swapjax.search.genotype import Edge, Genotype

Scores = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Genotypes:
    """Architectures that differ in the operations on the edges of their cells.

    Attributes:
        name: of the space.
        ops: names of the operations, in the order of columns of scores.
        edges: for each kind of cell its edges, ``(from, to)`` nodes, in the order of
            rows of scores.
        kept: how many of the edges into a node a genotype has; None for all.
        never: operations that a genotype does not have.
    """

    name: str
    ops: tuple[str, ...]
    edges: Mapping[str, tuple[Edge, ...]]
    kept: int | None = None
    never: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the kinds of cells."""
        return tuple(self.edges)

    @property
    def size(self) -> int:
        """How many genotypes there are."""
        total, ops = 1, len(self.ops) - len(self.never)
        for edges in self.edges.values():
            for node in {to for _, to in edges}:
                into = sum(to == node for _, to in edges)
                kept = into if self.kept is None else min(self.kept, into)
                total *= math.comb(into, kept) * ops**kept
        return total

    def genotype(self, scores: Scores) -> Genotype:
        """Take the operations with the largest scores.

        On each edge the best operation is taken; of the edges into a node those whose
        best scores are largest, where a genotype has not all of them.

        Args:
            scores: for each kind of cell numbers [edges, ops].

        Raises:
            ValueError: for other shapes, what is not finite but minus infinity, and
                where the best are zero and equal, so that nothing tells them apart.
        """
        self.check_rows("scores", scores)
        allowed = [i for i, op in enumerate(self.ops) if op not in self.never]
        cells = []
        for kind, edges in self.edges.items():
            table = np.asarray(scores[kind], np.float64)
            if np.isnan(table).any() or np.isposinf(table).any():
                raise ValueError(
                    f"scores: those of {kind} must be finite, got NaN or inf"
                )
            best = table[:, allowed].max(1)
            chosen = np.asarray(allowed)[table[:, allowed].argmax(1)]
            for edge in self._kept_of(edges, best):
                ties = int((table[edge, allowed] == best[edge]).sum())
                if ties > 1 and best[edge] == 0:
                    raise ValueError(
                        f"scores: {ties} operations on edge {edges[edge]} of {kind} "
                        "tie at zero, so that none of them is best"
                    )
            kept = self._kept_of(edges, best)
            picked = [(*edges[i], self.ops[chosen[i]]) for i in kept]
            cells.append((kind, tuple(picked)))
        return Genotype(tuple(cells))

    def parse(self, text: str) -> Genotype:
        """Read the text of a genotype of this space.

        Raises:
            ValueError: for what is no genotype, or none of this space.
        """
        return self.check(texts.parse(text, self.kinds[0]))

    def check(self, genotype: Genotype | str) -> Genotype:
        """Return a genotype, or that of a text, if it is one of this space.

        Raises:
            ValueError: for other kinds of cells, operations, or edges.
        """
        if isinstance(genotype, str):
            genotype = texts.parse(genotype, self.kinds[0])
        if not isinstance(genotype, Genotype):
            raise ValueError(
                "genotype must be a Genotype or its text, got "
                f"{type(genotype).__name__}"
            )
        kinds = tuple(kind for kind, _ in genotype.cells)
        if kinds != self.kinds:
            raise ValueError(
                f"genotype must have cells of kind {', '.join(self.kinds)} for "
                f"{self.name}, got {', '.join(kinds)}"
            )
        allowed = [op for op in self.ops if op not in self.never]
        for kind, choices in genotype.cells:
            for _, _, op in choices:
                if op not in allowed:
                    raise ValueError(
                        f"genotype: operations of {self.name} are "
                        f"{', '.join(allowed)}, got {op!r}"
                    )
            self._check_edges(kind, [(a, b) for a, b, _ in choices])
        return genotype

    def encode(self, genotype: Genotype | str) -> dict[str, np.ndarray]:
        """Return the number of the operation on each edge, by kind; -1 for none there.

        Raises:
            ValueError: for other than genotypes of this space.
        """
        genotype = self.check(genotype)
        told = {}
        for kind, edges in self.edges.items():
            at = {(a, b): self.ops.index(op) for a, b, op in genotype.of(kind)}
            told[kind] = np.asarray([at.get(edge, -1) for edge in edges], np.int32)
        return told

    def decode(self, numbers: Mapping[str, Any]) -> Genotype:
        """Return the genotype with these operations, the inverse of `encode`.

        Raises:
            ValueError: for other shapes, and numbers of no operation.
        """
        self.check_rows("numbers", numbers, ops=False)
        cells = []
        for kind, edges in self.edges.items():
            row = np.asarray(numbers[kind])
            if (
                row.dtype.kind not in "iu"
                or ((row < -1) | (row >= len(self.ops))).any()
            ):
                raise ValueError(
                    f"numbers: those of {kind} must be whole, from -1 to "
                    f"{len(self.ops) - 1}, got {row.tolist()}"
                )
            picked = [
                (*e, self.ops[i]) for e, i in zip(edges, row, strict=True) if i >= 0
            ]
            cells.append((kind, tuple(picked)))
        return self.check(Genotype(tuple(cells)))

    def one_hot(self, genotype: Genotype | str, dtype: Any = jnp.float32) -> dict:
        """Return the alpha with which the supernet is the network of a genotype.

        Raises:
            ValueError: for other than genotypes of this space.
        """
        numbers, ops = self.encode(genotype), len(self.ops)
        return {k: jax.nn.one_hot(n, ops, dtype=dtype) for k, n in numbers.items()}

    def _kept_of(self, edges: tuple[Edge, ...], best: np.ndarray) -> list[int]:
        """Return the edges that a genotype has, by the best score on each."""
        kept: list[int] = []
        for node in sorted({to for _, to in edges}):
            into = [i for i, (_, to) in enumerate(edges) if to == node]
            into.sort(key=lambda i: -best[i])
            kept += into[: self.kept]
        return kept

    def _check_edges(self, kind: str, found: list[Edge]) -> None:
        edges = self.edges[kind]
        for node in {to for _, to in edges}:
            into = sum(to == node for _, to in edges)
            wanted = into if self.kept is None else min(self.kept, into)
            there = {edge for edge in found if edge[1] == node}
            if len(there) != wanted or not there <= set(edges):
                raise ValueError(
                    f"genotype: node {node} of {kind} has {wanted} different edges "
                    f"from earlier nodes in {self.name}, got those from "
                    f"{[a for a, b in found if b == node]}"
                )
        if len(found) != len({e for e in found if e in edges}):
            raise ValueError(
                f"genotype: {kind} of {self.name} has edges {list(edges)}, got {found}"
            )

    def check_rows(self, name: str, rows: Any, *, ops: bool = True) -> None:
        """Raise a ValueError for other than numbers [edges, ops] for each kind."""
        wanted = {
            kind: (len(edges), len(self.ops)) if ops else (len(edges),)
            for kind, edges in self.edges.items()
        }
        found = (
            {kind: np.shape(row) for kind, row in rows.items()}
            if isinstance(rows, Mapping)
            else type(rows).__name__
        )
        if found != wanted:
            raise ValueError(f"{name} must have shapes {wanted}, got {found}")
