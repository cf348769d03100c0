"""One stage of layer-wise OBS: a support for all layers, then weights for each."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.layer import Layer
from swapjax.core.types import Leaves
from swapjax.pruning.method import Problem, Solution, layers_of, rows_of
from swapjax.pruning.solvers import layer_quadratic, obc_order, sparsegpt_order
from swapjax.pruning.solvers.candidates import conclude
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking

Order = Literal["auto", "greedy", "columns"]
Weigh = Literal["equal", "output", "fisher"]

# outputs * inputs^3 up to which "auto" is greedy, and up to which it re-fits what the
# column order leaves: seconds on one core, not minutes.
_GREEDY_WORK = 3e10
_REFIT_WORK = 3e11


class _Part(NamedTuple):
    """A leaf as its layer; arrays are [groups, inputs, outputs].

    Attributes:
        layer: what it reads, its inputs in the order that its pattern calls for.
        weights: the reference, in float32 or wider.
        ranks: int32: 0 for weights that compete, -1 for those that go before them
            since they are zero already or read nothing, -2 for those outside within.
        factor: [groups, 1, outputs], what an error of an output counts.
        system: the damped quadratic.
        pattern: of the leaf, if its groups lie along the inputs of one output.
        along: whether they do; True without a pattern, False where whole units are
            kept, so that the support stays as it is.
        greedy: whether its order is the greedy one.
    """

    layer: Layer
    weights: jax.Array
    ranks: jax.Array
    factor: jax.Array
    system: layer_quadratic.Quadratic
    pattern: NM | None
    along: jax.Array
    greedy: bool


def solve(
    problem: Problem,
    budget: Budget,
    *,
    order: Order,
    damping: float,
    block: int,
    weigh: Weigh,
    reference: str,
    refit: bool | None,
) -> Solution:
    """Prune layer by layer; the arguments are those of `layerwise_obs`, checked.

    Raises:
        ValueError: for a problem without layers, or without rows where they weigh.
    """
    wbar = problem.weights if reference == "current" else problem.initial
    parts = _parts(problem, wbar, budget, order, damping, weigh)
    masks = _supports(problem, budget, parts)
    masks, fitted, errors = zip(
        *(
            _fit(part, mask, leaf, block, refit)
            for part, mask, leaf in zip(parts, masks, wbar, strict=True)
        ),
        strict=True,
    )
    return conclude(
        problem,
        fitted,
        masks,
        objective=sum(errors[1:], start=errors[0]),
        iterations=1,
        raised=jnp.stack([part.system.raised for part in parts]).any(),
        details={
            "damping": jnp.stack([part.system.damping for part in parts]).max(),
            "greedy_layers": jnp.asarray(
                sum(
                    part.greedy * len(numbers)
                    for part, numbers in zip(
                        parts, problem.stacking.numbers, strict=True
                    )
                )
            ),
        },
    )


def _parts(
    problem: Problem,
    wbar: Leaves,
    budget: Budget,
    order: Order,
    damping: float,
    weigh: Weigh,
) -> list[_Part]:
    squares = rows_of(problem).mean_squares() if weigh == "fisher" else None
    parts = []
    for i, (leaf, layer) in enumerate(zip(wbar, layers_of(problem), strict=True)):
        pattern = budget.pattern(i)
        layer, along = _align(layer, leaf.shape, pattern)
        weights = layer.matrix(leaf).astype(layer.moment.dtype)
        reads = jnp.diagonal(layer.moment, axis1=1, axis2=2)[:, :, None]
        ranks = jnp.where((weights != 0) & (reads > 0), 0, -1)
        if problem.within is not None:
            ranks = jnp.where(layer.matrix(problem.within[i]), ranks, -2)
        inside = None
        if layer.filled:
            inside = layer.index >= 0
            ranks, inside = jnp.where(inside, ranks, -2), jnp.any(inside, axis=2)
        factor = jnp.ones((weights.shape[0], 1, weights.shape[2]), weights.dtype)
        if weigh == "output":
            factor = _relative(layer.moment, weights)
        if squares is not None:
            factor = _curvature(layer.matrix(squares[i]).astype(weights.dtype), reads)
        inputs = weights.shape[1]
        small = _work(layer) <= _GREEDY_WORK
        parts.append(
            _Part(
                layer=layer,
                weights=weights,
                ranks=ranks,
                factor=factor,
                system=layer_quadratic.damp(
                    layer.moment, damping, layers=layer.layers, inside=inside
                ),
                pattern=pattern
                if inputs % (pattern.m if pattern else 1) == 0
                else None,
                # Whole units stay as they are chosen.
                along=along & (budget.units is None),
                greedy=order == "greedy" or (order == "auto" and small),
            )
        )
    return parts


def _relative(moment: jax.Array, weights: jax.Array) -> jax.Array:
    """Find what makes errors relative to their outputs, [groups, 1, outputs].

    That is one over the mean square of each output, summed over positions as errors
    are; 0 for an output that is always zero.
    """

    def one(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        hessian, w = group
        made = w * jnp.matmul(hessian, w, precision=jax.lax.Precision.HIGHEST)
        energy = jnp.sum(made, axis=0, keepdims=True)
        return jnp.where(energy > 0, 1 / jnp.where(energy > 0, energy, 1), 0)

    return jax.lax.map(one, (moment, weights))


def _curvature(squares: jax.Array, reads: jax.Array) -> jax.Array:
    """Average the squared gradient of the loss in each output, [groups, 1, outputs].

    That of a weight is the product of what it reads and the gradient in its output. If
    the two are independent, as K-FAC assumes (arXiv:1503.05671), their squares are too.
    """

    def one(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        top, total = (jnp.sum(x, axis=0, keepdims=True) for x in group)
        return top / jnp.where(total > 0, total, 1)

    return jax.lax.map(one, (squares, reads))


def _work(layer: Layer) -> int:
    """Estimate the work of the greedy order, and of a re-fit, for one layer of a leaf.

    A stack is worked on as its layers would be alone, however many there are.
    """
    groups, inputs, outputs = layer.index.shape
    return groups // layer.layers * outputs * inputs**3


def _supports(problem: Problem, budget: Budget, parts: list[_Part]) -> Leaves:
    """Choose every support, before the column order chooses anew in its blocks."""
    if budget.units is not None:
        # Rises along a greedy path are those of weights that go one by one.
        alone = (
            part.layer.leaf(_saliency(part), w.shape)
            for part, w in zip(parts, problem.weights, strict=True)
        )
        return select(tuple(alone), budget, problem.within)
    stacking = budget.layers
    shapes = [w.shape for w in problem.weights]
    paths = {
        i: part.layer.leaf(_path(part), shapes[i])
        for i, part in enumerate(parts)
        if part.greedy
    }
    # The rises along a greedy path and those of weights that go alone are not alike.
    # A group of layers competes by the first only if all of them are greedy.
    mixed = {
        budget.groups[n]
        for i, numbers in enumerate(stacking.numbers)
        for n in numbers
        if i not in paths
    }
    both = np.asarray([group in mixed for group in budget.groups])

    def merge(i: int, if_mixed: Callable[[], jax.Array], other: jax.Array) -> jax.Array:
        """Take one thing for the layers of a leaf in mixed groups, one for others."""
        here = both[list(stacking.numbers[i])]
        if not here.any():
            return other
        if here.all():
            return if_mixed()
        return jnp.where(stacking.spread(i, both, shapes[i]), if_mixed(), other)

    def saliency(i: int) -> jax.Array:
        return parts[i].layer.leaf(_saliency(parts[i]), shapes[i])

    scores = tuple(
        merge(i, functools.partial(saliency, i), paths[i])
        if i in paths
        else saliency(i)
        for i in range(len(parts))
    )
    masks = select(scores, budget, problem.within)

    def along(i: int) -> jax.Array:
        """Cut the path of a leaf where its layers keep what they keep by then."""
        layers = len(stacking.numbers[i])
        one = Stacking((stacking.axes[i],), (tuple(range(layers)),))
        own = Budget(
            Segments.of_layers(one).count([[masks[i]]])[0],
            tuple(range(layers)),
            (0,) * layers,
            stacking=one,
        )
        within = None if problem.within is None else (problem.within[i],)
        return select((paths[i],), own, within)[0]

    return tuple(
        merge(i, functools.partial(along, i), mask) if i in paths else mask
        for i, mask in enumerate(masks)
    )


def _path(part: _Part) -> jax.Array:
    return obc_order.order(
        part.system.hessian,
        part.weights,
        part.ranks == 0,
        part.factor,
        part.pattern,
        part.along,
    )


def _saliency(part: _Part) -> jax.Array:
    score = part.factor * layer_quadratic.saliency(part.system.root, part.weights)
    return jnp.where(part.ranks == 0, score, -1)


def _fit(
    part: _Part, mask: jax.Array, leaf: jax.Array, block: int, refit: bool | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find support and weights of a leaf, and the error without and with new values."""
    hessian, root = part.system.hessian, part.system.root
    support = part.layer.matrix(mask)
    if refit is None:
        refit = _work(part.layer) <= _REFIT_WORK
    if not part.greedy:
        swept, support = sparsegpt_order.sweep(
            root,
            part.weights,
            part.ranks,
            support,
            block=block,
            pattern=part.pattern,
            adapt=part.along,
        )
    if part.greedy or refit:
        fitted = layer_quadratic.refit(hessian, part.weights, support)
    else:
        fitted = swept
    cut = jnp.where(support, part.weights, 0)
    errors = [layer_quadratic.error(hessian, w, part.weights) for w in (cut, fitted)]
    return (
        part.layer.leaf(support, leaf.shape),
        part.layer.leaf(fitted.astype(leaf.dtype), leaf.shape),
        jnp.stack(errors),
    )


