"""Gradients of single examples, or of mini-batches: the rows of G are made here."""

from typing import Any

import jax
import jax.numpy as jnp

from swapjax import explicit, trees
from swapjax.matrix_free import MatrixFreeRows
from swapjax.plan import Plan
from swapjax.rows import Corruption, Storage
from swapjax.sources import count_examples
from swapjax.stored import StoredRows, store
from swapjax.types import Leaves, LossFn, Params

_STORE_BELOW = 2**31  # bytes of G that "auto" still stores
_CHUNK_BYTES = 2**25  # bytes of gradient rows live at a time
_CHUNK_ROWS = 256


def per_example_gradients(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    plan: Plan,
    *,
    batch: int = 1,
    storage: Storage = "auto",
    dtype: Any = None,
    corruption: Corruption | None = None,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> StoredRows | MatrixFreeRows:
    """Take the gradient of the loss on each example, or on each mini-batch.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch whose leaves have
            a leading axis of examples. Evaluate the network in inference mode in it:
            with batch statistics one example's gradient depends on the others.
        params: where the gradients are taken.
        data: a pytree of arrays [n * batch, ...].
        plan: says which leaves are prunable; the rows hold those only.
        batch: examples averaged into one row.
        storage: ``"stored"`` keeps G, n times the prunable entries; ``"matrix-free"``
            recomputes it in every product; ``"auto"`` stores what is below 2 GiB.
        dtype: what rows are rounded to, ``jnp.bfloat16`` to halve the memory. By
            default float32, or float64 for params of float64.
        corruption: what happens to each row, from `swapjax.noise`.
        key: seeds the corruption.
        chunk: rows formed at a time; by default what fits 32 MiB, 256 at most.

    Returns:
        The operator G.

    Raises:
        ValueError: for leaves of data that disagree about the number of examples, a
            number that batch does not divide, no rows at all, a corruption without a
            key, and gradients that are not finite, naming the leaf.
    """
    free = recipe(
        loss_fn, params, data, plan,
        batch=batch, dtype=dtype, corruption=corruption, key=key, chunk=chunk,
    )  # fmt: skip
    return form(free, plan, storage)


def recipe(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    plan: Plan,
    *,
    batch: int = 1,
    dtype: Any = None,
    corruption: Corruption | None = None,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> MatrixFreeRows:
    """Describe the rows without computing anything; see `per_example_gradients`."""
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, got {batch}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be 1 or more, got {chunk}")
    if corruption is not None and key is None:
        raise ValueError("key: a corruption needs a PRNG key, got None")
    examples = count_examples(data)
    if examples < 1 or examples % batch:
        raise ValueError(
            f"data: {examples} examples do not make whole rows of batch={batch}"
        )
    n = examples // batch
    weights = plan.split(params)
    if chunk is None:
        chunk = min(_CHUNK_ROWS, max(1, _CHUNK_BYTES // (4 * plan.total)))
    rounded = None if dtype is None else jnp.dtype(dtype)
    return MatrixFreeRows(
        params=params,
        data=jax.tree.map(lambda x: x.reshape(n, batch, *x.shape[1:]), data),
        key=jax.random.key(0) if key is None else key,
        loss_fn=loss_fn,
        positions=plan.positions,
        corruption=corruption,
        dtype=None if rounded == explicit.wide(weights) else rounded,
        chunk=min(chunk, n),
    )


def form(
    free: MatrixFreeRows, plan: Plan, storage: Storage = "auto"
) -> StoredRows | MatrixFreeRows:
    """Store the rows of a recipe or leave them to be recomputed, and check them.

    Raises:
        ValueError: for an unknown storage, and gradients that are not finite.
    """
    check_storage(storage)
    if storage == "auto":
        dtype = jnp.dtype(free.dtype or explicit.wide(plan.split(free.params)))
        small = free.n * plan.total * dtype.itemsize < _STORE_BELOW
        storage = "stored" if small else "matrix-free"
    rows = store(free) if storage == "stored" else free
    trees.require_finite(plan.paths, _sum_rows(rows), "gradients")
    return rows


def check_storage(storage: str) -> None:
    """Raise for an unknown storage.

    Raises:
        ValueError: naming the argument.
    """
    if storage not in ("auto", "stored", "matrix-free"):
        raise ValueError(
            f"storage must be 'auto', 'stored' or 'matrix-free', got {storage!r}"
        )


@jax.jit
def _sum_rows(rows: StoredRows | MatrixFreeRows) -> Leaves:
    return rows.pull_back(jnp.ones(rows.n))
