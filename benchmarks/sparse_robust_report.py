"""What sparse_robust.py measures of a network, and the tables of many."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from sparse_robust_methods import GRID, METHODS, base, chosen

NAMES = {
    "dense": "dense",
    "gmp": "`gmp()`",
    "granet": "`granet()`",
    "rigl": "`rigl()`",
    "kfac": "`kfac_regression()`, one shot",
    "admm, gce": "`admm`, GCE",
    "safe, gce": "`safe`, GCE",
    "granet, gce": "`granet()`, GCE",
}
# The best setting of each at the higher rate.
FASTER = {"admm": 0, "safe": 0, "gmp": 1, "granet": 2, "rigl": 1}
LEVELS, NOISES = (0.9, 0.95), (0.5, 0.25, 0.0)


@dataclasses.dataclass(frozen=True)
class Line:
    """One network: what it was made by, and what came of it, in percent."""

    method: str
    noise: float
    sparsity: float
    seed: int
    epochs: int
    setting: int
    accuracy: float = math.nan
    before: float = math.nan
    severity3: float = math.nan
    severity5: float = math.nan
    attacked: float = math.nan
    left: int = 0
    cpu: float = math.nan

    def __str__(self) -> str:
        return (
            f"{self.method} to {self.sparsity:g}, {self.noise:g} flipped, seed "
            f"{self.seed}, {GRID[base(self.method)][self.setting]}"
        )

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return (
            self.method, self.noise, self.sparsity, self.seed, self.epochs, self.setting
        )  # fmt: skip


def markdown(lines: Sequence[Line]) -> dict[str, str]:
    """Write the tables of the docs, those that there are runs for."""
    made = {f"{level:g} sparse": comparison(lines, level) for level in LEVELS}
    made |= {"Two rates": rates(lines), "Settings": settings(lines)}
    return {title: text for title, text in made.items() if text}


def comparison(lines: Sequence[Line], level: float) -> str:
    """Compare all methods: under each noise, and without it spoilt and attacked."""
    heads = [f"{noise:.0%} wrong".replace("%", " %") for noise in NOISES]
    heads += ["severity 3", "severity 5", "PGD-10"]
    rows = []
    for method in METHODS:
        at = 0.0 if method == "dense" else level
        own = [ln for ln in lines if (ln.method, ln.sparsity) == (method, at)]
        own = [ln for ln in own if ln.setting == chosen(method)]
        cells = [mean_of(own, noise, "accuracy") for noise in NOISES]
        for name in ("severity3", "severity5", "attacked"):
            cells.append(mean_of(own, 0.0, name))
        if all(cells):
            rows.append([name_of(method), *cells])
    return laid_out(["method", *heads], rows)


def rates(lines: Sequence[Line]) -> str:
    """Compare both rates with half of the labels wrong, seed 0."""
    heads = [f"{level:g}, {rate}" for rate in ("0.1", "0.03") for level in LEVELS]
    rows = []
    for method, faster in FASTER.items():
        own = [ln for ln in lines if ln.method == method and ln.seed == 0]
        cells = [
            mean_of(
                [ln for ln in own if (ln.sparsity, ln.setting) == (level, i)],
                0.5,
                "accuracy",
            )
            for i in (faster, chosen(method))
            for level in LEVELS
        ]
        if all(cells):
            rows.append([name_of(method), *cells])
    return laid_out(["method", *heads], rows)


def settings(lines: Sequence[Line]) -> str:
    """List what each setting scored on held-out labels."""
    found = {(ln.method, ln.setting): ln.accuracy for ln in lines if ln.seed == 10}
    rows = []
    for method, given in GRID.items():
        for i, setting in enumerate(given):
            if len(given) > 1 and (method, i) in found:
                told = ", ".join(f"{k} {v:g}" for k, v in setting.items()) or "as told"
                mark = "**" if i == chosen(method) else ""
                score = f"{mark}{found[method, i]:.2f}{mark}"
                rows.append([name_of(method), told, score])
    return laid_out(["method", "setting", "held out"], rows)


def name_of(method: str) -> str:
    """Write a method as the docs do."""
    return NAMES.get(method, f"`{method}`")


def mean_of(lines: Sequence[Line], noise: float, field: str) -> str:
    """Write a mean over seeds with its standard error, where there are several."""
    values = [getattr(line, field) for line in lines if line.noise == noise]
    if not values:
        return ""
    text = f"{np.mean(values):.2f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}"
    return text


def laid_out(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; nothing without rows."""
    if not rows:
        return ""
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)])
