"""MiniLM-L6 pruned layer by layer: how well docstrings still find their functions.

A query is the first line of a docstring of the standard library, its document the
function (`docstrings`); half of the pairs are for calibration, half for the test, by
the hashes of their names. Writes results.csv after every run and goes on where it
stopped. The peak of memory is that of pruning, as Linux counts it: JAX, the network and
the pairs are in it, which the line of the dense network tells.

With --check: the function against the similarities that are published and against BERT
in PyTorch, the file of a pruned network against its source, masks of listed layers
against those of stacked ones. Writes checks.json.
"""

import dataclasses
import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import docstrings
import jax
import jax.numpy as jnp
import minilm
import numpy as np
import tyro
from minilm import LONGEST
from rich.table import Table
from shared import RESULTS, complete_csv, console, start

import swapjax
from swapjax.core import files
from swapjax.io import huggingface
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
    calibration: int = 1024
    """Pairs to draw from."""
    samples: int = 48
    """Rows."""
    batch: int = 4
    """Pairs a row, each the others' wrong answers."""
    test: int = 500
    """Pairs to search among."""
    out: Path = RESULTS / "real_minilm"
    """The folder for results.csv and checks.json."""
    check: bool = False
    """Do the checks in place of the runs."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results."""

    method: str
    setting: str
    stages: int
    sequential: str
    seed: int
    mrr: float = float("nan")
    first: float = float("nan")
    cosine: float = float("nan")
    sparsity: float = float("nan")
    seconds: float = float("nan")
    cpu: float = float("nan")
    peak: int = 0
    status: str = ""

    def __str__(self) -> str:
        order = ", in order" if self.sequential == "yes" else ""
        stages = f", {self.stages} stages" if self.stages > 1 else ""
        return f"{self.method}, {self.setting}{stages}{order}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.method, self.setting, self.stages, self.sequential, self.seed


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
        return self.embed(minilm.checkpoint(stacked=False).load())


def search(vectors: np.ndarray) -> tuple[float, float]:
    """Return the mean reciprocal rank of the right document, and how often it is first.

    Of documents that are as near as the right one half count as nearer.
    """
    queries, documents = vectors[:, 0], vectors[:, 1]
    scores = queries @ documents.T
    right = np.diagonal(scores)[:, None]
    ahead = (scores > right).sum(1) + ((scores == right).sum(1) - 1) / 2
    return float(np.mean(1 / (1 + ahead))), float(np.mean(ahead < 0.5))


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
    mrr, first = search(found)
    cosine = np.sum(found * corpus.dense, -1).mean()
    return dataclasses.replace(
        run,
        mrr=round(mrr, 5),
        first=round(first, 5),
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
    if options.check:
        found = check(options)
        files.write_text(
            options.out / "checks.json", json.dumps(found, indent=2) + "\n"
        )
        console.print_json(json.dumps(found))
        return
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
    params, corpus = minilm.checkpoint(stacked=False).load(), Corpus(options)
    done = complete_csv(
        options.out / "results.csv",
        wanted,
        lambda run: measure(options, corpus, params, run),
    )
    console.print(table([done[run.key] for run in wanted]))


def table(runs: list[Run]) -> Table:
    """Tabulate runs."""
    shown = Table(title="docstring to function")
    for column in ("run", "MRR", "first", "cosine to dense", "s", "peak, GB"):
        shown.add_column(column, justify="left" if column == "run" else "right")
    for run in runs:
        shown.add_row(
            str(run), f"{run.mrr:.4f}", f"{run.first:.3f}", f"{run.cosine:.4f}",
            f"{run.seconds:.0f}", f"{run.peak / 1e9:.2f}",
        )  # fmt: skip
    return shown


def check(options: Options) -> dict[str, Any]:
    """Hold the function and its files against what is known otherwise."""
    trees = {"listed": False, "scanned": True}
    opened = {k: minilm.checkpoint(stacked=v) for k, v in trees.items()}
    params = {name: source.load() for name, source in opened.items()}
    texts, published = minilm.PUBLISHED
    tokens = minilm.tokenize(texts, 16)
    vectors = minilm.encode(params["listed"], tokens)
    many = Corpus(options)
    sample = many.test[:32, 1]
    ours = np.asarray(minilm.encode(params["listed"], sample))
    found: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "pairs": len(docstrings.pairs()),
        "published similarities, largest difference": float(
            np.abs(np.round(vectors @ vectors.T, 4) - np.asarray(published)).max()
        ),
        "PyTorch, largest difference": float(np.abs(ours - torch_bert(sample)).max()),
        "scanned, largest difference": float(
            np.abs(ours - np.asarray(minilm.encode(params["scanned"], sample))).max()
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        same = Path(folder) / "same.safetensors"
        opened["scanned"].save(same, params["scanned"])
        original = minilm.folder() / "model.safetensors"
        found["saved unchanged, same bytes"] = (
            same.read_bytes() == original.read_bytes()
        )
        for setting in ("2:4", "50%"):
            told = check_files(options, setting, opened, params, many, Path(folder))
            found |= {f"{setting}, {what}": value for what, value in told.items()}
    return found


def check_files(
    options: Options,
    setting: str,
    opened: dict[str, Any],
    params: dict[str, Any],
    corpus: Corpus,
    folder: Path,
) -> dict[str, Any]:
    """Prune both trees, save one, and read it with the library of others."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for method in options.methods:
        run = Run(method, setting, 1, "no", 0)
        if METHODS[method].needs_rows:
            continue
        pruned = {
            k: prune(options, run, corpus.calibration, p) for k, p in params.items()
        }
        masks = {k: dict(opened[k].by_name(v.masks)) for k, v in pruned.items()}
        differ = sum(
            int(np.sum(mask != masks["scanned"][name]))
            for name, mask in masks["listed"].items()
        )
        found[f"{method}, masks of listed and scanned that differ"] = differ
    path = folder / "pruned.safetensors"
    opened["listed"].save(path, pruned["listed"].params)
    theirs, before = load_file(path), load_file(minilm.folder() / "model.safetensors")
    found["read by safetensors.torch, names, dtypes and shapes as before"] = all(
        theirs[name].dtype == old.dtype and theirs[name].shape == old.shape
        for name, old in before.items()
    ) and list(theirs) == list(before)
    found["zeros in the file where masks are False"] = all(
        not theirs[name].numpy()[~mask].any() for name, mask in masks["listed"].items()
    )
    again = opened["listed"].shapes()
    back = huggingface.open_checkpoint(path, minilm.names(stacked=False))
    found["read back, same tree"] = back.shapes() == again
    return found


def torch_bert(tokens: np.ndarray) -> np.ndarray:
    """Embed texts by BERT's equations in PyTorch, from the file and its names."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional

    weights = load_file(minilm.folder() / "model.safetensors")
    ids = torch.from_numpy(tokens.astype(np.int64))[:, :LONGEST]
    there = ids != 0

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], scale, bias, minilm.EPSILON)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(6):
        name = f"encoder.layer.{i}"
        query, key, value = (
            dense(x, f"{name}.attention.self.{part}")
            .unflatten(-1, (minilm.HEADS, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        read = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=there[:, None, None, :]
        )
        read = read.transpose(1, 2).flatten(2)
        out = dense(read, f"{name}.attention.output.dense")
        x = norm(x + out, f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(dense(x, f"{name}.intermediate.dense"))
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    pooled = (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    return functional.normalize(pooled, dim=1).numpy()


if __name__ == "__main__":
    start(main, tyro.cli(Options))
