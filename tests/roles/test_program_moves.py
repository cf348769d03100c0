"""Roles of leaves that were rearranged at random, beside what products do with them."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given

from swapjax.roles.program import trace_roles


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def draw_move(draw, shape):
    """Draw what is done to an array of a shape, as a function of it and of NumPy."""
    axis = draw(st.integers(0, len(shape) - 1))
    kinds = ["transpose", "split", "merge", "part", "one", "flip", "new", "join"]
    kinds += ["pad", "scale", "permute", "take", "stack", "repeat"]
    kind = draw(st.sampled_from(kinds))
    move = move_of(draw, kind, shape, axis)
    move.kind = kind
    return move


def move_of(draw, kind, shape, axis):
    size = shape[axis]
    if kind == "transpose":
        order = draw(st.permutations(range(len(shape))))
        return lambda x, xp: xp.transpose(x, order)
    if kind == "split":
        d = draw(st.sampled_from(divisors(size)))
        new = (*shape[:axis], d, size // d, *shape[axis + 1 :])
        return lambda x, xp: xp.reshape(x, new)
    if kind == "merge" and axis:
        new = (*shape[: axis - 1], shape[axis - 1] * size, *shape[axis + 1 :])
        return lambda x, xp: xp.reshape(x, new)
    if kind == "part":
        stop = draw(st.integers(1, size))
        start = draw(st.integers(0, stop - 1))
        return lambda x, xp: x[(slice(None),) * axis + (slice(start, stop),)]
    if kind == "one" and len(shape) > 1:
        place = draw(st.integers(0, size - 1))
        return lambda x, xp: x[(slice(None),) * axis + (place,)]
    if kind == "flip":
        return lambda x, xp: xp.flip(x, axis)
    if kind == "new":
        return lambda x, xp: xp.expand_dims(x, axis)
    if kind == "join":
        # The two parts change places.
        cut = draw(st.integers(0, size))
        return lambda x, xp: xp.concatenate(xp.split(x, [cut], axis)[::-1], axis)
    if kind == "pad":
        pads = [(0, 0)] * len(shape)
        pads[axis] = (1, 0)
        return lambda x, xp: xp.pad(x, pads)
    if kind == "take":
        places = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
        return lambda x, xp: xp.take(x, xp.asarray(places), axis)
    if kind == "stack":
        return lambda x, xp: xp.stack([x, 2 * x], axis)
    if kind == "repeat":
        return lambda x, xp: xp.repeat(x, 2, axis)
    if kind == "permute":
        # A product with a constant matrix.
        matrix = np.eye(size)[draw(st.permutations(range(size)))]
        swapped = lambda x, xp: xp.swapaxes(x, axis, -1)  # noqa: E731
        return lambda x, xp: swapped(swapped(x, xp) @ matrix, xp)
    return lambda x, xp: x * 0.5


@st.composite
def networks(draw):
    """Draw the shape of a leaf, how it is rearranged, and an einsum with data."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    moves, now = [], np.zeros(shape)
    for _ in range(draw(st.integers(0, 5))):
        moves.append(draw_move(draw, now.shape))
        now = moves[-1](now, np)
        assume(now.size <= 200 and now.ndim <= 5)
    words = [draw(st.sampled_from(["input", "output", "expert"])) for _ in now.shape]
    return shape, moves, now.shape, words


def einsum(words, xp):
    """Multiply rearranged weights [..., *axes] with data [k, *axes that meet, 1]."""
    axes = "abcdefgh"[: len(words)]
    met = "".join(a for a, w in zip(axes, words, strict=True) if w != "output")
    kept = "".join(a for a, w in zip(axes, words, strict=True) if w != "input")
    return lambda w, x: xp.einsum(f"...{axes},k{met}z->...k{kept}z", w, x)


def oracle(shape, moves, shown, words):
    """Compute which entries of the leaf meet which inputs for which outputs.

    Entries that differ along one axis alone, and are used, have an output in common
    when the axis is summed over, an input when it numbers outputs, and neither when
    it numbers layers.
    """
    basis = np.eye(np.prod(shape)).reshape(-1, *shape)
    made = []
    for weights in basis:
        for move in moves:
            weights = move(weights, np)
        made.append(weights)
    met = [n for n, w in zip(shown, words, strict=True) if w != "output"]
    data = np.eye(np.prod(met, dtype=int)).reshape(-1, *met, 1)
    table = einsum(words, np)(np.stack(made), data) != 0
    table = table.reshape(len(basis), len(data), -1)  # leaf, inputs, outputs
    inputs, outputs = table.any(2), table.any(1)
    numbers = np.arange(len(basis)).reshape(shape)
    found = []
    for axis in range(len(shape)):
        lines = np.moveaxis(numbers, axis, -1).reshape(-1, shape[axis])
        kinds = set()
        for line in lines:
            for i, j in itertools.combinations(line[inputs[line].any(1)], 2):
                if (outputs[i] & outputs[j]).any():
                    kinds.add("input")
                elif (inputs[i] & inputs[j]).any():
                    kinds.add("output")
                else:
                    kinds.add("layer")
        found.append(kinds)
    return found, inputs.any(1).reshape(shape)


@given(networks())
def test_what_roles_say_is_what_products_do(network):
    shape, moves, shown, words = network
    met = [n for n, w in zip(shown, words, strict=True) if w != "output"]

    def loss(leaf, data):
        for move in moves:
            leaf = move(leaf, jnp)
        return jnp.mean(einsum(words, jnp)(leaf, data))

    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    data = jax.ShapeDtypeStruct((7, *met, 1), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        (role,) = trace_roles(loss, leaf, data)
    found, used = oracle(shape, moves, shown, words)
    several = [kinds for kinds in found if kinds]
    assume(used.any() and several)
    if any({"input", "output"} <= kinds for kinds in several):
        assert role.kind == "unknown"
        assert "both inputs and outputs" in role.reason
    elif role.kind == "unknown":
        # Cut where its factors do not divide, an axis does several things in turns.
        assert any(len(kinds) > 1 for kinds in several)
    elif not any("input" in kinds for kinds in several):
        assert role.kind != "table"
        if role.kind == "matrix":
            # An axis of which one entry is left, summed over: a layer of one input.
            assert "input" in role.axes
    elif role.kind == "vector":
        # Repeated for all outputs: the scale of inputs.
        assert not any("output" in kinds for kinds in several)
        assert {"repeat", "take"} & {move.kind for move in moves}
    else:
        assert role.kind == "matrix"
        for word, kinds in zip(role.axes, found, strict=True):
            if {"input", "output"} & kinds:
                assert word in kinds
            elif kinds:
                assert word in ("stack", "expert")
