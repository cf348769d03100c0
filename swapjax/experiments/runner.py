"""A dataset, a trained network, and runs of pruning on them; the commands share it."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import identity
from swapjax.core.types import LossFn, Params
from swapjax.experiments import datasets, models
from swapjax.experiments.noise import CLEAN, Noise, Scene, Spoilt
from swapjax.experiments.row import Row
from swapjax.gradients.harm import SHARE, harm_in_batches
from swapjax.io import checkpoint, huggingface
from swapjax.loops.batchnorm import recalibrate_batchnorm
from swapjax.loops.finetune import FineTune, finetune
from swapjax.pruning import Method, Pruned, prune
from swapjax.sparsity import masks
from swapjax.sparsity.plan import Plan

RECIPE = "adam, 64 a batch, rate 0.003 to 0 by a cosine"  # what trains networks here
_TEST_BATCH = 1000
_CALIBRATION = 2048  # training images that statistics of batch norm are estimated on
_CALIBRATION_BATCH = 512
_JUDGING = 8  # images, at least, whose statistics of batch norm tell the harm
_PIXELS = 2**23  # of images at once, so that large ones leave room for activations
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
            falling from 3e-3 to 0 along a cosine. Batch norm takes the statistics of
            the batch, and its running ones are estimated in the end.
        seed: of the shuffles.
        callback: called with the number of steps done and of all steps.

    Raises:
        ValueError: for weights that cannot be read or do not fit.
    """
    if weights is not None:
        return Setting(data, model, load_weights(weights, model))
    if epochs < 1:
        raise ValueError(f"epochs must be 1 or more, got {epochs}")
    batch = min(64, len(data.y_train))
    steps = epochs * (len(data.y_train) // batch)
    rate = optax.cosine_decay_schedule(3e-3, steps)
    params = finetune(
        model.training_loss,
        model.params,
        data.train,
        FineTune(optax.adam(rate), steps=steps, batch=batch),
        key=jax.random.key(seed),
        callback=callback,
    )
    setting = Setting(data, model, params)
    return dataclasses.replace(setting, params=settled(setting, params))


def load_weights(path: str | Path, model: models.Model) -> Params:
    """Read trained weights for a network.

    Args:
        path: of a file with our names, or with PyTorch's names and layouts; or of
            shards, their index or folder, with our names or dots for their slashes.
        model: the network.

    Raises:
        ValueError: for weights that cannot be read or do not fit.
    """
    if Path(path).is_dir() or str(path).endswith(".index.json"):
        return huggingface.open_checkpoint(path).load(model.params)
    # None of our networks has a transposed convolution.
    transposed = None if models.is_own(model.name) else ()
    return checkpoint.load_params(
        path, model.params, model.flattened, transposed=transposed
    )


def recalibration(setting: Setting) -> Callable[[Params], Params] | None:
    """Make what estimates the running statistics of batch norm anew.

    Args:
        setting: network and data; 2,048 of its training images are taken, or all, the
            same ones each time.

    Returns:
        ``params -> params``; None for a network without batch norm.
    """
    statistics, images = setting.model.statistics, setting.data.x_train
    if statistics is None:
        return None
    # Some files have their images class by class.
    order = np.random.default_rng(0).permutation(len(images))[:_CALIBRATION]
    size = _at_once(setting.data, _CALIBRATION_BATCH)
    # A rest would be few, and the variance of a few is too small.
    parts = max(1, len(order) // size)
    batches = [images[part] for part in np.array_split(order, parts)]
    return lambda params: recalibrate_batchnorm(statistics, params, batches)


def judge(setting: Setting, method: Method, batch: int) -> LossFn | None:
    """Make what judges where batch norm is estimated anew after each stage.

    Args:
        setting: network and data.
        method: that prunes.
        batch: examples in a row.

    Returns:
        The harm by the statistics of each row. None, for the method's own criterion, if
        that is none, without batch norm, with other losses than the cross-entropy, and
        for rows of few examples.
    """
    losses = setting.model.training_losses
    if losses is None or method.criterion != "harm" or batch < _JUDGING:
        return None
    unit = SHARE * math.log(max(2, setting.data.classes))
    return harm_in_batches(losses, setting.params, unit=unit)


def settled(setting: Setting, params: Params) -> Params:
    """Estimate the running statistics of batch norm, if the network has any."""
    again = recalibration(setting)
    return params if again is None else again(params)


def _at_once(data: datasets.Dataset, most: int) -> int:
    return max(1, min(most, _PIXELS // math.prod(data.shape)))


def digest(data: datasets.Dataset) -> str:
    """Tell data apart by content, standardisation and split, not by name."""
    return identity.digest({"train": data.train, "test": data.test})


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The accuracy on the test set, as drivers of training take it.

    Statistics of batch norm are estimated first, as training leaves them alone. A state
    that drivers keep tells which test set its history was measured on.
    """

    setting: Setting

    def __call__(self, params: Params) -> float:
        """Measure in percent."""
        return evaluate(self.setting, settled(self.setting, params))[0]

    def describe(self) -> str:
        """Return a fingerprint of the test set."""
        return f"accuracy on {identity.digest(self.setting.data.test)}"


def evaluate(setting: Setting, params: Params) -> tuple[float, float]:
    """Measure the accuracy in percent and the mean loss on the whole test set."""
    correct, loss = 0, 0.0
    x, y = setting.data.test
    size = _at_once(setting.data, _TEST_BATCH)
    for start in range(0, len(y), size):
        images, labels = x[start : start + size], y[start : start + size]
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
