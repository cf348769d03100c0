"""Networks with half of their channels, heads or hidden units removed from the arrays.

Weights are those that networks start with, and norms and biases get some noise, so that
nothing is zero by chance; those of minilm, efficientnet_lite0 and crepe, which need the
extra [real], are the ones that were published. Half of each group of units that are
tied goes, with the smallest sums of magnitudes; of transformers heads and hidden units
alone.
Outputs are compared with those of the masked network, sizes with what the groups say.
Times are CPU seconds of calls that are compiled, dense and shrunk in turn.

Results go to ``benchmarks/results/shrink/results.csv``.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table
from shared import RESULTS, complete_csv, console, start

import swapjax
from swapjax.core import trees
from swapjax.experiments import models

PATH = RESULTS / "shrink" / "results.csv"
# Sides of the images, how many.
IMAGES = {
    "lenet300": (28, 64),
    "lenet5": (28, 64),
    "resnet20": (32, 32),
    "mobilenet_v1": (64, 8),
    "resnet50": (64, 8),
    "vgg16": (64, 4),
}
NETWORKS = (*IMAGES, "transformer", "transformer, scanned")
# With the weights that were published, of the extra [real].
REAL = ("minilm", "efficientnet_lite0", "crepe")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is left of a network, and of its time.

    Attributes:
        network: its name.
        groups: of units that are tied to each other.
        units: in all groups.
        removed: of these.
        entries: of params, dense.
        left: entries of the smaller arrays.
        expected: what the groups say is left.
        multiplications: of dense products, for the inputs.
        multiplications_left: of the smaller ones.
        error: the largest difference of outputs, of the largest output.
        rebuilt: 1 where the function knows sizes, and its program is taken for it.
        seconds: of the CPU, to shrink.
        dense: CPU seconds of a call.
        shrunk: likewise.
        ratio: median over rounds of shrunk to dense.
    """

    network: str
    groups: int = 0
    units: int = 0
    removed: int = 0
    entries: int = 0
    left: int = 0
    expected: int = 0
    multiplications: int = 0
    multiplications_left: int = 0
    error: float = float("nan")
    rebuilt: int = 0
    seconds: float = float("nan")
    dense: float = float("nan")
    shrunk: float = float("nan")
    ratio: float = float("nan")

    @property
    def key(self) -> str:
        """What it is known by."""
        return self.network

    def __str__(self) -> str:
        return self.network


@dataclasses.dataclass(frozen=True)
class Options:
    """Shrink networks to half of their units."""

    networks: tuple[str, ...] = NETWORKS
    """Which of them, or of minilm, efficientnet_lite0 and crepe."""
    rounds: int = 15
    """Calls of dense and shrunk networks, in turn."""


class Block(nn.Module):
    """Attention and an MLP, with layer norm before each."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Tokens [n, t, d] to the same."""
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=8, name="attention")(y, y)
        y = nn.Dense(1024, name="up")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(y)), None


