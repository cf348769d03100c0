"""A space of chains of MobileNetV2's blocks, in the manner of NAS-Bench-Macro.

Su et al., 2021 (arXiv 2103.11922) choose for each of 8 layers among the identity and
two blocks. The three choices are theirs, widths and strides are ours.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import checks
from swapjax.search import layers, operations, separable
from swapjax.search.draw import Draw
from swapjax.search.layers import Run
from swapjax.search.operations import Operation
from swapjax.search.space import Choices, Space

_KIND = "layer"
_STAGES = (2, 3, 3)  # layers in each; the first of a stage halves the image
_EDGES = tuple((i, i + 1) for i in range(sum(_STAGES)))
_LAST = 8  # times as many channels before the logits as in the last layer


def _identity() -> Operation:
    """Return the identity; where sizes change, a convolution by pixel, batch norm."""

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        if (inputs, stride) == (outputs, 1):
            return {}
        kernel = draw.kernel(1, inputs, outputs)
        return {"kernel": kernel, "bn": draw.batch_norm(outputs, affine=draw.affine)}

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        if "kernel" not in params:
            return x
        x = layers.convolve(x, params["kernel"], stride=stride)
        return run.batch_norm(params["bn"], x)

    return Operation(init, apply)


OPS = {
    "identity": _identity(),
    "MB3_K3": separable.inverted_residual(3, 3),
    "MB6_K5": separable.inverted_residual(6, 5),
}


@functools.lru_cache
def mobilenet(channels: int = 16) -> Space:
    """Return the space of 6,561 chains of 8 layers, three operations each.

    Args:
        channels: of the stem, where images have their size; three stages of 2, 3 and 3
            layers halve it and have twice as many each.

    Raises:
        ValueError: for other than a positive number.
    """
    checks.require_count("channels", channels)
    widths = [(channels, 1)]  # channels after a layer, and its stride; the stem first
    for count in _STAGES:
        channels *= 2
        widths += [(channels, 2), *[(channels, 1)] * (count - 1)]
    return Space(
        name="mobilenet",
        ops=tuple(OPS),
        edges={_KIND: _EDGES},
        draw=functools.partial(_draw, widths),
        forward=functools.partial(_forward, widths),
        halvings=len(_STAGES),
    )


def _draw(
    widths: list[tuple[int, int]],
    draw: Draw,
    choices: Choices,
    shape: tuple[int, ...],
    classes: int,
    stacked: bool,
) -> dict[str, Any]:
    del stacked  # no two layers in a row are alike but in the stages' ends
    first, last = widths[0][0], widths[-1][0]
    theta: dict[str, Any] = {
        "stem": {
            "kernel": draw.kernel(3, shape[-1], first),
            "bn": draw.batch_norm(first),
        }
    }
    for (i, j), names in choices[_KIND].items():
        (inputs, _), (outputs, stride) = widths[i], widths[j]
        drawn = operations.draw_sum(draw, OPS, names, inputs, outputs, stride)
        if drawn:
            theta[f"layer{j}"] = drawn
    wide = _LAST * last
    theta["last"] = {"kernel": draw.kernel(1, last, wide), "bn": draw.batch_norm(wide)}
    theta["fc"] = draw.dense(wide, classes)
    return theta


def _forward(
    widths: list[tuple[int, int]],
    run: Run,
    choices: Choices,
    theta: Mapping[str, Any],
    alpha: Mapping[str, jax.Array] | None,
    x: jax.Array,
) -> jax.Array:
    def convolution(name: str, x: jax.Array) -> jax.Array:
        y = layers.convolve(x, theta[name]["kernel"])
        return jax.nn.relu(run.batch_norm(theta[name]["bn"], y))

    x = convolution("stem", x)
    for i, ((_, j), names) in enumerate(choices[_KIND].items()):
        row, stride = None if alpha is None else alpha[_KIND][i], widths[j][1]
        params = theta.get(f"layer{j}", {})
        x = operations.weighted_sum(run, OPS, names, params, row, x, stride)
    return layers.dense(theta["fc"], jnp.mean(convolution("last", x), (1, 2)))
