"""A dataset, a trained network, and runs of pruning on them; the commands share it."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core import identity
from swapjax.core.types import Params
from swapjax.experiments import datasets, models
from swapjax.experiments.noise import CLEAN, Noise, Scene, Spoilt, parse
from swapjax.io import checkpoint
from swapjax.loops.finetune import FineTune, finetune
from swapjax.pruning import Method, Pruned, prune
from swapjax.sparsity import masks
from swapjax.sparsity.plan import Plan

RECIPE = "adam, 64 a batch, rate 0.003 to 0 by a cosine"  # what trains networks here
_TEST_BATCH = 1000
_NOISE = 2**31  # folded into a key for noise; runs fold the numbers of stages in


@dataclasses.dataclass(frozen=True)
class Setting:
    """A trained network and the data it was trained on.

    Attributes:
        data: images and labels.
        model: the network; its params are the initial ones.
        params: the trained ones.
    """

    data: datasets.Dataset
    model: models.Model
    params: Params


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of pruning, as a line of a table.

    Attributes:
        method: its name.
        sparsity: as asked for.
        seed: of the run.
        noise: its word, as ``gaussian:4,0.5``.
        accuracy: percent of the whole test set that is classified correctly.
        loss: mean cross-entropy over the test set.
        seconds: wall time of its stages, compilation included.
        nonzeros: prunable entries that are left.
        total: prunable entries.
        status: the worst that a stage reported, by name.
        settings: the method in full.
        setup: what else the run was done with.
    """

    method: str
    sparsity: float
    seed: int
    noise: str
    accuracy: float
    loss: float
    seconds: float
    nonzeros: int
    total: int
    status: str
    settings: str = ""
    setup: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Turn into what JSON takes; a number that is not finite becomes null."""
        fields = dataclasses.asdict(self)
        for name in ("accuracy", "loss"):
            if not math.isfinite(fields[name]):
                fields[name] = None
        return fields

    @classmethod
    def from_dict(cls, fields: Any) -> "Row":
        """Undo `to_dict`.

        Raises:
            ValueError: for what it never gives, naming the column.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or set(fields) != set(names):
            found = sorted(fields) if isinstance(fields, dict) else repr(fields)[:60]
            raise ValueError(f"columns {', '.join(names)} wanted, got {found}")
        if fields["noise"] is None or isinstance(fields["noise"], list):
            raise ValueError(
                f"noise is {str(fields['noise'])[:60]}, as in rows of before; "
                f"kinds of noise have names now, as {parse('gaussian')}"
            )
        for name, fits in _COLUMNS.items():
            if not fits(fields[name]):
                raise ValueError(f"{name} is {repr(fields[name])[:60]}")
        if fields["nonzeros"] > fields["total"]:
            raise ValueError(
                f"nonzeros is {fields['nonzeros']}, of {fields['total']} in all"
            )
        lost = {k: math.nan for k in ("accuracy", "loss") if fields[k] is None}
        return cls(**{**fields, **lost})


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and math.isfinite(value) and low <= value <= high


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_noise(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(parse(value)) == value
    except ValueError:
        return False


# What `Row.from_dict` takes in each column.
_COLUMNS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("method", "status", "settings", "setup"), lambda v: isinstance(v, str)
    ),
    **dict.fromkeys(("seed", "nonzeros", "total"), _is_count),
    "sparsity": lambda v: _is_number(v, 0, 1),
    "noise": _is_noise,
    "accuracy": lambda v: v is None or _is_number(v, 0, 100),
    "loss": lambda v: v is None or _is_number(v),
    "seconds": lambda v: _is_number(v, 0),
}


