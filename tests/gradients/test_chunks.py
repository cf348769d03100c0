"""Chunks of rows in lanes, against loops over the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.gradients import gram
from swapjax.gradients.chunks import Chunks

# n, lanes, slots, size.
LAYOUTS = [
    (1, 1, 1, 1),
    (7, 1, 7, 3),  # the last chunk shares two rows with the one before
    (12, 1, 12, 12),  # one chunk
    (12, 3, 4, 2),  # chunks that divide, no padding
    (13, 1, 13, 1),
    (13, 4, 4, 3),  # three rows of padding
    (9, 8, 2, 1),  # lanes that hold padding only
    (3, 2, 5, 4),  # more padding than rows
]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def lay(values, chunks):
    """Rows as [lanes, slots, ...], followed by padding that would be noticed."""
    padding = chunks.lanes * chunks.slots - chunks.n
    values = np.concatenate([values, np.full((padding, *values.shape[1:]), 1000)])
    return jnp.asarray(values.reshape(chunks.lanes, chunks.slots, *values.shape[1:]))


def visits(chunks):
    """The row numbers of each chunk, and whether they are there for the first time."""
    seen = set()
    for first in range(0, chunks.slots, chunks.size):
        start = min(first, chunks.slots - chunks.size)
        numbers, fresh = [], []
        for lane in range(chunks.lanes):
            for slot in range(start, start + chunks.size):
                number = lane * chunks.slots + slot
                numbers.append(number)
                fresh.append(number < chunks.n and number not in seen)
        seen.update(numbers)
        yield np.asarray(numbers), np.asarray(fresh)


@layouts
def test_every_row_is_fresh_once(layout):
    chunks, counts = Chunks(*layout), np.zeros(layout[0], int)
    expected = list(visits(chunks))
    assert chunks.count == len(expected)
    for i, (numbers, fresh) in enumerate(expected):
        chunk = chunks.chunk(jnp.asarray(i))
        np.testing.assert_array_equal(chunk.numbers, numbers)
        np.testing.assert_array_equal(chunk.fresh, fresh)
        counts[numbers[fresh]] += 1
    np.testing.assert_array_equal(counts, 1)


@layouts
def test_fold_adds_up_in_the_order_of_chunks(layout):
    chunks = Chunks(*layout)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(chunks.n, 3)).astype(np.float32)
    factors = rng.normal(size=chunks.n).astype(np.float32)
    data = lay(values, chunks)

    def step(total, chunk):
        number, total = total
        total = total + jnp.sum(chunk.pick(factors)[:, None] * chunk.read(data), 0)
        return number + jnp.sum(chunk.fresh), total

    start = (jnp.zeros((), int), jnp.zeros(3))
    number, total = jax.jit(lambda: chunks.fold(step, start))()
    assert number == chunks.n
    loop = jnp.zeros(3)
    for numbers, fresh in visits(chunks):
        padded = np.where(fresh, factors[numbers.clip(max=chunks.n - 1)], 0)
        rows = np.asarray(data).reshape(-1, 3)[numbers]
        loop = loop + jnp.sum(padded[:, None] * rows, 0)
    np.testing.assert_allclose(total, loop, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(total, factors @ values, rtol=1e-5, atol=1e-5)


@layouts
def test_collect_keeps_the_order_of_rows(layout):
    chunks = Chunks(*layout)
    values = np.arange(chunks.n * 6).reshape(chunks.n, 2, 3)
    data = lay(values, chunks)

    def work(chunk):
        return {"same": chunk.read(data), "number": chunk.numbers}

    row = {
        "same": jax.ShapeDtypeStruct((2, 3), jnp.float32),
        "number": jax.ShapeDtypeStruct((), jnp.int32),
    }
    found = jax.jit(lambda: chunks.collect(work, row))()
    np.testing.assert_array_equal(found["same"], values)
    np.testing.assert_array_equal(found["number"], np.arange(chunks.n))
    assert found["same"].dtype == jnp.float32


@layouts
def test_rows_leave_the_padding_out(layout):
    chunks = Chunks(*layout)
    values = np.arange(chunks.n * 2).reshape(chunks.n, 2)
    np.testing.assert_array_equal(chunks.rows(lay(values, chunks)), values)


@layouts
def test_pick_takes_the_last_axis(layout):
    chunks = Chunks(*layout)
    values = jnp.arange(1, 1 + 2 * chunks.n).reshape(2, chunks.n)
    for i, (numbers, fresh) in enumerate(visits(chunks)):
        picked = np.asarray(chunks.chunk(jnp.asarray(i)).pick(values))
        np.testing.assert_array_equal(picked[:, fresh], values[:, numbers[fresh]])
        np.testing.assert_array_equal(picked[:, ~fresh], 0)


@layouts
def test_map_rows_sees_every_number(layout):
    chunks = Chunks(*layout)
    size = chunks.lanes * chunks.size
    rows = jnp.arange(6.0 * size).reshape(size, 2, 3)
    for i, (numbers, _) in enumerate(visits(chunks)):
        times, plus = chunks.chunk(jnp.asarray(i)).map_rows(
            lambda number, row: (number * row[0], number + row[1]), (rows, rows)
        )
        np.testing.assert_array_equal(times, numbers[:, None, None] * rows)
        np.testing.assert_array_equal(plus, numbers[:, None, None] + rows)


@pytest.mark.parametrize("x64", [False, True])
def test_write_behind_leading_axes(x64):
    with jax.enable_x64(x64):
        chunks = Chunks(5, 2, 3, 2)
        out = jnp.zeros((4, 2, 3, 2))
        part = jnp.arange(1, 9).reshape(4, 2)
        out = chunks.chunk(jnp.asarray(1)).write(out, part, jnp.asarray(3))
    expected = np.zeros((4, 2, 3, 2))
    expected[3, :, 1:3] = np.arange(1, 9).reshape(2, 2, 2)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ((4, 1, 4, 0), r"size must be in 1\.\.4, got 0"),
        ((4, 1, 4, 5), r"size must be in 1\.\.4, got 5"),
        ((9, 2, 4, 2), "n: 9 rows do not fit 2 lanes of 4 slots"),
    ],
)
def test_layouts_that_cannot_be(layout, message):
    with pytest.raises(ValueError, match=message):
        Chunks(*layout)


@layouts
def test_gram_in_rounds_of_blocks(x64, monkeypatch, layout):
    """Two blocks of five columns a round, the last of fewer."""
    chunks = Chunks(*layout)
    monkeypatch.setattr(gram, "_COLUMNS", 5)
    monkeypatch.setattr(gram, "_ENTRIES", 10 * chunks.n)
    rng = np.random.default_rng(0)
    shapes = ((11,), (3, 4), (0,))
    weights = tuple(jnp.zeros(s) for s in shapes)
    rows = tuple(rng.normal(size=(chunks.n, *s)) for s in shapes)
    data = tuple(lay(m, chunks) for m in rows)
    g = np.concatenate([m.reshape(chunks.n, -1) for m in rows], axis=1)
    form = lambda chunk: chunk.read(data)  # noqa: E731
    compute = jax.jit(lambda s: gram.by_columns(form, chunks, weights, s))
    np.testing.assert_allclose(compute(None), g @ g.T, rtol=1e-10, atol=1e-12)
    for density in (0, 0.3, 1):
        support = tuple(rng.random(s) < density for s in shapes)
        on = g * np.concatenate([s.ravel() for s in support])
        np.testing.assert_allclose(compute(support), on @ on.T, rtol=1e-10, atol=1e-12)
