"""Build the operator G: gradients of single examples, or of mini-batches."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.core import losses, sharding, trees
from swapjax.core.checks import require_count, require_float
from swapjax.core.compiled import Compiled
from swapjax.core.trees import count_examples
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.operator import Corruption, Storage
from swapjax.gradients.stored import StoredRows, store
from swapjax.loops.convolutions.canonical import platform
from swapjax.sparsity.plan import Plan

_STORE_BELOW = 2**31  # bytes of G that "auto" still stores
_CHUNK_BYTES = 2**25  # bytes of gradient rows live at a time, on a device
# Bytes of activations. A CPU's cache is small, and XLA's kernel gradients in loops took
# there five times as long per row in batches of 16 as one by one (ResNet-50).
_SPAN_BYTES = {"cpu": 2**25}
_SPAN_BYTES_ELSEWHERE = 2**30
_CHUNK_ROWS = 256
# Where kernels have gradients of several rows at once in a convolution with a group for
# each: it takes twice as long on a CPU, and XLA:GPU takes it for a forward convolution
# with windows as large as images (MatchBackwardFilter in its conv_rewriter).
_ONE_BY_ONE = "cpu", "gpu"


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

    Params and data may be sharded in any way. Sharded examples are not moved: every
    device takes the gradients of its own.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch whose leaves have
            a leading axis of examples. Evaluate the network in inference mode in it:
            with batch statistics one example's gradient depends on the others.
        params: where the gradients are taken.
        data: a pytree of arrays [n * batch, ...].
        plan: says which leaves are prunable; the rows hold those only.
        batch: examples averaged into one row.
        storage: ``"stored"`` keeps G, n times the prunable entries; ``"matrix-free"``
            recomputes it in every product; ``"auto"`` stores G if it is below 2 GiB.
        dtype: what rows are rounded to, ``jnp.bfloat16`` to halve the memory. By
            default float32, or float64 for params of float64.
        corruption: how each row is corrupted, see `swapjax.gradients.noise`.
        key: seeds the corruption.
        chunk: rows per device at a time. By default as many as fit 32 MiB of formed
            rows, and in passes that hold activations 32 MiB of those on a CPU, 1 GiB
            elsewhere; at most 256.

    Returns:
        The operator G.

    Raises:
        ValueError: for leaves of data that disagree about the number of examples, a
            number that batch does not divide, no examples, a batch or chunk below 1, a
            dtype that is not floating, an unknown storage, a corruption without a key,
            a loss that is not a scalar, and gradients that are not finite, naming the
            leaf.
    """
    params, data = sharding.leave_to_compiler((params, data))
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
    spread: sharding.Spread | None = None,
    differentiable: bool = True,
) -> MatrixFreeRows:
    """Describe the rows without computing anything; see `per_example_gradients`.

    Args:
        loss_fn: as there, like the arguments that follow.
        params: where the gradients are taken.
        data: the examples.
        plan: the prunable leaves.
        batch: examples averaged into one row.
        dtype: what rows are rounded to.
        corruption: how each is corrupted.
        key: seeds the corruption.
        chunk: rows per device at a time.
        spread: the devices to place examples on; by default those that hold them.
        differentiable: whether there are gradients to take, and not only losses.

    Raises:
        ValueError: as there, except for storage and gradients that are not finite.
    """
    require_count("batch", batch)
    if chunk is not None:
        require_count("chunk", chunk)
    if corruption is not None and key is None:
        raise ValueError("key: a corruption needs a PRNG key, got None")
    examples = count_examples(data)
    if examples < 1 or examples % batch:
        raise ValueError(
            f"data: {examples} examples do not make whole rows of batch={batch}"
        )
    n = examples // batch
    weights = plan.layout.split(params)
    spread = sharding.find_spread(data) if spread is None else spread
    data = _in_lanes(data, n, spread)
    lanes, slots = jax.tree.leaves(data)[0].shape[:2]
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), data)
    span = chunk
    program = trace(loss_fn, params, one, differentiable=differentiable)
    live = activation_bytes(program)
    if chunk is None:
        room = _SPAN_BYTES.get(jax.default_backend(), _SPAN_BYTES_ELSEWHERE)
        fits = room // live
        span = min(_CHUNK_ROWS, max(1, fits))
        chunk = min(span, max(1, _CHUNK_BYTES // (4 * plan.layout.total)))
    rounded = None if dtype is None else require_float("dtype", dtype)
    return MatrixFreeRows(
        params=params,
        data=data,
        key=jax.random.key(0) if key is None else key,
        n=n,
        loss_fn=loss_fn,
        custom=_has(program, "custom_vjp_call"),
        one_by_one=lanes == 1
        and platform() in _ONE_BY_ONE
        and _has(program, "conv_general_dilated"),
        layout=plan.layout,
        corruption=corruption,
        dtype=None if rounded == trees.wide(weights) else rounded,
        chunk=min(chunk, slots),
        span=min(span, slots),
    )


def _in_lanes(data: Any, n: int, spread: sharding.Spread | None) -> Any:
    """Lay data out as [lanes, slots, b, ...], a lane per device, padded with row 0."""
    if spread is None:
        return _lay_compiled(data, n, 1)
    return spread.place(_lay_compiled(data, n, spread.size))


def _lay(data: Any, n: int, lanes: int) -> Any:
    slots = math.ceil(n / lanes)

    def lay(x: jax.Array) -> jax.Array:
        x = jnp.reshape(x, (n, -1, *x.shape[1:]))
        if lanes * slots > n:
            filler = jnp.broadcast_to(x[:1], (lanes * slots - n, *x.shape[1:]))
            x = jnp.concatenate([x, filler])
        return x.reshape(lanes, slots, *x.shape[1:])

    return jax.tree.map(lay, data)


_lay_compiled = jax.jit(_lay, static_argnums=(1, 2))


def trace(
    loss_fn: LossFn, params: Params, batch: Any, *, differentiable: bool = True
) -> core.Jaxpr:
    """Trace one evaluation of the loss, and look at what it returns.

    Args:
        loss_fn: ``loss_fn(params, batch)``.
        params: the weights.
        batch: a pytree of arrays or of ``jax.ShapeDtypeStruct``.
        differentiable: whether gradients will be taken of it.

    Raises:
        ValueError: if the loss is not a scalar, or has no gradient.
    """
    program, returned = jax.make_jaxpr(loss_fn, return_shape=True)(params, batch)
    losses.require_scalar(returned, differentiable=differentiable)
    return program.jaxpr


def activation_bytes(program: core.Jaxpr) -> int:
    """Count the bytes that a program computes, a bound on the memory it takes."""

    def count(jaxpr: core.Jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            inner = _inner(equation)
            if inner:
                total += sum(map(count, inner))
            else:
                total += sum(_bytes(v.aval) for v in equation.outvars)
        return total

    return max(1, count(program))


def _has(program: core.Jaxpr, name: str) -> bool:
    """Whether there is an operation whose name starts so in a program."""
    return any(
        equation.primitive.name.startswith(name)
        or any(_has(inner, name) for inner in _inner(equation))
        for equation in program.eqns
    )


def _inner(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """Find the programs that an equation calls."""
    return [
        part.jaxpr if isinstance(part, core.ClosedJaxpr) else part
        for value in equation.params.values()
        for part in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(part, core.ClosedJaxpr | core.Jaxpr)
    ]


def _bytes(aval: Any) -> int:
    if not hasattr(aval, "shape") or not hasattr(aval.dtype, "itemsize"):
        return 0
    return math.prod(aval.shape) * aval.dtype.itemsize


def form(
    free: MatrixFreeRows, plan: Plan, storage: Storage = "auto"
) -> StoredRows | MatrixFreeRows:
    """Store the rows of a recipe, or leave them to be recomputed, and check them.

    Raises:
        ValueError: for an unknown storage, and gradients that are not finite.
    """
    rows = store(free) if storage_of(free, storage) == "stored" else free
    require_finite(_sum_rows((), rows, owners=free.functions), free, plan)
    return rows


def require_finite(sums: Leaves, free: MatrixFreeRows, plan: Plan) -> None:
    """Raise for gradients that are not finite.

    Args:
        sums: of all rows.
        free: their recipe.
        plan: the prunable leaves.

    Raises:
        ValueError: naming the leaves.
    """
    if not trees.are_finite(sums):
        leaves = free.layout.unpack(sums)
        trees.require_finite(plan.layout.paths, leaves, "gradients")


def storage_of(free: MatrixFreeRows, storage: Storage) -> Storage:
    """Choose how to store rows, where it is left open.

    Raises:
        ValueError: for an unknown storage.
    """
    check_storage(storage)
    if storage != "auto":
        return storage
    dtype = jnp.dtype(free.row[0].dtype)
    small = free.n * free.layout.total * dtype.itemsize < _STORE_BELOW
    return "stored" if small else "matrix-free"


def check_storage(storage: str) -> None:
    """Raise for an unknown storage.

    Raises:
        ValueError: naming the argument.
    """
    if storage not in ("auto", "stored", "matrix-free"):
        raise ValueError(
            f"storage must be 'auto', 'stored' or 'matrix-free', got {storage!r}"
        )


@Compiled
def _sum_rows(rows: StoredRows | MatrixFreeRows) -> Leaves:
    return rows.pull_back(jnp.ones(rows.n))
