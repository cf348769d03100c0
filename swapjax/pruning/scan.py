"""Prune every layer alone, at several sparsities, and tell what becomes of the loss."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.types import Leaves, LossFn, Params
from swapjax.pruning.judgement import mean_loss
from swapjax.pruning.method import Method
from swapjax.pruning.methods.scored import magnitude
from swapjax.pruning.once import Sight, sight
from swapjax.pruning.sensitivities import Sensitivity, take_levels
from swapjax.sparsity.allocation import round_half_up
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.plan_units import layer_names
from swapjax.sparsity.segments import Segments


def sensitivity(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    *,
    levels: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    method: Method | None = None,
    plan: Plan | None = None,
    samples: int = 1000,
    batch: int = 1,
    key: jax.Array | None = None,
    validation: Any = None,
    callback: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measure what it costs to prune one layer alone, to several sparsities.

    One program prunes and one tells the loss, for all layers and levels. Methods that
    look at no gradients treat layers apart: they run once a level, others once for each
    layer and level.

    Args:
        loss_fn: ``loss_fn(params, batch)``, as `prune` takes it.
        params: the trained weights.
        data: as `prune` takes them.
        levels: sparsities in (0, 1).
        method: that prunes, `magnitude` by default.
        plan: which leaves, and in what units, of whatever counts; by default entries of
            all leaves that are prunable.
        samples: rows of examples that losses are the mean of, and that the method sees.
        batch: examples a row.
        key: seeds the draw; None where the method looks at weights alone, which takes
            the first examples.
        validation: other examples to tell losses of, as `prune` takes it.
        callback: called after each layer and level, with how many are done and how many
            there are.

    Returns:
        The losses, which print as a table and find the allocation that costs least.

    Raises:
        ValueError: for levels out of range, a plan with a pattern n:m, a loss that is
            not finite, and as `prune` does.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> w = jax.random.normal(jax.random.key(0), (8, 8))
        >>> params = {"a": {"kernel": w}, "b": {"kernel": w[:, :2] / 100}}
        >>> x = jax.random.normal(jax.random.key(1), (50, 8))
        >>> def loss_fn(params, x):
        ...     return jnp.mean((x @ (params["a"]["kernel"] - w)) ** 2) + jnp.mean(
        ...         (x @ params["b"]["kernel"]) ** 2)
        >>> table = swapjax.sensitivity(loss_fn, params, x, levels=(0.5, 0.9))
        >>> swapjax.plan(params, 0.2, allocation=table.allocate(0.2)).keep
        (62, 2)
    """
    levels = take_levels(levels)
    method = magnitude() if method is None else method
    seen = sight(
        loss_fn, params, data, method=method, plan=plan, samples=samples, batch=batch,
        key=key, validation=validation,
    )  # fmt: skip
    if any(seen.plan.patterns):
        raise ValueError(
            "plan: its pattern fixes how many of every m entries stay, and no levels"
        )
    base = dataclasses.replace(
        seen.plan,
        allocation="uniform",
        overrides=(None,) * seen.plan.stacking.count,
        groups=tuple(range(seen.plan.stacking.count)),
    )
    params, teller = seen.inputs.params, seen.seen.teller
    loss = mean_loss(teller, params)
    if not math.isfinite(loss):
        raise ValueError(f"loss_fn: the loss is {loss} before anything is pruned")
    count, done = base.stacking.count, 0
    found = np.zeros((count, len(levels)))
    for column, level in enumerate(levels):
        target = _at(base, level)
        together = None if _couples(method) else seen.solve(target)
        for layer in range(count):
            leaves = _solve_alone(seen, target, layer) if together is None else together
            mixed = _mix(params, leaves, _flags(base, layer), base.layout)
            found[layer, column] = mean_loss(teller, mixed)
            done += 1
            if callback is not None:
                callback(done, found.size)
    return Sensitivity(
        layers=layer_names(base.units, base.layout),
        sizes=base.sizes,
        levels=levels,
        loss=loss,
        losses=tuple(map(tuple, found.tolist())),
        method=method.name,
    )


def _couples(method: Method) -> bool:
    """Tell whether what a method makes of one layer may depend on others."""
    return method.needs_rows or method.needs_params


def _at(base: Plan, level: float) -> Plan:
    """Let every layer keep its own share, and its floor."""
    share = 1 - Fraction(repr(level))
    keep = tuple(
        max(unit * round_half_up(Fraction(size, unit) * share), floor)
        for size, unit, floor in zip(
            base.sizes, base.unit_sizes, base.floors, strict=True
        )
    )
    return dataclasses.replace(base, keep=keep)


def _solve_alone(seen: Sight, target: Plan, layer: int) -> Leaves:
    """Prune one layer where all others keep everything."""
    keep = list(target.sizes)
    keep[layer] = target.keep[layer]
    return seen.solve(dataclasses.replace(target, keep=tuple(keep)))


def _flags(base: Plan, layer: int) -> np.ndarray:
    """Mark the layers of the layout that make up a layer of the plan."""
    owners = range(base.stacking.count) if base.units is None else base.units.layer_of
    return np.asarray([owner == layer for owner in owners])


@functools.partial(jax.jit, static_argnums=3)
def _mix(params: Params, leaves: Leaves, flags: jax.Array, layout: Layout) -> Params:
    """Put the pruned layers that are marked among the others as they were."""
    dense = layout.take(params)
    along = Segments.of_layers(layout.stacking).spread(jnp.asarray(flags), dense)
    triples = zip(along, leaves, dense, strict=True)
    mixed = tuple(jnp.where(f, new.astype(x.dtype), x) for f, new, x in triples)
    return layout.put(mixed, params)
