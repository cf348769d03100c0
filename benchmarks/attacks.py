"""What attacks leave of a small CNN on MNIST, and what a step of an attack costs.

Two networks, of 20,000 images and two epochs: plain, and against PGD of 5 steps at
epsilon 0.2. Each attack alone, then a list in sequence, on the first test images; then
CPU seconds of steps beside a gradient of the input, interleaved.

Then, with a small network on the digits of scikit-learn, APGD and PGD at equal steps in
ten batches; and what attacks leave where the network rounds its inputs, which hides
gradients.

Writes results.csv after each evaluation, then costs.csv, batches.csv and hidden.csv;
what is there is not done again.
"""

import dataclasses
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import DATA, RESULTS, complete, console, read_runs, start, write_runs

from swapjax import canonical_convolutions, robust
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, runner

RADII = {"plain": 0.1, "against PGD": 0.2}
LISTS = {
    "alone": (
        "fgsm", "pgd-ce:20", "apgd-ce:20", "pgd-ce:100", "apgd-ce", "pgd-margin:20",
        "apgd-margin:20", "pgd-dlr:20", "apgd-dlr:20", "apgd-dlr",
    ),
    "in sequence": (
        "pgd-ce:20", "apgd-ce", "pgd-margin:20", "apgd-dlr", "apgd-t", "square:2000",
    ),
}  # fmt: skip
IMAGES, EPOCHS, BATCH = 20_000, 2, 100  # of training
FEW, MANY = 3, 13  # steps that are timed: their difference has no start and no end


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure attacks."""

    examples: int = 200
    """Test images, the first ones."""
    repeats: int = 5
    """Of each timing."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "attacks"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Line:
    """What one attack left of a network."""

    network: str
    how: str
    attack: str
    epsilon: float
    examples: int
    clean: float
    tried: int
    fell: int
    left: float
    zeros: float
    missed: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells lines apart."""
        return self.network, self.how, self.attack


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU seconds of a step, over those of a gradient of the input.

    Attributes:
        attack: what a step is of.
        plain: over those of a compiled gradient, called once.
        looped: over those of a step that does nothing but add the gradient.
        gradient_ms: of the former gradient.
    """

    attack: str
    plain: float
    looped: float
    gradient_ms: float

    @property
    def key(self) -> str:
        """What tells lines apart."""
        return self.attack


