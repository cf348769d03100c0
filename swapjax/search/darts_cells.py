"""The space of DARTS for small images (Liu et al., 2019, arXiv 1806.09055).

A cell reads the outputs of the two cells before it, has four inner nodes, each the sum
of its edges, and puts them one after another. Normal cells keep the size, reduction
cells, one and two thirds of the way, halve it and double the channels.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import checks
from swapjax.search import layers, operations, separable
from swapjax.search.draw import Draw
from swapjax.search.genotype import Edge
from swapjax.search.layers import Run
from swapjax.search.space import Choices, Space

OPS = {
    "none": operations.none(),
    "max_pool_3x3": operations.max_pool(bn=True),
    "avg_pool_3x3": operations.avg_pool(bn=True),
    "skip_connect": separable.skip(),
    "sep_conv_3x3": separable.separable_conv(3),
    "sep_conv_5x5": separable.separable_conv(5),
    "dil_conv_3x3": separable.dilated_conv(3),
    "dil_conv_5x5": separable.dilated_conv(5),
}
_NORMAL, _REDUCE = "normal", "reduce"
_INNER = 4
_NODES = 2 + _INNER
_EDGES = tuple((i, j) for j in range(2, _NODES) for i in range(j))
_STEM = 3  # times as many channels as a cell's nodes
_POINTWISE, _HALVING = operations.relu_conv_bn(1), separable.factorized_reduce()


class _Cell(NamedTuple):
    """What the weights of a cell depend on: equal ones follow one another in a scan."""

    kind: str
    before: tuple[int, int]  # channels of the two inputs
    channels: int
    halve_first: bool  # whether the first input is twice as large as the second


@functools.lru_cache
def darts(channels: int = 16, cells: int = 8) -> Space:
    """Return the space of DARTS: two cells of 14 edges and 8 operations.

    The supernet has batch norm without scale and bias, also after pooling, as DARTS
    searches; networks of genotypes have them, and none after pooling. Neither drop path
    nor an auxiliary head is there.

    Args:
        channels: of the nodes of the first cells, an even number: 16 in DARTS's search.
        cells: how many, 3 or more: 8 in its search, 20 in its evaluation.

    Raises:
        ValueError: for other numbers.
    """
    checks.require_count("channels", channels, 2)
    checks.require_count("cells", cells, 3)
    if channels % 2:
        raise ValueError(f"channels must be even, got {channels}")
    plan = _plan(channels, cells)
    return Space(
        name="darts",
        ops=tuple(OPS),
        edges={_NORMAL: _EDGES, _REDUCE: _EDGES},
        draw=functools.partial(_draw, plan),
        forward=functools.partial(_forward, plan),
        halvings=2,
        kept=2,
        never=("none",),
    )


def _plan(channels: int, cells: int) -> tuple[_Cell, ...]:
    plan, before, halved = [], (_STEM * channels,) * 2, False
    for i in range(cells):
        reduce = i in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduce else 1
        plan.append(_Cell(_REDUCE if reduce else _NORMAL, before, channels, halved))
        before, halved = (before[1], _INNER * channels), reduce
    return tuple(plan)


def _groups(plan: Sequence[_Cell]) -> list[tuple[str, _Cell, int]]:
    """Put equal cells that follow one another together: name, cell, how many."""
    groups: list[tuple[str, _Cell, int]] = []
    first = 0
    for i, cell in enumerate(plan):
        if i + 1 == len(plan) or plan[i + 1] != cell:
            name = f"cell{i}" if i == first else f"cells{first}-{i}"
            groups.append((name, cell, i + 1 - first))
            first = i + 1
    return groups


def _draw(
    plan: tuple[_Cell, ...],
    draw: Draw,
    choices: Choices,
    shape: tuple[int, ...],
    classes: int,
    stacked: bool,
) -> dict[str, Any]:
    width = plan[0].before[0]
    stem = {"kernel": draw.kernel(3, shape[-1], width), "bn": draw.batch_norm(width)}
    theta: dict[str, Any] = {"stem": stem}
    if stacked:
        for name, cell, count in _groups(plan):
            one = functools.partial(_draw_mixed, draw, cell)
            theta[name] = draw.stacked(count, one) if count > 1 else one()
    else:
        for i, cell in enumerate(plan):
            theta[f"cell{i}"] = {
                **_draw_inputs(draw, cell),
                **_draw_edges(draw, cell, choices[cell.kind]),
            }
    theta["fc"] = draw.dense(_INNER * plan[-1].channels, classes)
    return theta


def _draw_inputs(draw: Draw, cell: _Cell) -> dict[str, Any]:
    first = _HALVING if cell.halve_first else _POINTWISE
    return {
        "input0": first.init(draw, cell.before[0], cell.channels, 1),
        "input1": _POINTWISE.init(draw, cell.before[1], cell.channels, 1),
    }


def _draw_edges(
    draw: Draw, cell: _Cell, chosen: Mapping[Edge, Sequence[str]]
) -> dict[str, Any]:
    found = {
        f"{i}-{j}": operations.draw_sum(
            draw, OPS, names, cell.channels, cell.channels, _stride(cell.kind, i)
        )
        for (i, j), names in chosen.items()
    }
    return {edge: params for edge, params in found.items() if params}


def _draw_mixed(draw: Draw, cell: _Cell) -> dict[str, Any]:
    """Draw a cell with all operations, edges of one stride along a first axis."""
    theta = _draw_inputs(draw, cell)
    for stride, edges in _by_stride(cell.kind):
        one = functools.partial(
            operations.draw_sum,
            draw, OPS, tuple(OPS), cell.channels, cell.channels, stride,
        )  # fmt: skip
        theta[f"stride{stride}"] = draw.stacked(len(edges), one)
    return theta


def _forward(
    plan: tuple[_Cell, ...],
    run: Run,
    choices: Choices,
    theta: Any,
    alpha: Mapping[str, jax.Array] | None,
    x: jax.Array,
) -> jax.Array:
    stem = theta["stem"]
    x = run.batch_norm(stem["bn"], layers.convolve(x, stem["kernel"]))
    pair = x, x
    if alpha is None:
        for i, cell in enumerate(plan):
            params = theta[f"cell{i}"]
            inputs = _inputs(run, cell, params, pair)
            pair = pair[1], _chosen(run, cell.kind, choices[cell.kind], params, inputs)
    else:
        for name, cell, count in _groups(plan):
            step = functools.partial(_mixed_step, run, cell, alpha[cell.kind])
            if count == 1:
                pair = step(pair, theta[name])
            else:
                body = lambda pair, params: (step(pair, params), None)  # noqa: B023, E731
                pair, _ = jax.lax.scan(body, pair, theta[name], count)
    return layers.dense(theta["fc"], jnp.mean(pair[1], (1, 2)))


def _inputs(
    run: Run, cell: _Cell, params: Mapping[str, Any], pair: tuple[jax.Array, jax.Array]
) -> list[jax.Array]:
    first = _HALVING if cell.halve_first else _POINTWISE
    return [
        first.apply(run, params["input0"], pair[0], 1),
        _POINTWISE.apply(run, params["input1"], pair[1], 1),
    ]


def _chosen(
    run: Run,
    kind: str,
    chosen: Mapping[Edge, Sequence[str]],
    params: Mapping[str, Any],
    inputs: list[jax.Array],
) -> jax.Array:
    """Return the output of a cell with a few operations."""
    values = list(inputs)
    for node in range(2, _NODES):
        brought = [
            operations.weighted_sum(
                run, OPS, names, params.get(f"{i}-{j}", {}), None, values[i],
                _stride(kind, i),
            )
            for (i, j), names in chosen.items()
            if j == node
        ]  # fmt: skip
        values.append(functools.reduce(operator.add, brought))
    return jnp.concatenate(values[2:], -1)


def _mixed_step(
    run: Run,
    cell: _Cell,
    alpha: jax.Array,
    pair: tuple[jax.Array, jax.Array],
    params: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """Go through a cell with all operations, a scan over edges of one stride."""
    inputs = _inputs(run, cell, params, pair)
    shrink = 2 if cell.kind == _REDUCE else 1
    n, height, width, channels = inputs[0].shape
    small = (n, height // shrink, width // shrink, channels)
    inner = jnp.zeros((_NODES, *small), inputs[0].dtype)
    if shrink == 1:
        inner = inner.at[:2].set(jnp.stack(inputs))
    # Edges from the inputs of a reduction cell are those of stride 2; they come first.
    for stride, edges in _by_stride(cell.kind):
        sources = jnp.stack(inputs) if stride == 2 else inner
        rows = alpha[np.asarray([_EDGES.index(edge) for edge in edges])]

        def edge(inner: jax.Array, told: Any) -> tuple[jax.Array, None]:
            (i, j), row, theta = told
            x = (inner if stride == 1 else sources)[i]  # noqa: B023
            y = operations.weighted_sum(run, OPS, tuple(OPS), theta, row, x, stride)  # noqa: B023
            return inner.at[j].add(y), None

        where = tuple(np.asarray(edges).T)
        told = where, rows, params[f"stride{stride}"]
        inner, _ = jax.lax.scan(edge, inner, told, len(edges))
    out = jnp.moveaxis(inner[2:], 0, -2)
    return pair[1], out.reshape(*small[:3], _INNER * channels)


def _stride(kind: str, source: int) -> int:
    return 2 if kind == _REDUCE and source < 2 else 1


def _by_stride(kind: str) -> list[tuple[int, list[Edge]]]:
    """Put the edges of one stride together, the larger stride first."""
    strides = sorted({_stride(kind, i) for i, _ in _EDGES}, reverse=True)
    return [(s, [e for e in _EDGES if _stride(kind, e[0]) == s]) for s in strides]
