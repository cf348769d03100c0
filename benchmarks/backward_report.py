"""Tables of pruned back-propagation."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from swapjax.backward import expected_zeros

PAPER = 5.92  # times faster on the way back, at most, as its abstract has it
COST = 0.3  # points of accuracy that a rate may cost
NETWORKS = {"lenet5": "LeNet-5", "resnet20": "ResNet-20", "resnet18": "ResNet-18",
            "vgg16": "VGG-16"}  # fmt: skip
NAMES = {"stochastic": "at random", "hard": "the smallest"}
HEAD = ("", "P", "seeds", "accuracy", "zeros before", "zeros after", "z(P)",
        "products left", "speed-up", "by pruning")  # fmt: skip
NOISE = ("", "P", "seeds", "SNR over keys", "cosine", "bias", "SNR over batches",
         "prediction error")  # fmt: skip
BEST = ("network", "P", "points lost", "ideal speed-up", "by pruning", "the paper's")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        network: its name.
        threshold: "exact" or "fifo"; "exact" where nothing is pruned.
        pruning: "stochastic" or "hard".
        rate: P.
        seed: of everything.
        epochs: passes over the data.
        accuracy: percent of the whole test set.
        loss: mean over the last epoch.
        site_before: fraction of zeros that come to the sites.
        site_after: of those that leave them.
        natural: part of the multiplications on the way back left by natural zeros.
        ratio: part that is left where gradients are pruned.
        snr: of the gradient of weights, over batches and keys; for seed 0.
        snr_exact: the same without pruning, at the same weights and batches.
        snr_keys: over keys alone, of one batch.
        cosine: of the mean gradient over keys and that without pruning.
        bias: distance of the two, in norms of the latter.
        off: by how much predicted thresholds were off after the first epoch.
        seconds: wall time.
    """

    network: str
    threshold: str
    pruning: str
    rate: float
    seed: int
    epochs: int
    accuracy: float = float("nan")
    loss: float = float("nan")
    site_before: float = float("nan")
    site_after: float = float("nan")
    natural: float = float("nan")
    ratio: float = float("nan")
    snr: float = float("nan")
    snr_exact: float = float("nan")
    snr_keys: float = float("nan")
    cosine: float = float("nan")
    bias: float = float("nan")
    off: float = float("nan")
    seconds: float = float("nan")

    def __str__(self) -> str:
        way = f"{self.pruning}, {self.threshold}"
        return f"{self.network} at {self.rate:g}, {way}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return tuple(dataclasses.astuple(self)[:6])


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """A layer after an epoch of a run."""

    network: str
    threshold: str
    pruning: str
    rate: float
    seed: int
    epochs: int
    epoch: int
    layer: str
    macs: int = 0
    zeros_before: float = float("nan")
    zeros_after: float = float("nan")

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return tuple(dataclasses.astuple(self)[:8])


@dataclasses.dataclass(frozen=True)
class Noise:
    """Noise of pruning at the initial weights of a network, of one batch over keys."""

    network: str
    pruning: str
    rate: float
    seed: int
    snr: float = float("nan")
    cosine: float = float("nan")
    bias: float = float("nan")

    def __str__(self) -> str:
        return f"{self.network} at {self.rate:g}, {self.pruning}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return tuple(dataclasses.astuple(self)[:4])


Group = dict[tuple[str, str, float], list[Run]]


def markdown(
    runs: Sequence[Run], layers: Sequence[LayerRow], noise: Sequence[Noise]
) -> list[str]:
    """Write the tables of docs/results/backward.md, of all seeds that there are."""
    parts, best = [], []
    for network in dict.fromkeys(run.network for run in runs):
        found: Group = defaultdict(list)
        for run in runs:
            if run.network == network:
                found[run.pruning, run.threshold, run.rate].append(run)
        found = dict(sorted(found.items(), key=_order))
        rows = [row for row in layers if row.network == network]
        parts += [_table(_accuracies(found)), _table(_noise(found))]
        parts.append(_table(_layers(rows)))
        first = [row for row in noise if row.network == network]
        parts += [_table(_first_noise(first))] if first else []
        best.append(_best(network, found))
    return [*parts, _table([list(BEST), *best])]


def _order(item: tuple) -> tuple:
    (pruning, threshold, rate), _ = item
    return pruning != "stochastic", threshold != "exact", rate


