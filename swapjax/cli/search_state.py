"""What a search keeps of the seeds it has finished, to go on from."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swapjax.cli.search_options import Search, unused
from swapjax.cli.search_tables import PROXIES
from swapjax.core import files
from swapjax.search.genotype import Genotype
from swapjax.search.space import Space


class Row(NamedTuple):
    """What one seed has found.

    Attributes:
        seed: of the weights.
        genotype: the architecture.
        scores: of all operations before any removal: for each kind of cell
            float64[edges, ops]; empty where whole architectures were scored.
        drawn: those that were, with their scores.
        seconds: that it took; with compilation only where drawn is not empty.
    """

    seed: int
    genotype: Genotype
    scores: dict[str, np.ndarray]
    drawn: dict[Genotype, float]
    seconds: float


def fingerprint(options: Search, origin: str) -> str:
    """Tell a search from others whose seeds find other architectures."""
    own = {"out", "seeds", "tables", "data", *unused(PROXIES[options.proxy])}
    fields = dataclasses.asdict(options).items()
    told = ", ".join(f"{name}={value}" for name, value in fields if name not in own)
    return f"{told}, data={origin}" if origin else told


def write(path: Path, own: str, rows: Iterable[Row]) -> None:
    """Write all rows, whole or not at all, with a digest of them."""
    found: dict[str, Any] = {
        "search": own,
        "seeds": [
            {
                "seed": row.seed,
                "genotype": str(row.genotype),
                "scores": {kind: x.tolist() for kind, x in row.scores.items()},
                "drawn": {str(genotype): x for genotype, x in row.drawn.items()},
                "seconds": row.seconds,
            }
            for row in rows
        ],
    }
    files.write_text(path, json.dumps({**found, "digest": _digest(found)}) + "\n")


def read(path: Path, own: str, space: Space) -> dict[int, Row]:
    """Read the rows of an earlier call by seed; none without a file.

    Raises:
        ValueError: for a file of something else or changed since, and for one of
            another search.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        digest = found.pop("digest")
        if digest != _digest(found):
            raise ValueError("it is not as it was written")
        rows = [
            Row(
                one["seed"],
                space.parse(one["genotype"]),
                {k: np.asarray(x, np.float64) for k, x in one["scores"].items()},
                {space.parse(text): x for text, x in one["drawn"].items()},
                one["seconds"],
            )
            for one in (found["seeds"] if found["search"] == own else ())
        ]
    except (
        OSError,
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as e:
        raise ValueError(f"{path}: not the state of a search: {e}") from None
    if found["search"] != own:
        raise ValueError(
            f"{path}: holds another search ({found['search']}); remove it or name "
            "another folder"
        )
    return {row.seed: row for row in rows}


def _digest(found: dict[str, Any]) -> str:
    text = json.dumps(found, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