def set_up(
    data: datasets.Dataset,
    model: models.Model,
    *,
    weights: str | Path | None = None,
    epochs: int = 60,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> Setting:
    """Load trained weights, or train.

    Args:
        data: images and labels.
        model: the network.
        weights: a file to load; without one the network is trained.
        epochs: passes over the training set: Adam, batches of 64, the learning rate
            falling from 3e-3 to 0 along a cosine.
        seed: of the shuffles.
        callback: called with the number of steps done and of all steps.

    Raises:
        ValueError: for weights that cannot be read or do not fit.
    """
    if weights is not None:
        # None of our networks has a transposed convolution.
        params = checkpoint.load_params(
            weights, model.params, model.flattened, transposed=()
        )
        return Setting(data, model, params)
    if epochs < 1:
        raise ValueError(f"epochs must be 1 or more, got {epochs}")
    batch = min(64, len(data.y_train))
    steps = epochs * (len(data.y_train) // batch)
    rate = optax.cosine_decay_schedule(3e-3, steps)
    params = finetune(
        model.loss_fn,
        model.params,
        data.train,
        FineTune(optax.adam(rate), steps=steps, batch=batch),
        key=jax.random.key(seed),
        callback=callback,
    )
    return Setting(data, model, params)


def digest(data: datasets.Dataset) -> str:
    """Tell data apart by content, standardisation and split, not by name."""
    return identity.digest({"train": data.train, "test": data.test})


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The accuracy on the test set, as drivers of training take it.

    A state that they keep tells which test set its history was measured on.
    """

    setting: Setting

    def __call__(self, params: Params) -> float:
        """Measure in percent."""
        return evaluate(self.setting, params)[0]

    def describe(self) -> str:
        """Return a fingerprint of the test set."""
        return f"accuracy on {identity.digest(self.setting.data.test)}"


def evaluate(setting: Setting, params: Params) -> tuple[float, float]:
    """Measure the accuracy in percent and the mean loss on the whole test set."""
    correct, loss = 0, 0.0
    x, y = setting.data.test
    for start in range(0, len(y), _TEST_BATCH):
        images, labels = x[start : start + _TEST_BATCH], y[start : start + _TEST_BATCH]
        logits = setting.model.logits(setting.model.apply(params, jnp.asarray(images)))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct += int(jnp.sum(jnp.argmax(logits, axis=1) == labels))
        loss += float(jnp.sum(losses))
    return 100 * correct / len(y), loss / len(y)


def spoil(setting: Setting, noise: Noise, seed: int) -> Spoilt:
    """Spoil what a run looks at, attacks made with the dense network.

    Args:
        setting: network and data.
        noise: the kind and its level.
        seed: of the run.

    Raises:
        ValueError: for data that this noise cannot spoil.
    """
    key = jax.random.fold_in(jax.random.key(seed), _NOISE)
    scene = Scene(setting.data, setting.model.loss_fn, setting.params)
    return noise.spoil(key, scene)


def run(
    setting: Setting,
    method: Method,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    seed: int,
    noise: Noise = CLEAN,
    spoilt: Spoilt | None = None,
    **options: Any,
) -> tuple[Row, Pruned]:
    """Prune once and measure what came of it.

    Args:
        setting: network and data.
        method: how.
        sparsity: how far.
        plan: instead of a sparsity.
        seed: of the samples, the noise and the fine-tuning.
        noise: what spoils data or gradients, never the test set.
        spoilt: what it made of them for this seed, where `spoil` was called already.
        options: what else `prune` takes.

    Raises:
        ValueError: as `prune` does.
    """
    data, corruption = spoil(setting, noise, seed) if spoilt is None else spoilt
    pruned = prune(
        setting.model.loss_fn,
        setting.params,
        data,
        sparsity=sparsity,
        plan=plan,
        method=method,
        key=jax.random.key(seed),
        noise=corruption,
        **options,
    )
    accuracy, loss = evaluate(setting, pruned.params)
    total = masks.count(pruned.masks)[1]
    level = sparsity if plan is None else plan.sparsity
    assert level is not None
    nonzeros = masks.count(masks.from_zeros(pruned.params, pruned.masks))[0]
    worst = max((stage.status for stage in pruned.history), key=int)
    row = Row(
        method=method.name,
        sparsity=float(level),
        seed=seed,
        noise=str(noise),
        accuracy=accuracy,
        loss=loss,
        seconds=sum(stage.seconds for stage in pruned.history),
        nonzeros=nonzeros,
        total=total,
        status=worst.name.lower(),
        settings=str(method),
    )
    return row, pruned