def _accuracies(found: Group) -> list[list[str]]:
    table = [list(HEAD)]
    for way, runs in found.items():
        natural, ratio = _mean(runs, "natural"), _mean(runs, "ratio")
        table.append([
            *_begin(way, runs), _spread([run.accuracy for run in runs]),
            f"{_mean(runs, 'site_before'):.3f}", f"{_mean(runs, 'site_after'):.3f}",
            f"{expected_zeros(way[2]):.3f}", f"{ratio:.1%}", f"{1 / ratio:.1f}",
            f"{natural / ratio:.2f}",
        ])  # fmt: skip
    return table


def _noise(found: Group) -> list[list[str]]:
    table = [list(NOISE)]
    for way, runs in found.items():
        if way[2] == 0:
            continue
        keys = _mean(runs, "snr_keys") if way[0] == "stochastic" else math.inf
        pairs = [(r.snr, r.snr_exact) for r in runs if not math.isnan(r.snr)]
        of_batches = (
            " to ".join(f"{x:.3f}" for x in reversed(pairs[0])) if pairs else ""
        )
        off = _mean(runs, "off") if way[1] == "fifo" else math.nan
        table.append([
            *_begin(way, runs), "" if math.isinf(keys) else f"{keys:.3g}",
            f"{_mean(runs, 'cosine'):.4f}", f"{_mean(runs, 'bias'):.3f}", of_batches,
            "" if math.isnan(off) else f"{off:.3f}",
        ])  # fmt: skip
    return table


def _first_noise(noise: Sequence[Noise]) -> list[list[str]]:
    """Noise at the initial weights."""
    found: dict[tuple[str, float], list[Noise]] = defaultdict(list)
    for row in sorted(noise, key=lambda row: (row.pruning == "hard", row.rate)):
        found[row.pruning, row.rate].append(row)
    table = [
        ["at the initial weights", "P", "seeds", "SNR over keys", "cosine", "bias"]
    ]
    for (pruning, rate), rows in sorted(
        found.items(), key=lambda item: (item[0][0] == "hard", item[0][1])
    ):
        snr = f"{_mean(rows, 'snr'):.3g}" if pruning == "stochastic" else ""
        table.append([
            NAMES[pruning], f"{rate:g}", str(len(rows)), snr,
            f"{_mean(rows, 'cosine'):.4f}", f"{_mean(rows, 'bias'):.3f}",
        ])  # fmt: skip
    return table


def _layers(rows: Sequence[LayerRow]) -> list[list[str]]:
    """Zeros of dY by layer at P = 0.9, over epochs and seeds."""
    found: dict[str, list[LayerRow]] = defaultdict(list)
    for row in rows:
        if (row.pruning, row.threshold, row.rate) == ("stochastic", "exact", 0.9):
            found[row.layer].append(row)
    total = sum(several[0].macs for several in found.values())
    table = [["layer", "of the products", "zeros", "pruned"]]
    for layer, several in found.items():
        before, after = (
            statistics.mean(getattr(row, name) for row in several)
            for name in ("zeros_before", "zeros_after")
        )
        share = several[0].macs / total
        table.append([f"`{layer}`", f"{share:.1%}", f"{before:.3f}", f"{after:.3f}"])
    return table


def _best(network: str, found: Group) -> list[str]:
    """Find the largest rate that costs little, and what it saves."""
    exact = {rate: runs for (kind, threshold, rate), runs in found.items()
             if (kind, threshold) == ("stochastic", "exact")}  # fmt: skip
    lost = {
        rate: _mean(exact[0.0], "accuracy") - _mean(runs, "accuracy")
        for rate, runs in exact.items()
    }
    rate = max(rate for rate, points in lost.items() if points <= COST)
    if not rate:
        return [NETWORKS[network], "none", "", "", "", f"up to {PAPER}"]
    ratio, natural = _mean(exact[rate], "ratio"), _mean(exact[rate], "natural")
    return [
        NETWORKS[network], f"{rate:g}", f"{lost[rate]:.2f}", f"{1 / ratio:.1f}",
        f"{natural / ratio:.2f}", f"up to {PAPER}",
    ]  # fmt: skip


def _begin(way: tuple[str, str, float], runs: Sequence[Run]) -> list[str]:
    pruning, threshold, rate = way
    named = NAMES[pruning] + ", predicted" * (threshold == "fifo")
    return [named if rate else "exact", f"{rate:g}", str(len(runs))]


def _mean(runs: Sequence[Any], name: str) -> float:
    return statistics.mean(getattr(run, name) for run in runs)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ± {error:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