@dataclasses.dataclass(frozen=True)
class Batches:
    """Mean cross-entropies that two attacks reach, and batches where APGD is ahead."""

    epsilon: float
    steps: int
    share: float
    apgd: float
    pgd: float
    ahead: int


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What one attack of a sequence left of a network that rounds its inputs or not."""

    inputs: str
    attack: str
    clean: float
    tried: int
    fell: int
    left: float
    zeros: float


def main(options: Options) -> None:
    """Train, attack, time."""
    data = datasets.load(options.data)
    model = models.create("cnn", data.shape, data.classes)
    images, tests = (
        np.clip(x * data.std + data.mean, 0, 1).astype(np.float32)
        for x in (data.x_train[:IMAGES], data.x_test[: options.examples])
    )
    labels, truth = data.y_train[:IMAGES], data.y_test[: options.examples]
    path = options.out / "results.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    trained: dict[str, Params] = {}

    def attack(item: tuple[str, str]) -> dict:
        network, how = item
        state = options.out / f"{network} {how} {options.examples}.state"
        if network not in trained:
            trained[network] = train(model, images, labels, network)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = robust.evaluate(
                model.apply, trained[network], (tests, truth), epsilon=RADII[network],
                key=jax.random.key(0), attacks=LISTS[how], alone=how == "alone",
                batch=100, checkpoint=state,
            )  # fmt: skip
        for warning in caught:
            console.print(f"  {warning.message}", highlight=False)
        lines = [
            Line(
                network, how, attempt.attack, found.epsilon, found.examples,
                found.clean, attempt.tried, attempt.fell,
                attempt.left if attempt.alone is None or how != "alone"
                else attempt.alone,
                found.zero_gradients, found.missed or 0.0,
            )
            for attempt in found.attempts
        ]  # fmt: skip
        return {line.key: line for line in lines}

    complete(
        [(network, how) for network in RADII for how in LISTS],
        {line.key: line for line in read_runs(path, Line)},
        attack,
        lambda done: write_runs(path, list(done.values())),
        lambda item: [(*item, name) for name in LISTS[item[1]]],
    )
    for state in options.out.glob("*.state"):
        state.unlink()
    show(read_runs(path, Line))
    parts: dict[str, Callable[[], list]] = {
        "costs.csv": lambda: measure(
            model, jnp.asarray(tests), jnp.asarray(truth), options.repeats
        ),
        "batches.csv": compare,
        "hidden.csv": hide,
    }
    for name, part in parts.items():
        if not (options.out / name).exists():
            write_runs(options.out / name, part())
        console.print((options.out / name).read_text())


def train(model: models.Model, images: Any, labels: Any, network: str) -> Params:
    """Train with Adam, its learning rate falling to zero by a cosine."""
    per_epoch = len(images) // BATCH
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, EPOCHS * per_epoch))

    def loss(params: Params, x: Any, y: Any, key: jax.Array) -> jax.Array:
        if network == "against PGD":
            x = robust.pgd(
                key, model.apply, params, x, y, epsilon=0.2, step=0.1, steps=5
            )
        return jnp.mean(robust.cross_entropy(model.apply(params, x), y))

    @jax.jit
    def step(params: Params, state: Any, x: Any, y: Any, key: jax.Array) -> tuple:
        updates, state = tx.update(jax.grad(loss)(params, x, y, key), state)
        return optax.apply_updates(params, updates), state

    params, orders = model.params, np.random.default_rng(0)
    state = tx.init(params)
    for epoch in range(EPOCHS):
        order = orders.permutation(len(images)).reshape(per_epoch, BATCH)
        for number, index in enumerate(order):
            key = jax.random.fold_in(jax.random.key(epoch), number)
            params, state = step(params, state, images[index], labels[index], key)
    return params


def measure(
    model: models.Model, images: jax.Array, labels: jax.Array, repeats: int
) -> list[Cost]:
    """Time steps and gradients in turn, so that other work slows both."""
    params, key = model.params, jax.random.key(0)

    def total(x: jax.Array, params: Params) -> jax.Array:
        return jnp.sum(robust.cross_entropy(model.apply(params, x), labels))

    plain = jax.jit(jax.grad(total))
    canonical = canonical_convolutions(jax.grad(total))

    @jax.jit
    def add(steps: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(
            0, steps, lambda _, x: x + 1e-6 * canonical(x, params), images
        )

    given = model.apply, params, images, labels
    attacks: dict[str, Callable[[int], jax.Array]] = {
        "pgd": lambda steps: robust.pgd(
            key, *given, epsilon=0.2, step=0.02, steps=steps
        ),
        "pgd, l2": lambda steps: robust.pgd(
            key, *given, epsilon=2.0, step=0.2, steps=steps, norm="l2"
        ),
        "apgd": lambda steps: robust.apgd(key, *given, epsilon=0.2, steps=steps),
        "apgd, dlr": lambda steps: robust.apgd(
            key, *given, epsilon=0.2, steps=steps, objective="dlr"
        ),
        "apgd, l2": lambda steps: robust.apgd(
            key, *given, epsilon=2.0, steps=steps, norm="l2"
        ),
    }
    found = []
    for name, attack in attacks.items():
        clock(attack, FEW)
        clock(plain, images, params)
        clock(add, FEW)
        turns = []
        for _ in range(repeats):
            one = statistics.median(clock(plain, images, params) for _ in range(3))
            step, bare = (
                (clock(work, MANY) - clock(work, FEW)) / (MANY - FEW)
                for work in (attack, add)
            )
            turns.append((step / one, step / bare, 1e3 * one))
        medians = [
            round(statistics.median(turn), 3) for turn in zip(*turns, strict=True)
        ]
        found.append(Cost(name, *medians))
    return found


def digits() -> tuple[Callable, Params, np.ndarray, np.ndarray]:
    """Train MLPNet on digits, of images in [0, 1]; return the 360 of the test, too."""
    data = datasets.load("digits")
    model = models.create("mlpnet", data.shape, data.classes)
    params = runner.set_up(data, model, epochs=15).params

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return model.apply(params, (x - data.mean) / data.std)

    images = np.clip(data.x_test * data.std + data.mean, 0, 1).astype(np.float32)
    return apply, params, images, data.y_test


def compare() -> list[Batches]:
    """Let APGD and PGD, of steps of a share of epsilon, start from the same points."""
    apply, params, images, labels = digits()
    batches = [
        (jax.random.key(i), images[36 * i :][:36], jnp.asarray(labels[36 * i :][:36]))
        for i in range(10)
    ]

    def losses(attack: Callable, **settings: Any) -> np.ndarray:
        found = []
        for key, x, y in batches:
            moved = attack(key, apply, params, x, y, **settings)
            found.append(jnp.mean(robust.cross_entropy(apply(params, moved), y)))
        return np.asarray(found)

    found = []
    for epsilon, steps in itertools.product((0.05, 0.1, 0.2, 0.3), (10, 20, 50)):
        sizes = {"epsilon": epsilon, "steps": steps}
        own = losses(robust.apgd, **sizes)
        for share in (0.25, 0.1):
            other = losses(robust.pgd, step=share * epsilon, **sizes)
            ahead = int(np.sum(own >= other))
            means = float(own.mean()), float(other.mean())
            found.append(Batches(epsilon, steps, share, *means, ahead))
    return found


def hide() -> list[Hidden]:
    """Attack a network, and the same behind inputs rounded to the levels of a scan."""
    apply, params, images, labels = digits()

    def rounded(params: Params, x: jax.Array) -> jax.Array:
        return apply(params, jnp.round(16 * x) / 16)

    lines = []
    for name, network in {"as they are": apply, "rounded": rounded}.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = robust.evaluate(
                network, params, (images, labels), epsilon=0.1, batch=360,
                key=jax.random.key(0), attacks=("pgd-ce", "apgd-dlr", "square:2000"),
            )  # fmt: skip
        for warning in caught:
            console.print(f"  {warning.message}", highlight=False)
        lines += [
            Hidden(
                name, attempt.attack, found.clean, attempt.tried, attempt.fell,
                attempt.left, found.zero_gradients,
            )
            for attempt in found.attempts
        ]  # fmt: skip
    return lines


def clock(work: Callable, *args: Any) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    jax.block_until_ready(work(*args))
    return time.process_time() - started


def show(lines: list[Line]) -> None:
    """Print what attacks left."""
    table = Table("network", "how", "attack", "tried", "fell", "left, %")
    for line in lines:
        left = f"{100 * line.left:.1f}"
        table.add_row(
            line.network, line.how, line.attack, str(line.tried), str(line.fell), left
        )
    console.print(table)


if __name__ == "__main__":
    start(main, tyro.cli(Options, description=__doc__))
