"""Layer-wise methods on single layers of MiniLM: errors of outputs, and seconds.

What a layer reads is measured on docstrings and functions of the standard library, see
`docstrings`: on those that calibrate for the methods, and on others for the errors that
are called those of the test. An error is the mean squared change of the outputs over
their mean square. Each method is also judged by its support alone, with the best
weights on it.

Times are CPU seconds without compilation, on one core. Writes results.csv and refit.csv
after every run and goes on where it stopped. Needs the packages of the extra [real].
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import docstrings
import jax
import jax.numpy as jnp
import minilm
import tyro
from rich.table import Table
from shared import RESULTS, complete_csv, console, start

import swapjax
from swapjax.activations.layer import Layer
from swapjax.activations.trace import second_moments
from swapjax.pruning import Method, Problem, Solution
from swapjax.pruning.solvers import layer_cg, layer_quadratic
from swapjax.sparsity.budget import Budget

METHODS: dict[str, Method] = {
    "magnitude": swapjax.magnitude(),
    "wanda": swapjax.wanda(),
    "columns": swapjax.layerwise_obs(order="columns", refit=False),
    "greedy": swapjax.layerwise_obs(order="greedy"),
    "alps": swapjax.alps(),
}
LAYERS = ("0/down", "0/value")
LENGTH = 64  # tokens
GREEDY = 3e10  # outputs * inputs^3 that the greedy order is affordable for


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune layers of MiniLM one by one."""

    layers: tuple[str, ...] = LAYERS
    """Number and name of each."""
    settings: tuple[str, ...] = ("0.5", "0.7", "0.9", "2:4")
    """Shares of the layer to remove, or a pattern."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Any of the names in the table."""
    refits: tuple[str, ...] = ("0.5", "0.7", "0.9")
    """Settings to compare the two re-fits in, on what the column order leaves."""
    pairs: int = 128
    """Of docstring and function, to measure on; as many others for the test."""
    out: Path = RESULTS / "alps"
    """The folder for results.csv and refit.csv."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of results.csv."""

    layer: str
    setting: str
    method: str
    inputs: int = 0
    outputs: int = 0
    error: float = float("nan")
    test: float = float("nan")
    best: float = float("nan")
    seconds: float = float("nan")

    def __str__(self) -> str:
        return f"{self.layer}, {self.setting}, {self.method}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.layer, self.setting, self.method


@dataclasses.dataclass(frozen=True)
class Refit:
    """One line of refit.csv: two re-fits of what the column order leaves of a layer."""

    layer: str
    setting: str
    inputs: int = 0
    outputs: int = 0
    exact: float = float("nan")
    exact_seconds: float = float("nan")
    cg: float = float("nan")
    cg_seconds: float = float("nan")

    def __str__(self) -> str:
        return f"{self.layer}, {self.setting}, re-fits"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.layer, self.setting


@dataclasses.dataclass(frozen=True)
class Setting:
    """Weights of layers, what they read when calibrating, and in the test."""

    weights: dict[str, jax.Array]
    seen: dict[str, Layer]
    unseen: dict[str, Layer]


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    setting = load(options)
    wanted = [
        Run(layer, share, method)
        for layer in options.layers
        for share in options.settings
        for method in options.methods
        if method != "greedy" or work(setting.weights[layer]) <= GREEDY
    ]
    done = complete_csv(
        options.out / "results.csv", wanted, lambda run: score(setting, run)
    )
    console.print(table([done[run.key] for run in wanted]))
    refits = [
        Refit(layer, share)
        for layer in options.layers
        for share in options.refits
        if work(setting.weights[layer]) > GREEDY and layer.endswith("down")
    ][: len(options.refits)]
    done = complete_csv(
        options.out / "refit.csv", refits, lambda run: compare(setting, run)
    )
    for run in refits:
        console.print(done[run.key])


def load(options: Options) -> Setting:
    """Load the network, and measure what its layers read."""
    params = minilm.checkpoint(stacked=False).load()
    halves = docstrings.split(options.pairs, options.pairs)
    paths = [f"layers/{layer}/kernel" for layer in options.layers]
    measured = []
    for half in halves:
        texts = [text for pair in half for text in (pair.query, pair.document)]
        tokens = minilm.tokenize(texts, LENGTH).reshape(-1, 2, LENGTH)
        layers = second_moments(
            minilm.contrast, params, tokens, paths, batch=4, chunk=4
        )
        measured.append(dict(zip(options.layers, layers, strict=True)))
    weights = {}
    for layer in options.layers:
        number, name = layer.split("/")
        weights[layer] = jnp.asarray(params["layers"][int(number)][name]["kernel"])
    return Setting(weights, *measured)


