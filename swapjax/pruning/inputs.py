"""What `prune` checks and places before any work starts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.trace import followed
from swapjax.core import sharding, trees
from swapjax.core.losses import require_scalar
from swapjax.core.types import Leaves, Masks, Params
from swapjax.loops import streams
from swapjax.loops.examples import Source
from swapjax.loops.streams import Stream
from swapjax.pruning.settings import Settings
from swapjax.pruning.validation import Validation, check_validation
from swapjax.pruning.vector import layout_for, pack, pack_masks
from swapjax.sparsity.bounds import allowed, keep_inside
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What to prune, checked and placed.

    Attributes:
        params: the network, its mesh left to the compiler.
        plan: which entries, and how many of them stay in the end.
        layout: of the prunable leaves as the method sees them.
        initial: the prunable leaves, in this layout.
        source: the examples; None without data.
        validation: those that judge; None for the same.
        followed: the paths of the leaves whose layers the method looks at.
        within: bool leaves outside of which nothing may be kept, or None.
        budgets: the counts of every stage.
    """

    params: Params
    plan: Plan
    layout: Layout
    initial: Leaves
    source: Source | None
    validation: Validation | None
    followed: tuple[str, ...]
    within: Leaves | None
    budgets: tuple[Budget, ...]


def place(
    settings: Settings,
    params: Params,
    data: Any,
    *,
    sparsity: float | None,
    plan: Plan | None,
    within: Masks | None,
    validation: Any = None,
) -> Inputs:
    """Check what is to be pruned against how, and leave its devices to the compiler.

    Args:
        settings: how to prune.
        params: arrays.
        data: examples, or None.
        sparsity: how far.
        plan: instead of a sparsity.
        within: masks outside of which nothing may be kept, or None.
        validation: a fraction of each stage's examples, or others, to judge by.

    Raises:
        ValueError: as `prune` does.
    """
    data = _take_data(settings, params, data)
    arrays = () if isinstance(data, Stream) else data
    others = () if streams.is_stream(validation) else validation
    sharding.require_same_devices(
        params=params, data=arrays, within=within, validation=others
    )
    params, within = sharding.leave_to_compiler((params, within))
    first = _shapes(settings, data)
    loss_fn = settings.loss_fn if first is not None else None
    target = planned(params, sparsity, plan, loss_fn=loss_fn, batch=first)
    layout = layout_for(settings.method, target, params)
    initial, is_finite = pack(params, layout)
    if not is_finite:
        trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    source = _source(settings, data)
    judge = check_validation(
        validation, first, source, samples=settings.samples, batch=settings.batch,
        with_keys=settings.draws,
    )  # fmt: skip
    _check_criterion(settings, params, first, source)
    inside = None if within is None else allowed(within, params, target)
    table = settings.schedule.table(target.sparsity, settings.stages)
    budgets = budgets_for([target.at(level) for level in table], inside, layout)
    if inside is not None and layout.is_flat:
        inside = pack_masks(inside, layout)
    paths = target.layout.paths
    if settings.method.needs_layers == "some" and loss_fn is not None:
        paths = followed(loss_fn, params, first, paths)
    return Inputs(
        params, target, layout, initial, source, judge, paths, inside, budgets
    )


def _take_data(settings: Settings, params: Params, data: Any) -> Any:
    """Take examples for arrays or for a stream of batches; None stays None."""
    if data is None:
        return None
    loss_fn = settings.loss_fn
    if not callable(loss_fn):
        return streams.take_data(data, None)
    fits = streams.taken_by(loss_fn, params)
    row = lambda batch: fits(_row(settings, batch))  # noqa: E731
    return streams.take_data(data, row, settings.batch)


def _row(settings: Settings, batch: Any) -> Any:
    """Tell the shapes of what a loss takes of a batch: keys beside it, if it draws."""
    if not settings.draws:
        return batch
    count = trees.count_examples(batch)
    split = lambda key: jax.random.split(key, count)  # noqa: E731
    return batch, jax.eval_shape(split, settings.key)


def _shapes(settings: Settings, data: Any) -> Any:
    """Tell the shapes of a batch of the loss, where there is one."""
    if not callable(settings.loss_fn) or data is None:
        return None
    examples = data.peek() if isinstance(data, Stream) else data
    arrays = jax.tree.leaves(examples)
    if not arrays or any(np.ndim(x) < 1 or len(x) < settings.batch for x in arrays):
        return None  # which is an error later on
    # Without their devices: a few examples may not be spread over all of them.
    return _row(settings, streams.shapes_of(examples, settings.batch))


def _check_criterion(
    settings: Settings, params: Params, first: Any, source: Source | None
) -> None:
    """Raise for a criterion without examples, and one that returns no scalar."""
    if settings.criterion is None:
        return
    if source is None:
        raise ValueError("criterion: there is nothing to judge by without data")
    if first is not None and callable(settings.criterion):
        returned = jax.eval_shape(settings.criterion, params, first)
        require_scalar(returned, differentiable=False, name="criterion")


def _source(settings: Settings, data: Any) -> Source | None:
    """Take the examples that there are; raise for those, or a key, that are missing."""
    wants = {
        f"the method {settings.method.name}": settings.needs_examples,
        "finetune": settings.finetune is not None,
    }
    wanting = next((name for name, wanted in wants.items() if wanted), None)
    if data is None:
        if wanting is not None:
            raise ValueError(f"data: {wanting} needs examples, got None")
        return None
    if not callable(settings.loss_fn):
        raise ValueError(
            f"loss_fn must be a function of params and a batch, got "
            f"{settings.loss_fn!r}"
        )
    if isinstance(data, Stream):
        if settings.corruption is not None and settings.key is None:
            raise ValueError("key: noise needs a PRNG key, got None")
        wanted = settings.samples * settings.batch
        return Source(data, wanted, with_keys=settings.draws)
    if wanting is not None and settings.key is None:
        raise ValueError(
            f"key: examples are drawn for {wanting}, which needs a PRNG key, got None"
        )
    data = sharding.leave_to_compiler(data)
    samples = settings.samples
    if not settings.needs_examples:
        # They are for the loss that is reported, and as many as there are will do.
        available = trees.count_examples(data) // settings.batch
        samples = max(1, min(samples, available))
    return Source(data, samples * settings.batch, with_keys=settings.draws)


def budgets_for(
    stages: list[Plan], inside: Leaves | None, layout: Layout
) -> tuple[Budget, ...]:
    """Count what every stage keeps, no more than what may be kept at all.

    Args:
        stages: their plans.
        inside: masks that bound them, or None.
        layout: of the leaves as the method sees them.
    """
    found = []
    for stage in stages:
        keep = np.asarray(keep_inside(stage, inside), np.int32)
        budget = dataclasses.replace(stage.budget, keep=jnp.asarray(keep))
        if layout.is_flat:
            budget = dataclasses.replace(budget, stacking=layout.stacking, patterns=())
        found.append(budget)
    return tuple(found)
