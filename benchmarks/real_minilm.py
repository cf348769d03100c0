"""MiniLM-L6 pruned layer by layer: how well docstrings still find their functions.

A query is the first line of a docstring of the standard library, its document the
function (`docstrings`); half of the pairs are for calibration, half for the test, by
the hashes of their names. Writes results.csv after every run and goes on where it
stopped. The peak of memory is that of pruning, as Linux counts it: JAX, the network and
the pairs are in it, which the line of the dense network tells.
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
import numpy as np
import tyro
from real_minilm_report import Run, figure, keep_ranks, markdown, read_ranks
from shared import RESULTS, complete_csv, console, start

import swapjax
from swapjax.experiments import plot
from swapjax.pruning import Method

METHODS: dict[str, Method] = {
    "magnitude": swapjax.magnitude(),
    "wanda": swapjax.wanda(),
    "layerwise-obs, columns": swapjax.layerwise_obs(order="columns", refit=False),
    "alps": swapjax.alps(),
    "layerwise-obs": swapjax.layerwise_obs(),
    "linear-regression": swapjax.linear_regression(),
    "kfac-regression": swapjax.kfac_regression(),
}
SETTINGS = ("50%", "2:4", "70%")
LENGTH = 48  # tokens of a text, at most
STEP = 16  # tokens, texts of as many steps are embedded together


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune MiniLM by several methods, and search with what is left."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Any of the names in the table."""
    settings: tuple[str, ...] = SETTINGS
    """Of all matrices of the layers: shares of each to remove, or 2:4."""
    stages: tuple[int, ...] = (1,)
    """How many."""
    seeds: tuple[int, ...] = (0,)
    """Of the pairs that calibrate."""
    sequential: tuple[bool, ...] = (False,)
    """Whether layers are pruned one after the other, each by what pruned ones leave."""
    calibration: int = 512
    """Pairs to draw from."""
    samples: int = 32
    """Rows."""
    batch: int = 4
    """Pairs a row, each the others' wrong answers."""
    test: int = 500
    """Pairs to search among."""
    out: Path = RESULTS / "real_minilm"
    """The folder for results.csv, ranks.csv and results.png."""


class Corpus:
    """Tokens of the pairs, and how well an encoder searches among them."""

    def __init__(self, options: Options) -> None:
        calibration, test = docstrings.split(options.calibration, options.test)
        both = [self._tokens(part) for part in (calibration, test)]
        self.calibration, self.test = both
        self._encode = jax.jit(minilm.encode)

    def _tokens(self, pairs: list[docstrings.Pair]) -> np.ndarray:
        """Make ``int32[pairs, 2, length]``."""
        texts = [text for pair in pairs for text in (pair.query, pair.document)]
        return minilm.tokenize(texts, LENGTH).reshape(len(pairs), 2, LENGTH)

    def embed(self, params: Any, size: int = 50) -> np.ndarray:
        """Embed the queries and documents of the test, ``[pairs, 2, 384]``."""
        tokens = self.test.reshape(-1, LENGTH)
        steps = -(-(tokens != 0).sum(1) // STEP)
        found = np.zeros((len(tokens), 384), np.float32)
        for step in np.unique(steps):
            (alike,) = np.nonzero(steps == step)
            for i in range(0, len(alike), size):
                some = np.resize(alike[i : i + size], size)  # one shape, compiled once
                found[some] = self._encode(params, tokens[some, : step * STEP])
        return found.reshape(*self.test.shape[:2], -1)

    @functools.cached_property
    def dense(self) -> np.ndarray:
        """What the dense network gives."""
        return self.embed(minilm.checkpoint(stacked=True).load())


def search(vectors: np.ndarray) -> np.ndarray:
    """Return the rank of the right document for each query, 1 for the first.

    Of documents that are as near as the right one half count as nearer.
    """
    queries, documents = vectors[:, 0], vectors[:, 1]
    scores = queries @ documents.T
    right = np.diagonal(scores)[:, None]
    ahead = (scores > right).sum(1) + ((scores == right).sum(1) - 1) / 2
    return 1 + ahead


def reads(method: str) -> bool:
    """Tell whether a method looks at data."""
    return bool(METHODS[method].needs_rows or METHODS[method].needs_layers)


def plan(params: Any, setting: str, batch: np.ndarray) -> swapjax.Plan:
    """Plan a setting: the same for every layer."""
    told: dict[str, Any] = {"loss_fn": minilm.contrast, "batch": batch}
    if setting == "2:4":
        return swapjax.plan(params, pattern=swapjax.NM(2, 4), **told)
    sparsity = round(float(setting.removesuffix("%")) / 100, 6)
    return swapjax.plan(params, sparsity, allocation="uniform", **told)


def prune(options: Options, run: Run, data: np.ndarray, params: Any) -> Any:
    """Prune as a run says."""
    more: dict[str, Any] = {"sequential": True} if run.sequential == "yes" else {}
    return swapjax.prune(
        minilm.contrast,
        params,
        data if reads(run.method) else None,
        plan=plan(params, run.setting, data[:2]),
        method=METHODS[run.method],
        stages=run.stages,
        samples=options.samples,
        batch=options.batch,
        dtype=jnp.bfloat16,  # of gradient rows, where they are stored
        key=jax.random.key(run.seed),
        **more,
    )


def measure(options: Options, corpus: Corpus, params: Any, run: Run) -> Run:
    """Do a run."""
    status, sparsity, network = "", 0.0, params
    forget_peak()
    clocks = time.perf_counter(), time.process_time()
    if run.method != "dense":
        pruned = prune(options, run, corpus.calibration, params)
        network = jax.block_until_ready(pruned.params)
        last = pruned.history[-1]
        status, sparsity = last.status.name, last.sparsity
    seconds = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    peak, found = read_peak(), corpus.embed(network)
    ranks = search(found)
    keep_ranks(options.out / "ranks.csv", run, ranks)
    cosine = np.sum(found * corpus.dense, -1).mean()
    return dataclasses.replace(
        run,
        mrr=round(float(np.mean(1 / ranks)), 5),
        first=round(float(np.mean(ranks < 1.5)), 5),
        cosine=round(float(cosine), 5),
        sparsity=round(sparsity, 6),
        seconds=round(seconds[0], 1),
        cpu=round(seconds[1], 1),
        peak=peak,
        status=status,
    )


def forget_peak() -> None:
    """Let Linux count the peak of memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> int:
    """Return the peak of memory, bytes."""
    told = Path("/proc/self/status").read_text()
    return 1024 * int(told.split("VmHWM:")[1].split()[0])


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [Run("dense", "dense", 1, "no", 0)]
    wanted += [
        Run(method, setting, stages, "yes" if sequential else "no", seed)
        for seed in options.seeds
        for stages in options.stages
        for setting in options.settings
        for sequential in options.sequential
        for method in options.methods
        if reads(method) or (seed == options.seeds[0] and not sequential)
    ]
    corpus = Corpus(options)
    # Six layers that are scanned are compiled as one; masks are the same, see --check.
    params = minilm.checkpoint(stacked=True).load()
    done = complete_csv(
        options.out / "results.csv",
        wanted,
        lambda run: measure(options, corpus, params, run),
    )
    ranks = read_ranks(options.out / "ranks.csv")
    console.print(markdown(list(done.values()), ranks), markup=False)
    plot.save(figure(list(done.values())), options.out / "results.png")


if __name__ == "__main__":
    start(main, tyro.cli(Options))
