"""Networks within budgets of multiplications and bytes, counted after shrinking.

Whole channels go from VGG16 and MobileNetV1 with initial weights, and from a trained
ResNet-20 for CIFAR-10 (JPEG copies), by magnitude and by the Fisher diagonal of 50
gradients of 20 images times squares of weights. Nothing is trained or re-fitted after;
batch norm is estimated anew on 2,000 training images, and accuracy is that on the first
2,000 test images.

Writes results.csv after each network, and goes on where it stopped.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from budgets_report import Line, report
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, runner
from swapjax.roles.costs import count_products

BUDGETS = (("flops", 0.5), ("flops", 0.75), ("flops", 0.25), ("size", 0.5))
UNTRAINED = ("mobilenet_v1", "vgg16")
GRADIENTS, EACH, CALIBRATION, TESTED = 50, 20, 2000, 2000


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune networks to budgets."""

    data: Path = DATA / "data" / "cifar10_jpeg.npz"
    """CIFAR-10, or its JPEG copies."""
    checkpoint: Path = DATA / "checkpoints" / "resnet20_cifar10_jpeg.npz"
    """The weights of ResNet-20."""
    out: Path = RESULTS / "budgets"
    """The folder for results.csv."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    for path in (options.data, options.checkpoint):
        if not path.exists():
            sys.exit(f"{path}: not there; name it with --data or --checkpoint")
    options.out.mkdir(parents=True, exist_ok=True)
    arms = [("resnet20", "magnitude"), ("resnet20", "fisher")]
    arms += [(network, "magnitude") for network in UNTRAINED]
    wanted = [
        Line(network, *budget, scores) for budget in BUDGETS for network, scores in arms
    ]
    work = functools.partial(measured, trained(options))
    done = complete_csv(options.out / "results.csv", wanted, work)
    console.print(report(list(done.values())), soft_wrap=True)
    console.print(f"Written to {options.out}.", soft_wrap=True)


def trained(options: Options) -> Callable[[], tuple[runner.Setting, Params]]:
    """Make what loads ResNet-20 and scores its weights, once, if it is needed."""

    @functools.cache
    def load() -> tuple[runner.Setting, Params]:
        data = datasets.load(options.data, mean=0.5, std=0.5)
        data = data._replace(x_test=data.x_test[:TESTED], y_test=data.y_test[:TESTED])
        model = models.create("resnet20", data.shape, data.classes)
        setting = runner.set_up(data, model, weights=options.checkpoint)
        accuracy, _ = runner.evaluate(setting, setting.params)
        console.print(f"Dense: {accuracy:.2f} %.")
        return setting, fisher(setting)

    return load


def fisher(setting: runner.Setting) -> Params:
    """Sum squares of gradients times squares of weights."""
    model, params = setting.model, setting.params
    grad = jax.jit(jax.grad(model.loss_fn))
    total = jax.tree.map(jnp.zeros_like, params)
    for i in range(GRADIENTS):
        cut = slice(i * EACH, (i + 1) * EACH)
        batch = setting.data.x_train[cut], setting.data.y_train[cut]
        found = grad(params, batch)
        total = jax.tree.map(lambda t, g: t + g**2, total, found)
    return jax.tree.map(lambda t, w: t * w**2, total, params)


def measured(load: Callable[[], tuple[runner.Setting, Params]], line: Line) -> Line:
    """Prune a network to a budget, shrink it, and count what is left."""
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    options: dict[str, Any] = {line.budget: line.part}
    if line.network in UNTRAINED:
        model = models.create(line.network, (32, 32, 3), 10)
        params = model.params
    else:
        setting, scores = load()
        model, params = setting.model, setting.params
        if line.scores == "fisher":
            options["scores"] = scores
    masks = swapjax.unit_masks(model.apply, params, x, **options)
    small = swapjax.shrink(model.apply, params, masks, x)
    told: dict[str, Any] = {
        "macs": _macs(small.apply, small.params, x) / _macs(model.apply, params, x),
        "bytes": _bytes(small.params) / _bytes(params),
    }
    if line.network not in UNTRAINED:
        pruned = swapjax.apply_masks(params, masks)
        images = setting.data.x_train[:CALIBRATION]
        batches = [jnp.asarray(images[i : i + 500]) for i in range(0, len(images), 500)]
        again = swapjax.recalibrate_batchnorm(model.statistics, pruned, batches)
        told["accuracy"], _ = runner.evaluate(setting, again)
    return dataclasses.replace(line, **{k: round(v, 5) for k, v in told.items()})


def _macs(apply: Callable[[Params, Any], Any], params: Params, x: jax.Array) -> int:
    return count_products(apply, params, x).total.macs


def _bytes(params: Params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    start(main, tyro.cli(Options, description=__doc__))
