"""Steps of sparse training beside JaxPruner's, in one run.

LeNet-300-100 with a mask step every 100, and 784-1500-1200-800-10, 4 million weights,
with one every 10; without biases, which JaxPruner's rules do not get on with; batches
of 128, Adam, sparsity 0.9. Each step is a call of a jitted function that is given its
params and state to keep. All take some steps in turn, in an order that is reversed
every other round; ratios to bare Adam are medians over rounds.

Of JaxPruner nothing is here: name your own clone of google-research/jaxpruner and a
folder with what it imports (``pip install --no-deps --target FOLDER chex toolz
ml_collections absl-py``). Without one it is left out.

Writes results.json, and exits with 1 where an aim is missed: between mask steps 1.03
and 1.10 times bare Adam in two programs that the host chooses between, 1.06 and 1.35 in
one, in CPU seconds, which other work on the machine inflates least.
"""

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table
from service import clocked
from shared import RESULTS, console, start

import swapjax
from swapjax.core import files

SPARSITY = 0.9
THEIRS = {
    "static": "static_sparse", "gmp": "magnitude", "set": "set", "rigl": "rigl",
}  # fmt: skip
LATE = 10**6  # a step that is never reached
Step = Callable[[list, tuple, bool], tuple]


class Network(NamedTuple):
    """A network, how often its masks change, and what steps may cost.

    Attributes:
        widths: of its layers.
        every: steps from mask step to mask step, and in a turn.
        two: how many times a bare step one between mask steps may take, where the host
            chooses between two programs.
        one: the same in one.
    """

    widths: tuple[int, ...]
    every: int
    two: float
    one: float


NETWORKS = {
    "lenet": Network((784, 300, 100, 10), 100, 1.03, 1.06),
    "large": Network((784, 1500, 1200, 800, 10), 10, 1.10, 1.35),
}


class Variant(NamedTuple):
    """A way to take steps.

    Attributes:
        rule: its name, or bare.
        how: who takes them, in how many programs.
        masks: whether a turn holds a mask step.
        optimizer: an optax transformation.
        step: params and state after a step, of these, of the loss and a batch, and of
            whether to change masks.
    """

    rule: str
    how: str
    masks: bool
    optimizer: Any
    step: Step


@dataclasses.dataclass(frozen=True)
class Options:
    """Time steps beside JaxPruner's."""

    jaxpruner: Path | None = None
    """A clone of JaxPruner."""
    packages: Path | None = None
    """A folder with what it imports."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Of lenet and large."""
    rules: tuple[str, ...] = ("static", "gmp", "set", "rigl", "granet")
    """Which rules."""
    rounds: int = 9
    """Of a turn of each; the first one does not count."""
    out: Path = RESULTS / "peer_steps"
    """The folder for results.json."""


def main(options: Options) -> None:
    """Measure, and show it."""
    if options.rounds < 2:
        raise SystemExit(f"--rounds must be 2 or more, got {options.rounds}")
    theirs = find(options)
    found, over = {}, []
    for name in options.networks:
        network = NETWORKS[name]
        found[name] = measure(options, network, theirs)
        console.print(name)
        console.print(table(found[name]))
        over += [f"{key} ({name})" for key in missed(network, found[name])]
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_text(options.out / "results.json", json.dumps(found, indent=1) + "\n")
    console.print(f"over its aim: {', '.join(over)}" if over else "every aim is met")
    sys.exit(bool(over))


def find(options: Options) -> Any:
    """Import JaxPruner, or tell why not."""
    if options.jaxpruner is None:
        console.print("without JaxPruner: --jaxpruner was not given")
        return None
    sys.path += [str(path) for path in (options.jaxpruner, options.packages) if path]
    # It calls a name that JAX has dropped.
    setattr(jax, "tree_map", jax.tree.map)  # noqa: B010
    try:
        return importlib.import_module("jaxpruner"), importlib.import_module(
            "ml_collections"
        )
    except ImportError as e:
        console.print(f"without JaxPruner: {e}", soft_wrap=True)
        return None


def measure(options: Options, network: Network, theirs: Any) -> dict[str, list[float]]:
    """Time turns of every variant, and give milliseconds and ratios.

    Returns:
        By rule, how and whether there was a mask step: milliseconds of a step; its
        ratio to the bare one; the same in CPU seconds, and the quartiles of that.
    """
    params = weights(network.widths)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(128, network.widths[0])), jnp.float32)
    y = jnp.asarray(random.integers(0, network.widths[-1], 128))
    variants = list(every_variant(options.rules, network, params, theirs))
    turns = [turn(variant, network.every, params, (x, y)) for variant in variants]
    times = np.zeros((options.rounds, len(turns), 2))
    for number in range(options.rounds):
        order = range(len(turns)) if number % 2 else reversed(range(len(turns)))
        for i in order:
            used = clocked(turns[i])
            times[number, i] = used["total"], used["cpu"]
    ratios = times[1:] / times[1:, :1]
    result = {}
    for i, (rule, how, masks, *_) in enumerate(variants):
        key = f"{rule}, {how}, {'with a mask step' if masks else 'between'}"
        ms = float(np.median(times[1:, i, 0])) * 1e3 / network.every
        low, middle, high = np.quantile(ratios[:, i, 1], (0.25, 0.5, 0.75))
        wall = float(np.median(ratios[:, i, 0]))
        result[key] = [ms, wall, float(middle), float(low), float(high)]
    return result