def work(weights: jax.Array) -> float:
    """Estimate what the greedy order takes."""
    inputs, outputs = weights.shape
    return outputs * inputs**3


def budget(weights: jax.Array, setting: str) -> Budget:
    """Plan one layer."""
    if ":" in setting:
        pattern = swapjax.NM.parse(setting)
        return swapjax.plan({"kernel": weights}, pattern=pattern).budget
    return swapjax.plan({"kernel": weights}, float(setting)).budget


@functools.partial(jax.jit, static_argnums=0)
def solve(method: Method, problem: Problem, budget: Budget) -> Solution:
    """Prune by a method."""
    return method(problem, budget)


cg = jax.jit(layer_cg.refit)


@jax.jit
def exact(hessian: jax.Array, reference: jax.Array, support: jax.Array) -> jax.Array:
    """Re-fit a layer output by output."""
    (fitted,) = layer_quadratic.refit([hessian], [reference], [support])
    return fitted


def timed(function: Any, static: tuple, *args: Any) -> tuple[Any, float]:
    """Call a jitted function, and measure CPU seconds once it is compiled."""
    compiled = function.lower(*static, *args).compile()
    started = time.process_time()
    found = jax.block_until_ready(compiled(*args))
    return found, round(time.process_time() - started, 3)


def score(setting: Setting, run: Run) -> Run:
    """Prune a layer, and fill in what came of it."""
    w, layer = setting.weights[run.layer], setting.seen[run.layer]
    problem = Problem((w,), (w,), layers=(layer,))
    found, seconds = timed(
        solve, (METHODS[run.method],), problem, budget(w, run.setting)
    )
    hessian = layer_quadratic.damp(layer.moment, 0.01).hessian
    fitted = cg(hessian, w[None], found.masks[0][None], found.weights[0][None])
    moments = layer.moment[0], setting.unseen[run.layer].moment[0]
    errors = [relative(moment, found.weights[0], w) for moment in moments]
    return dataclasses.replace(
        run,
        inputs=w.shape[0],
        outputs=w.shape[1],
        error=errors[0],
        test=errors[1],
        best=relative(moments[0], fitted[0], w),
        seconds=seconds,
    )


def compare(setting: Setting, run: Refit) -> Refit:
    """Re-fit a layer output by output, and by conjugate gradients."""
    w, moment = setting.weights[run.layer], setting.seen[run.layer].moment
    problem = Problem((w,), (w,), layers=(setting.seen[run.layer],))
    swept = solve(METHODS["columns"], problem, budget(w, run.setting))
    arrays = layer_quadratic.damp(moment, 0.01).hessian, w[None], swept.masks[0][None]
    jax.block_until_ready(arrays)
    alone, seconds = timed(exact, (), *arrays)
    together, cg_seconds = timed(cg, (), *arrays, swept.weights[0][None])
    return dataclasses.replace(
        run,
        inputs=w.shape[0],
        outputs=w.shape[1],
        exact=relative(moment[0], alone[0], w),
        exact_seconds=seconds,
        cg=relative(moment[0], together[0], w),
        cg_seconds=cg_seconds,
    )


def relative(moment: jax.Array, found: jax.Array, wbar: jax.Array) -> float:
    """Compute the mean squared change of outputs over their mean square."""
    error, size = (
        layer_quadratic.error(moment[None], x[None], y[None])
        for x, y in ((found, wbar), (jnp.zeros_like(wbar), wbar))
    )
    return float(f"{float(error / size):.5g}")


def table(runs: list[Run]) -> Table:
    """Lay errors out, a layer and a setting a line."""
    shown = Table("layer", "setting", *METHODS)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        cell = f"{run.error:.4f} / {run.best:.4f} ({run.seconds:.1f} s)"
        lines.setdefault((run.layer, run.setting), {})[run.method] = cell
    for names, cells in lines.items():
        shown.add_row(*names, *(cells.get(method, "") for method in METHODS))
    return shown


if __name__ == "__main__":
    start(main, tyro.cli(Options))
