"""A report tells sizes and multiplications exactly, and time as it was measured."""

import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax

PARAMS = {
    "fc1": {"bias": jnp.ones(6), "kernel": jnp.ones((4, 6))},
    "fc2": jnp.ones((6, 3)),
}
MASKS = {
    "fc1": {"bias": True, "kernel": jnp.arange(24).reshape(4, 6) % 4 == 0},
    "fc2": jnp.ones((6, 3), bool),
}
SMALL = {
    "fc1": {"bias": jnp.ones(2), "kernel": jnp.ones((4, 2))},
    "fc2": jnp.ones((2, 3)),
}
BATCH = jnp.ones((5, 4))


def apply(p, x):
    return jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"]) @ p["fc2"]


@pytest.fixture(scope="module")
def told():
    return swapjax.report(apply, PARAMS, MASKS, SMALL, batch=BATCH, repeats=3)


def test_sizes_are_exact(told):
    dense, masked, shrunk = (form.size for form in told.forms)
    assert dense[:4] == (48, 48, 192, 192)
    # A bit for each of 24 entries and 6 floats; what has no zeros stays as it is.
    assert masked[:4] == (48, 30, 192, 24 + (3 + 24) + 72)
    assert shrunk[:4] == (16, 16, 64, 64)
    arrays = [np.asarray(x) for x in jax.tree.leaves(PARAMS)]
    assert dense.deflated == sum(len(zlib.compress(x.tobytes())) for x in arrays)


def test_multiplications_are_exact(told):
    assert [(form.macs, form.macs_left) for form in told.forms] == [
        (5 * (24 + 18), 5 * (24 + 18)),
        (5 * (24 + 18), 5 * (6 + 18)),
        (5 * (8 + 6), 5 * (8 + 6)),
    ]
    kernel = next(row for row in told.rows if row.path == "fc1/kernel")
    wanted = ("fc1/kernel", (4, 6), 24, 6, 120, 30, (4, 2), 40)
    assert dataclasses.astuple(kernel) == wanted


def test_times_are_measured_and_forms_of_one_shape_share_a_program(told):
    dense, masked, shrunk = (form.time for form in told.forms)
    for time in (dense, masked, shrunk):
        low, high = time.quartiles
        assert 0 < low <= time.seconds <= high
    assert dense.compile_seconds == masked.compile_seconds != shrunk.compile_seconds
    assert told["dense"].of_dense == 1
    assert shrunk.flops < dense.flops


def test_it_is_a_table_and_json(told):
    text = str(told)
    assert "fc1/kernel" in text
    assert "by the same program" in text or "masked runs as fast" in text.lower()
    again = json.loads(json.dumps(told.to_dict()))
    assert again["forms"][1]["size"]["nonzeros"] == 30
    assert again["rows"][1]["shrunk_shape"] == [4, 2]
    with pytest.raises(KeyError, match="dense, masked, shrunk"):
        told["quantised"]


def test_without_masks_and_time():
    shapes = jax.ShapeDtypeStruct(BATCH.shape, BATCH.dtype)
    pruned = swapjax.apply_masks(PARAMS, MASKS)
    told = swapjax.report(apply, pruned, batch=shapes, repeats=0)
    (dense,) = told.forms
    assert (dense.size.nonzeros, dense.macs_left, dense.time) == (30, 120, None)
    assert "not measured" in str(told)
    assert "shrunk" not in str(told)


def test_a_shrunk_network_brings_its_function():
    def flat(p, x):  # a size that params do not tell
        hidden = jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
        return hidden.reshape(len(x), 1, 6)[:, 0] @ p["fc2"]

    masks = {**MASKS, "fc2": jnp.arange(6)[:, None] < jnp.full(3, 2)}
    smaller = swapjax.shrink(flat, PARAMS, masks, BATCH)
    told = swapjax.report(flat, PARAMS, masks, smaller, batch=BATCH, repeats=0)
    assert told["shrunk"].macs == 70
    fewer = swapjax.report(flat, PARAMS, masks, smaller, batch=BATCH[:3], repeats=0)
    assert fewer["shrunk"].macs * len(BATCH) == 70 * 3
    with pytest.raises(ValueError, match=r"shrunk: cannot be run .* give what"):
        swapjax.report(flat, PARAMS, shrunk=SMALL, batch=BATCH)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"masks": {"fc1": True}}, "masks: must have the tree of params"),
        ({"shrunk": {"fc1": SMALL["fc1"]}}, "shrunk: .* fc2 differs"),
        ({"repeats": -1}, "repeats"),
        ({"loss_or_apply": 3}, "loss_or_apply must be a function"),
    ],
)
def test_bad_input_is_told(given, sentence):
    given = {"loss_or_apply": apply, "params": PARAMS, "batch": BATCH, **given}
    with pytest.raises(ValueError, match=sentence):
        swapjax.report(**given)