class Transformer(nn.Module):
    """Six blocks of width 256."""

    scanned: bool

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [n, t] to logits [n, t, 1000]."""
        x = nn.Embed(1000, 256, name="embed")(tokens)
        if self.scanned:
            scan = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True},
                length=6,
            )  # fmt: skip
            x, _ = scan(name="blocks")(x, None)
        else:
            for i in range(6):
                x, _ = Block(name=f"block{i}")(x)
        return nn.Dense(1000, name="head")(nn.LayerNorm(name="norm")(x))


def network_of(name: str) -> tuple[Callable[..., Any], Any, jax.Array]:
    """Make a network, its weights and inputs for it."""
    if name in REAL:
        return real_network_of(name)
    apply: Callable[..., Any]
    if name in IMAGES:
        side, count = IMAGES[name]
        shape = (side, side, 1 if name.startswith("lenet") else 3)
        model = models.create(name, shape, 10)
        apply, params = model.apply, model.params
        x = jax.random.normal(jax.random.key(1), (count, *shape))
    else:
        network = Transformer("scanned" in name)
        x = jax.random.randint(jax.random.key(1), (8, 64), 0, 1000)
        params = network.init(jax.random.key(0), x)["params"]

        def apply(params: Any, x: jax.Array) -> Any:
            return network.apply({"params": params}, x)

    generator = np.random.default_rng(0)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    noisy = [
        leaf + 0.1 * generator.normal(size=leaf.shape).astype(leaf.dtype)
        if path.split("/")[-1] in ("bias", "scale", "mean")
        else leaf
        for path, leaf in zip(trees.paths(params), leaves, strict=True)
    ]
    return apply, jax.tree.unflatten(jax.tree.structure(params), noisy), x


def real_network_of(name: str) -> tuple[Callable[..., Any], Any, jax.Array]:
    """Load a network that was published, and inputs for it."""
    generator = np.random.default_rng(1)
    if name == "minilm":
        import minilm

        tokens = generator.integers(1000, 30000, (8, 64))
        params = minilm.checkpoint(stacked=False).load()
        return minilm.encode, params, jnp.asarray(tokens, np.int32)
    if name == "crepe":
        import real_crepe

        frames = generator.normal(size=(4, 1024)).astype(np.float32)
        return real_crepe.apply, real_crepe.load("full"), jnp.asarray(frames)
    import real_efficientnet

    images = generator.normal(size=(2, 224, 224, 3)).astype(np.float32)
    return real_efficientnet.apply, real_efficientnet.load(), jnp.asarray(images)


def is_pruned(network: str, group: Any) -> bool:
    """Of a transformer, heads and hidden units: no width, no entries of heads."""
    if "transformer" in network:
        heads = len(group) == 8 and len(group.members) > 4
        return heads or len(group) == 1024
    return True


def score_units(ties: swapjax.Ties, params: Any) -> list[np.ndarray]:
    """Sum magnitudes over all entries of each unit, one array a group."""
    leaves = [np.abs(leaf) for leaf in jax.tree.leaves(params)]
    found = []
    for group in ties.groups:
        total = np.zeros(len(group))
        for member in group.members:
            array = leaves[member.leaf]
            others = tuple(i for i in range(array.ndim) if i != member.axis)
            own = np.asarray(array.sum(axis=others, dtype=np.float64))
            total += own[member.positions].sum(axis=1)
        found.append(total)
    return found


def masks_without(ties: swapjax.Ties, removed: list[np.ndarray]) -> Any:
    """Mask all but some units; of each group bool [units]."""
    leaves = [np.ones(shape, bool) for shape in ties.shapes]
    for group, gone in zip(ties.groups, removed, strict=True):
        for member in group.members:
            moved = np.moveaxis(leaves[member.leaf], member.axis, 0)
            moved[member.positions[gone].reshape(-1)] = False
    return jax.tree.unflatten(ties.tree, leaves)


def measure(run: Run, rounds: int) -> Run:
    """Shrink a network, and take its time."""
    apply, params, x = network_of(run.network)
    ties = swapjax.find_ties(apply, params, x)
    scores = score_units(ties, params)
    gone = []
    for group, own in zip(ties.groups, scores, strict=True):
        flags = np.zeros(len(group), bool)
        if is_pruned(run.network, group):
            flags[np.argsort(own)[: len(group) // 2]] = True
        gone.append(flags)
    units = [
        int(unit)
        for group, flags in zip(ties.groups, gone, strict=True)
        for unit in group.units[flags]
    ]
    masks = masks_without(ties, gone)
    started = time.process_time()
    small = swapjax.shrink(apply, params, masks, x)
    seconds = time.process_time() - started
    masked = swapjax.apply_masks(params, masks)
    pairs = [
        (jax.jit(apply), masked),
        (jax.jit(small.apply), small.params),
    ]
    outputs = [np.asarray(call(p, x)) for call, p in pairs]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for (call, p), clock in zip(pairs, times, strict=True):
            began = time.process_time()
            jax.block_until_ready(call(p, x))
            clock.append(time.process_time() - began)
    return dataclasses.replace(
        run,
        groups=len(ties.groups),
        units=sum(map(len, ties.groups)),
        removed=sum(small.removed.values()),
        entries=sum(ties.entries()),
        left=sum(leaf.size for leaf in jax.tree.leaves(small.params)),
        expected=sum(ties.entries(units)),
        multiplications=ties.multiplications(),
        multiplications_left=ties.multiplications(units),
        error=float(
            np.max(np.abs(outputs[0] - outputs[1])) / np.max(np.abs(outputs[0]))
        ),
        rebuilt=int(small.is_rebuilt),
        seconds=seconds,
        dense=statistics.median(times[0]),
        shrunk=statistics.median(times[1]),
        ratio=statistics.median(b / a for a, b in zip(*times, strict=True)),
    )


def main(options: Options) -> None:
    """Measure what is not measured yet, and show it."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    runs = complete_csv(
        PATH,
        [Run(name) for name in options.networks],
        lambda run: measure(run, options.rounds),
    )
    table = Table("network", "units", "entries", "left", "error", "time of dense")
    for run in runs.values():
        table.add_row(
            run.network,
            f"{run.units - run.removed} of {run.units}",
            f"{run.entries:,}",
            f"{run.left:,}",
            f"{run.error:.1e}",
            f"{run.ratio:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    start(main, tyro.cli(Options))