def _align(
    layer: Layer, shape: tuple[int, ...], pattern: NM | None
) -> tuple[Layer, jax.Array]:
    """Order the inputs so that those of a group of the pattern follow each other.

    Returns:
        The layer, and whether that can be: not if the groups lie along outputs. The
        order is then as it was.
    """
    groups, inputs, outputs = layer.index.shape
    if pattern is None or inputs % pattern.m:
        return layer, jnp.asarray(pattern is None)
    # A group goes by the place of its first member in the leaf.
    group = layer.matrix(pattern.firsts(shape))
    if layer.filled:
        group = jnp.where(layer.index < 0, math.prod(shape), group)
    order = jnp.argsort(group[:, :, 0], axis=1, stable=True)
    ordered = jnp.take_along_axis(group, order[:, :, None], axis=1)
    ordered = ordered.reshape(groups, -1, pattern.m, outputs)
    along = jnp.all(ordered == ordered[:, :, :1])
    order = jnp.where(along, order, jnp.arange(inputs, dtype=order.dtype))
    moment = jnp.take_along_axis(layer.moment, order[:, :, None], axis=1)
    moment = jnp.take_along_axis(moment, order[:, None, :], axis=2)
    index = jnp.take_along_axis(layer.index, order[:, :, None], axis=1)
    return dataclasses.replace(layer, moment=moment, index=index), along
