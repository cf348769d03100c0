"""Ways to multiply by a matrix of which some blocks, or some weights, are left.

Each way stores the weights in its own form and multiplies ``x [batch, n]`` by them, in
plain JAX unless its name tells otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import sparse

LARGEST = 2**30  # bytes of what a way writes between; beyond that it is not run


class Way(NamedTuple):
    """One way to multiply.

    Attributes:
        weights: the matrix [n, n] that it stores, float32 with zeros.
        stored: the arrays.
        run: ``(stored, x) -> x @ weights``.
        between: bytes that it writes between.
    """

    weights: np.ndarray
    stored: Any
    run: Callable[[Any, jax.Array], jax.Array]
    between: int = 0


def ways(n: int, batch: int, density: float, *, pallas: bool = False) -> dict[str, Way]:
    """Make all ways there are for a matrix.

    Args:
        n: its sides.
        batch: rows of x.
        density: the fraction that is left; in each column, or column of blocks.
        pallas: whether to have the kernel of Pallas among them.
    """
    rng = np.random.default_rng(0)
    full = (rng.normal(size=(n, n)) / np.sqrt(n)).astype(np.float32)
    some = full * _kept(rng, n, n, round(n * density))
    found = {
        "dense": Way(full, full, _multiply),
        "masked": Way(some, some, _multiply),
        "fewer outputs": _narrow(full, density),
        "BCOO": _of_coordinates(some, batch),
        "BCSR": _of_rows(some, batch),
        "gathered": _of_places(some, batch),
    }
    if density == 0.5:
        found["2:4, unpacked"] = _of_four(full, rng)
    for size in (32, 128):
        blocks = n // size
        if n % size == 0 and (blocks * density).is_integer() and blocks * density >= 1:
            kept = _kept(rng, blocks, blocks, round(blocks * density))
            cut = full * np.kron(kept, np.ones((size, size), np.float32))
            found[f"blocks of {size}"] = _of_blocks(cut, kept, size, _gather_blocks)
            if pallas:
                found[f"blocks of {size}, Pallas"] = _of_blocks(
                    cut, kept, size, functools.partial(pallas_blocks, interpret=False)
                )
    return found


def _kept(rng: np.random.Generator, rows: int, columns: int, keep: int) -> np.ndarray:
    """Choose so many places of each column."""
    order = rng.random((rows, columns)).argsort(0)
    return order < keep


def _multiply(weights: jax.Array, x: jax.Array) -> jax.Array:
    return x @ weights


def _narrow(full: np.ndarray, density: float) -> Way:
    """Leave out columns: outputs, as structured pruning does."""
    few = full[:, : round(full.shape[1] * density)]
    return Way(few, few, _multiply)


def _of_coordinates(weights: np.ndarray, batch: int) -> Way:
    stored = sparse.BCOO.fromdense(jnp.asarray(weights.T))
    return Way(weights, stored, lambda m, x: (m @ x.T).T, stored.nse * batch * 4)


def _of_rows(weights: np.ndarray, batch: int) -> Way:
    stored = sparse.BCSR.fromdense(jnp.asarray(weights.T))
    return Way(weights, stored, lambda m, x: (m @ x.T).T, stored.nse * batch * 4)


def _of_places(weights: np.ndarray, batch: int) -> Way:
    """Store as many weights of each output, and the places of their inputs."""
    keep = int((weights[:, 0] != 0).sum())
    places = np.argsort(weights == 0, axis=0, kind="stable")[:keep].T  # [n, keep]
    values = np.take_along_axis(weights.T, places, 1)

    def run(stored: Any, x: jax.Array) -> jax.Array:
        values, places = stored
        return jnp.einsum("bok,ok->bo", x[:, places], values)

    stored = values, places.astype(np.int32)
    return Way(weights, stored, run, values.size * batch * 4)


def _of_four(full: np.ndarray, rng: np.random.Generator) -> Way:
    """Store two of each four inputs, and which; make the matrix whole to multiply."""
    n = len(full)
    places = np.sort(rng.random((n // 4, 4, n)).argsort(1)[:, :2], 1)
    values = np.take_along_axis(full.reshape(n // 4, 4, n), places, 1)
    weights = np.zeros((n // 4, 4, n), np.float32)
    np.put_along_axis(weights, places, values, 1)

    def run(stored: Any, x: jax.Array) -> jax.Array:
        values, places = stored
        four = jnp.arange(4, dtype=jnp.int8)[:, None]
        parts = [
            jnp.where(places[:, i, None] == four, values[:, i, None], 0) for i in (0, 1)
        ]
        return x @ (parts[0] + parts[1]).reshape(n, n)

    stored = values, places.astype(np.int8)
    return Way(weights.reshape(n, n), stored, run, weights.nbytes)


def _of_blocks(weights: np.ndarray, kept: np.ndarray, size: int, run: Callable) -> Way:
    """Store as many blocks of each column of blocks, and the rows they lie in."""
    count = len(kept)
    keep = int(kept[:, 0].sum())
    rows = np.argsort(~kept, axis=0, kind="stable")[:keep].T  # [columns, keep]
    cut = weights.reshape(count, size, count, size).transpose(2, 0, 1, 3)
    blocks = np.take_along_axis(cut, rows[:, :, None, None], 1)
    return Way(weights, (blocks, rows.astype(np.int32)), run)


def _gather_blocks(stored: Any, x: jax.Array) -> jax.Array:
    """Gather the inputs of each column of blocks, and multiply densely."""
    blocks, rows = stored
    columns, keep, size, _ = blocks.shape
    read = x.reshape(len(x), -1, size)[:, rows]  # [batch, columns, keep, size]
    read = read.transpose(1, 0, 2, 3).reshape(columns, len(x), keep * size)
    out = read @ blocks.reshape(columns, keep * size, size)
    return out.transpose(1, 0, 2).reshape(len(x), columns * size)


def pallas_blocks(stored: Any, x: jax.Array, *, interpret: bool) -> jax.Array:
    """Do the same in a kernel, a program for each column of blocks."""
    blocks, rows = stored
    columns, keep, size, _ = blocks.shape

    def kernel(x_ref: Any, blocks_ref: Any, rows_ref: Any, out_ref: Any) -> None:
        def step(i: jax.Array, total: jax.Array) -> jax.Array:
            read = x_ref[:, pl.ds(rows_ref[0, i] * size, size)]
            return total + read @ blocks_ref[0, i]

        zeros = jnp.zeros((len(x), size), jnp.float32)
        out_ref[...] = jax.lax.fori_loop(0, keep, step, zeros)

    return pl.pallas_call(
        kernel,
        grid=(columns,),
        in_specs=[
            pl.BlockSpec(x.shape, lambda c: (0, 0)),
            pl.BlockSpec((1, keep, size, size), lambda c: (c, 0, 0, 0)),
            pl.BlockSpec((1, keep), lambda c: (c, 0)),
        ],
        out_specs=pl.BlockSpec((len(x), size), lambda c: (0, c)),
        out_shape=jax.ShapeDtypeStruct((len(x), columns * size), jnp.float32),
        interpret=interpret,
    )(x, blocks, rows)