def every_variant(
    rules: tuple[str, ...], network: Network, params: Any, theirs: Any
) -> Iterator[Variant]:
    """List the ways to take steps, the bare one first."""
    adam = optax.adam(1e-3)
    yield Variant("bare", "Adam", False, adam, plain(adam))
    for rule in rules:
        for masks in (True, False) if rule != "static" else (False,):
            tx = ours(rule, network.every if masks else None)
            yield Variant(rule, "one program", masks, tx, plain(tx))
            if rule != "static":
                chosen = ours(rule, network.every)
                if "mask_step" in inspect.signature(chosen.update).parameters:
                    yield Variant(rule, "two programs", masks, chosen, parted(chosen))
            if theirs and rule in THEIRS:
                yield jaxpruner(rule, network.every if masks else None, theirs)


def ours(rule: str, every: int | None) -> optax.GradientTransformationExtraArgs:
    """Make one of our rules, with a mask step every so many steps, or with none."""
    kind = getattr(swapjax, "set_" if rule == "set" else rule)()
    rise = rule in ("gmp", "granet")
    schedule: Any = {}
    if rule != "static":
        make = swapjax.cubic if rise and every else swapjax.constant
        begin = 0 if every else LATE
        schedule = {"schedule": make(begin, LATE, every=every or LATE)}
    return swapjax.sparse(
        optax.adam(1e-3), kind, sparsity=SPARSITY, key=jax.random.key(0), **schedule
    )


def plain(tx: Any) -> Step:
    """Take steps in one program."""

    def step(loss: Callable, params: Any, state: Any, batch: Any) -> tuple:
        slopes = jax.grad(loss)(params, batch)
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    whole = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))
    return lambda now, data, _: whole(*data[:1], *now, data[1])


def parted(tx: Any) -> Step:
    """Take steps in two programs, chosen on the host."""

    def step(
        mask_step: bool, loss: Callable, params: Any, state: Any, batch: Any
    ) -> Any:
        slopes = jax.grad(loss)(params, batch)
        updates, state = tx.update(slopes, state, params, mask_step=mask_step)
        return optax.apply_updates(params, updates), state

    part = jax.jit(step, static_argnums=(0, 1), donate_argnums=(2, 3))
    return lambda now, data, masks: part(masks, data[0], *now, data[1])


def jaxpruner(rule: str, every: int | None, theirs: Any) -> Variant:
    """Take steps as JaxPruner's documentation does."""
    library, collections = theirs
    settings = {
        "algorithm": THEIRS[rule], "dist_type": "erk", "sparsity": SPARSITY,
        "rng_seed": jax.random.key(0),
    }  # fmt: skip
    if rule != "static":
        settings |= {
            "update_freq": every or LATE, "update_end_step": 2 * LATE,
            "update_start_step": 0 if every else LATE,
        }  # fmt: skip
    if rule in ("set", "rigl"):
        settings["drop_fraction"] = 0.3
    config = collections.ConfigDict(settings)
    updater = library.create_updater_from_config(config)
    tx = updater.wrap_optax(optax.adam(1e-3))

    def step(loss: Callable, params: Any, state: Any, batch: Any) -> tuple:
        def sparse_loss(params: Any) -> jax.Array:
            return loss(updater.pre_forward_update(params, state), batch)

        slopes = jax.grad(sparse_loss)(params)
        updates, new = tx.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        return updater.post_gradient_update(params, new), new

    whole = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))
    return Variant(
        rule, "JaxPruner", every is not None, tx,
        lambda now, data, _: whole(data[0], *now, data[1]),
    )  # fmt: skip


def turn(variant: Variant, count: int, params: Any, batch: Any) -> Callable[[], None]:
    """Make a function that takes some steps, one call each, as users' loops do."""
    # Copies, since each step gives its arguments away.
    mine = jax.tree.map(jnp.array, params)
    now = [mine, jax.tree.map(jnp.array, variant.optimizer.init(mine))]

    def work() -> None:
        for number in range(count):
            masks = variant.masks and number == 0
            now[:] = variant.step(now, (loss_fn, batch), masks)
        jax.block_until_ready(now)

    return work


def weights(widths: tuple[int, ...]) -> dict[str, dict[str, jax.Array]]:
    """Draw He's weights."""
    keys = jax.random.split(jax.random.key(0), len(widths) - 1)
    pairs = zip(keys, widths, widths[1:], strict=False)
    return {
        f"layer{i}": {"kernel": jax.random.normal(key, (a, b)) * (2 / a) ** 0.5}
        for i, (key, a, b) in enumerate(pairs)
    }


def loss_fn(params: Any, batch: tuple) -> jax.Array:
    """Return the cross-entropy of a network of relus."""
    h, y = batch
    *first, last = (params[name]["kernel"] for name in sorted(params))
    for kernel in first:
        h = jax.nn.relu(h @ kernel)
    losses = optax.softmax_cross_entropy_with_integer_labels(h @ last, y)
    return jnp.mean(losses)


def missed(network: Network, found: dict[str, list[float]]) -> list[str]:
    """List what is over its limit."""
    limits = {"one program": network.one, "two programs": network.two}
    over = []
    for key, (_, _, ratio, *_) in found.items():
        rule, how, when = key.split(", ")
        held = rule in ("rigl", "gmp", "granet") and when == "between"
        if held and ratio > limits.get(how, ratio):
            over.append(key)
    return over


def table(found: dict[str, list[float]]) -> Table:
    """Milliseconds of a step, and how many times those of bare Adam."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("a step of", "how", "when", "ms", "ratio", "by CPU", "quartiles"):
        result.add_column(name, no_wrap=True)
    for key, (*numbers, low, high) in found.items():
        cells = [f"{number:.3f}" for number in numbers]
        result.add_row(*key.split(", "), *cells, f"[{low:.3f}, {high:.3f}]")
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
