"""Tables of adversarial training, with hypersphere embedding and without."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Sequence

FRAMEWORKS = ("pgd-at", "trades", "alp", "mart", "free-at", "fast-at")
HEADS = ("linear", "cosines")
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Line:
    """One run. Accuracies are percent of the test images."""

    plan: str
    framework: str
    head: str
    seed: int
    images: int
    epochs: int
    clean: float = NAN
    robust: float = NAN
    ce: float = NAN
    ce_unscaled: float = NAN
    margin: float = NAN
    dlr: float = NAN
    seconds: float = NAN

    def __str__(self) -> str:
        return f"{self.framework}, {self.head}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        named = self.plan, self.framework, self.head
        return (*named, self.seed, self.images, self.epochs)


def report(lines: Sequence[Line]) -> str:
    """Write the tables of docs/results/robust.md, of all seeds that there are."""
    parts = []
    for epochs, images in sorted({(line.epochs, line.images) for line in lines}):
        found = defaultdict(list)
        for line in lines:
            if (line.epochs, line.images) == (epochs, images):
                found[line.framework, line.head].append(line)
        parts.append(
            f"## {epochs} epochs of {images:,} images\n\n"
            f"{_markdown(_accuracies(found))}\n\n"
            f"What cosines change at equal seeds, in points:\n\n"
            f"{_markdown(_gains(found))}"
        )
    return "\n\n".join(parts)


def _accuracies(found: dict) -> list[list[str]]:
    order = [(f, h) for f in ("none", *FRAMEWORKS) for h in HEADS if (f, h) in found]
    table = [["", "head", "seeds", "clean", "minimum", *_ATTACKS]]
    for name, head in order:
        runs = found[name, head]
        cells = [_mean([getattr(run, field) for run in runs]) for field in _FIELDS]
        table.append([name, head, str(len(runs)), *cells])
    return table


_FIELDS = ("clean", "robust", "ce", "ce_unscaled", "margin", "dlr")
_ATTACKS = ("cross-entropy", "cross-entropy of cos", "margin", "DLR")


def _gains(found: dict) -> list[list[str]]:
    """Compare both heads at equal seeds, and attacks on cosines."""
    table = [["", "seeds", "clean", "minimum", "cross-entropy of cos less DLR"]]
    for name in FRAMEWORKS:
        plain, embedded = (
            {run.seed: run for run in found.get((name, head), ())} for head in HEADS
        )
        both = sorted(plain.keys() & embedded.keys())
        if not both:
            continue
        cells = [
            _mean(
                [getattr(embedded[s], field) - getattr(plain[s], field) for s in both],
                sign="+",
            )
            for field in ("clean", "robust")
        ]
        gaps = _mean([embedded[s].ce_unscaled - embedded[s].dlr for s in both], "+")
        table.append([name, str(len(both)), *cells, gaps])
    return table


def _mean(values: Sequence[float], sign: str = "") -> str:
    """Show a mean, and the standard error of several."""
    if any(value != value for value in values):
        return ""
    shown = f"{statistics.mean(values):{sign}.1f}"
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        shown += f" ± {error:.1f}"
    return shown


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
