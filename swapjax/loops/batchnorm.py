"""Re-estimate the running statistics of batch norm after pruning."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.trees import count_examples
from swapjax.core.types import Params


def recalibrate_batchnorm(
    statistics: Callable[[Params, Any], Params] | None,
    params: Params,
    batches: Iterable[Any],
) -> Params:
    """Average the statistics of batches into the running ones of batch norm.

    Pruning changes the activations that batch norm has averaged, and outdated averages
    cost accuracy. The weights do not change.

    Args:
        statistics: ``(params, batch) -> params`` with the statistics of the batch in
            place of the running ones and all else unchanged, such as
            `swapjax.experiments.models.Model.statistics`.
        params: the network.
        batches: pytrees of arrays with a leading axis of examples, as statistics takes
            them, weighted by their number of examples. Use hundreds of examples per
            batch: the variance between batches is not included.

    Returns:
        Params with the averages. For `swapjax.prune`:
        ``recalibrate=lambda p: recalibrate_batchnorm(model.statistics, p, batches)``,
        with a list of batches, since every stage iterates over them again.

    Raises:
        ValueError: for no batches, a network without batch norm, and statistics that
            are not finite, naming them.
    """
    if statistics is None:
        raise ValueError("statistics: is None; this network has no batch norm")
    total, change = 0, None
    for batch in batches:
        count = count_examples(batch)
        found = statistics(params, batch)
        # Differences, so that leaves that are not statistics stay exactly the same.
        step = jax.tree.map(lambda new, old, n=count: n * (new - old), found, params)
        change = step if change is None else jax.tree.map(jnp.add, change, step)
        total += count
    if change is None:
        raise ValueError("batches: there are none")
    new = jax.tree.map(
        lambda old, d: (old + d / total).astype(old.dtype), params, change
    )
    trees.require_finite(trees.paths(new), jax.tree.leaves(new), "statistics")
    return new
