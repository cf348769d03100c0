"""What the authors' own code scored, read from a peers.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Peer(NamedTuple):
    """One measured accuracy of somebody else's code on MLPNet and MNIST.

    Attributes:
        name: of the code, and how it was run.
        sgd: whether it trained between stages.
        noise: scale and proportion of gradient noise, or None.
        sparsity: of the result.
        accuracy: percent of the test set.
    """

    name: str
    sgd: bool
    noise: tuple[float, float] | None
    sparsity: float
    accuracy: float


def read(path: Path) -> list[Peer]:
    """Read the rows that a row of ours can be held against; the best of each code.

    Accuracies taken before the last SGD epoch are left out where there was training,
    those after it where there was none.
    """
    best: dict[tuple, Peer] = {}
    for row in json.loads(path.read_text()):
        if row["net"] != "MLPNet" or not row["sparsity"]:
            continue
        setting = str(row["setting"])
        between = "SGD epochs" in setting
        after = "final" in setting
        if ("SWAP" in row["peer"]) and after != between:
            continue
        noise = row["noise"] and (row["noise"]["std_scale"], row["noise"]["prop"])
        peer = Peer(row["peer"], between, noise, row["sparsity"], row["accuracy"])
        known = best.get(peer[:4])
        if known is None or peer.accuracy > known.accuracy:
            best[peer[:4]] = peer
    return list(best.values())


def matching(
    peers: Sequence[Peer], sgd: bool, noise: tuple[float, float] | None, sparsity: float
) -> list[Peer]:
    """List the peers in the same setting, from the best to the worst."""
    found = [p for p in peers if (p.sgd, p.noise, p.sparsity) == (sgd, noise, sparsity)]
    return sorted(found, key=lambda peer: -peer.accuracy)


def read_oneshot(path: Path) -> dict[tuple[str, int], dict[float, float]]:
    """Read the best accuracy of each authors' code without training, by sparsity.

    Returns:
        By the name of our method and the number of stages, 1 or 15.
    """
    ours = {"CHITA": "chita", "WoodFisher": "woodfisher", "magnitude": "magnitude"}
    best: dict[tuple[str, int], dict[float, float]] = {}
    if not path.exists():
        return best
    for row in json.loads(path.read_text()):
        name = next((ours[k] for k in ours if row["peer"].startswith(k)), None)
        if row["net"] != "MLPNet" or not row["sparsity"] or name is None:
            continue
        many = "++" in row["peer"] or "15 stages" in str(row["setting"])
        known = best.setdefault((name, 15 if many else 1), {})
        level = row["sparsity"]
        known[level] = max(known.get(level, 0.0), row["accuracy"])
    return best
