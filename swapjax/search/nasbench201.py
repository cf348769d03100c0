"""The space of NAS-Bench-201, and spaces of other cells in the same skeleton.

Dong and Yang, 2020 (arXiv 2001.00326): a stem, stages of identical cells with residual
blocks that halve the image between them, batch norm, ReLU, mean over pixels, logits.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import checks
from swapjax.search import layers, operations
from swapjax.search.draw import Draw
from swapjax.search.genotype import Edge
from swapjax.search.layers import Run
from swapjax.search.operations import Operation, relu_conv_bn
from swapjax.search.space import Choices, Space

OPS = {
    "none": operations.none(),
    "skip_connect": operations.identity(),
    "nor_conv_1x1": relu_conv_bn(1),
    "nor_conv_3x3": relu_conv_bn(3),
    "avg_pool_3x3": operations.avg_pool(),
}
_KIND = "cell"


@functools.lru_cache
def nb201(channels: int = 16, cells: int = 5) -> Space:
    """Return the space of NAS-Bench-201: 15,625 cells of 6 edges and 5 operations.

    Args:
        channels: of the first of three stages; each next has twice as many.
        cells: in each stage.

    Raises:
        ValueError: for other than positive numbers.
    """
    return cell_space("nb201", OPS, nodes=4, channels=channels, cells=cells, stages=3)


def cell_space(
    name: str,
    ops: Mapping[str, Operation],
    *,
    nodes: int = 4,
    channels: int = 16,
    cells: int = 5,
    stages: int = 3,
) -> Space:
    """Make a space of cells with operations of one's own in NAS-Bench-201's skeleton.

    A cell has an edge from each of its nodes to each later one; the first node is its
    input, the last its output, and a node is the sum of what its edges bring.

    Args:
        name: of the space.
        ops: operations by name; they keep channels and sides at stride 1.
        nodes: of a cell.
        channels: of the first stage; each next one has twice as many.
        cells: in each stage.
        stages: how many; between them a residual block halves the image.

    Raises:
        ValueError: for no operations, fewer than two nodes, and other than positive
            numbers.
    """
    if not ops:
        raise ValueError("ops must name an operation or more, got none")
    checks.require_count("nodes", nodes, 2)
    told = {"channels": channels, "cells": cells, "stages": stages}
    for argument, value in told.items():
        checks.require_count(argument, value)
    edges = tuple((i, j) for j in range(1, nodes) for i in range(j))
    widths = [channels * 2**i for i in range(stages)]
    table = dict(ops)

    def draw(
        drawn: Draw,
        choices: Choices,
        shape: tuple[int, ...],
        classes: int,
        stacked: bool,
    ) -> dict[str, Any]:
        chosen = choices[_KIND]
        stem = {"kernel": drawn.kernel(3, shape[-1], channels)}
        theta: dict[str, Any] = {"stem": {**stem, "bn": drawn.batch_norm(channels)}}
        for stage, width in enumerate(widths, 1):
            if stage > 1:
                theta[f"reduction{stage - 1}"] = _draw_block(drawn, width // 2, width)
            one = functools.partial(_draw_cell, drawn, table, chosen, width)
            theta[f"stage{stage}"] = (
                drawn.stacked(cells, one)
                if stacked
                else {f"cell{i}": one() for i in range(cells)}
            )
        theta["bn"] = drawn.batch_norm(widths[-1])
        theta["fc"] = drawn.dense(widths[-1], classes)
        return theta

    def forward(
        run: Run, choices: Choices, theta: Any, alpha: Any, x: jax.Array
    ) -> jax.Array:
        rows = None if alpha is None else dict(zip(edges, alpha[_KIND], strict=True))
        cell = functools.partial(_apply_cell, run, table, choices[_KIND], rows, nodes)
        stem = theta["stem"]
        x = run.batch_norm(stem["bn"], layers.convolve(x, stem["kernel"]))
        for stage in range(1, stages + 1):
            if stage > 1:
                x = _apply_block(run, theta[f"reduction{stage - 1}"], x)
            params = theta[f"stage{stage}"]
            if alpha is None:
                for i in range(cells):
                    x = cell(params.get(f"cell{i}", {}), x)
            else:
                x, _ = jax.lax.scan(lambda x, p: (cell(p, x), None), x, params, cells)
        x = jax.nn.relu(run.batch_norm(theta["bn"], x))
        return layers.dense(theta["fc"], jnp.mean(x, (1, 2)))

    return Space(
        name=name,
        ops=tuple(ops),
        edges={_KIND: edges},
        draw=draw,
        forward=forward,
        halvings=stages - 1,
    )


def _draw_cell(
    draw: Draw,
    table: Mapping[str, Operation],
    chosen: Mapping[Edge, Sequence[str]],
    width: int,
) -> dict[str, Any]:
    found = {
        f"{i}-{j}": operations.draw_sum(draw, table, names, width, width, 1)
        for (i, j), names in chosen.items()
    }
    return {edge: params for edge, params in found.items() if params}


def _apply_cell(
    run: Run,
    table: Mapping[str, Operation],
    chosen: Mapping[Edge, Sequence[str]],
    rows: Mapping[Edge, jax.Array] | None,
    nodes: int,
    params: Mapping[str, Any],
    x: jax.Array,
) -> jax.Array:
    """Return the last node. What nothing has come to is zero, and goes on as that."""
    values = [x, *[jnp.zeros_like(x)] * (nodes - 1)]
    for (i, j), names in chosen.items():
        there, alpha = params.get(f"{i}-{j}", {}), None if rows is None else rows[i, j]
        y = operations.weighted_sum(run, table, names, there, alpha, values[i], 1)
        values[j] = values[j] + y
    return values[-1]


def _draw_block(draw: Draw, inputs: int, outputs: int) -> dict[str, Any]:
    """Draw a residual block; its batch norm has scales and biases in supernets, too."""

    def convolution(inputs: int) -> dict[str, Any]:
        kernel = draw.kernel(3, inputs, outputs)
        return {"kernel": kernel, "bn": draw.batch_norm(outputs)}

    shortcut = {"kernel": draw.kernel(1, inputs, outputs)}
    conv1, conv2 = convolution(inputs), convolution(outputs)
    return {"conv1": conv1, "conv2": conv2, "shortcut": shortcut}


def _apply_block(run: Run, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Halve the image: two convolutions beside pooling and a convolution by pixel."""
    conv = relu_conv_bn(3).apply
    y = conv(run, params["conv2"], conv(run, params["conv1"], x, 2), 1)
    x = layers.average_pool(x, size=2, stride=2, around=0)
    return y + layers.convolve(x, params["shortcut"]["kernel"])
