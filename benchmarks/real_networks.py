"""The real networks: what the loop of `real.py` needs to know of each.

A new one is a function that makes a `Network`, and a row of NETWORKS.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import minilm
import numpy as np
import real_crepe as crepe
import real_efficientnet as efficientnet
import real_minilm
import real_tones
from shared import DATA

from swapjax.core.types import LossFn, Params

IMAGES = DATA / "data" / "cifar10_jpeg.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network, and what to prune it by and to measure it by.

    Attributes:
        params: the weights as they were published.
        loss: of params and a batch, its mean.
        roles: a loss whose program tells what each axis of a leaf does; None where the
            one above does.
        data: the calibration examples, arrays with a leading axis.
        score: percent, of params, on examples that are not among them.
        statistics: puts the statistics of a batch in the place of those of batch norm;
            None without batch norm.
        inputs: what of the calibration examples it takes.
        rows: of gradients, for methods that take some; all methods see as many
            examples, rows * batch.
        batch: examples averaged into such a row.
        dtype: of the rows where they are stored.
        careful: whether those of batch norm stay where they give a smaller loss than if
            they moved.
        judges: how many of the calibration examples tell losses, where all would take
            long; None for all.
        exclude: regular expressions of the leaves that stay dense.
        uneven: of those that do under 2:4 as well, which does not divide them.
    """

    params: Params
    loss: LossFn
    data: Any
    score: Callable[[Params], float]
    roles: LossFn | None = None
    statistics: Callable[[Params, Any], Params] | None = None
    inputs: Callable[[Any], Any] = lambda data: data[0]
    rows: int = 100
    batch: int = 4
    dtype: Any = None
    careful: bool = False
    judges: int | None = None
    exclude: tuple[str, ...] = ()
    uneven: tuple[str, ...] = ()


_loss_by_shifts = functools.partial(efficientnet.loss, convolve=efficientnet.by_shifts)
_loss_in_parts = functools.partial(crepe.loss, convolve=crepe.in_parts)


def _crepe(
    size: str, *, calibration: int, test: int, batch: int, **more: Any
) -> Network:
    params = crepe.load(size)
    frames, pitches = real_tones.tones(calibration, seed=1)
    score = functools.partial(crepe.accuracy, data=real_tones.tones(test, seed=2))
    return Network(
        params=params,
        loss=_loss_in_parts,
        roles=crepe.loss,
        data=(jnp.asarray(frames), jnp.asarray(pitches)),
        score=score,
        statistics=jax.jit(crepe.statistics),
        rows=calibration // batch,
        batch=batch,
        uneven=("conv1/kernel",),
        **more,
    )


def _efficientnet(*, calibration: int, test: int) -> Network:
    if not IMAGES.exists():
        raise FileNotFoundError(f"{IMAGES}: not there; EfficientNet is pruned by them")
    params = efficientnet.load()
    read = functools.partial(efficientnet.cifar10, Path(IMAGES))
    known, others = (
        efficientnet.prepare(read(part, count))
        for part, count in (("train", calibration), ("test", test))
    )
    label = functools.partial(efficientnet.classes, params)
    dense = label(others)

    def score(params: Params) -> float:
        return 100 * float(np.mean(efficientnet.classes(params, others) == dense))

    return Network(
        params=params,
        loss=_loss_by_shifts,
        roles=efficientnet.loss,
        data=(jnp.asarray(known), jnp.asarray(label(known))),
        score=score,
        statistics=jax.jit(efficientnet.statistics),
        rows=calibration // 4,
        batch=4,
        dtype=jnp.bfloat16,
        # Estimates of enlarged images take all its accuracy: see "dense, again".
        careful=True,
        judges=64,
        # As is usual: 4 % of the weights, and each output reads few numbers.
        exclude=("stem/kernel", "depthwise/kernel"),
    )


def _minilm(*, calibration: int, test: int, batch: int) -> Network:
    params = minilm.checkpoint(stacked=False).load()
    corpus = real_minilm.Corpus(real_minilm.Options(calibration=calibration, test=test))

    def score(params: Params) -> float:
        return 100 * float(np.mean(1 / real_minilm.search(corpus.embed(params))))

    return Network(
        params=params,
        loss=minilm.contrast,
        data=jnp.asarray(corpus.calibration),
        score=score,
        rows=calibration // batch,
        batch=batch,
        dtype=jnp.bfloat16,
    )


NETWORKS: dict[str, Callable[[], Network]] = {
    "crepe-tiny": functools.partial(
        _crepe, "tiny", calibration=512, test=2048, batch=4
    ),
    # 32 rows of 22 million weights, in 1.4 GB.
    "crepe-full": functools.partial(
        _crepe,
        "full",
        calibration=256,
        test=1024,
        batch=8,
        dtype=jnp.bfloat16,
        judges=64,
    ),
    "efficientnet-lite0": functools.partial(_efficientnet, calibration=256, test=512),
    "minilm-l6": functools.partial(_minilm, calibration=256, test=1000, batch=4),
}
