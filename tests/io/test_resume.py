"""A state is believed only as it was written, and by the run that wrote it."""

import json
import os
import random
import struct
import unittest.mock
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import equal

import swapjax
from swapjax.io import resume, tensors
from swapjax.training import Trainer, fit

KEY = jax.random.key(3)
PARAMS = {"a": {"kernel": jax.random.normal(KEY, (3, 2))}, "b": jnp.ones(2)}
X = jax.random.normal(jax.random.key(4), (12, 3))
KINDS = ("stages", "epochs", "levels")
MASKS = {
    "stages": "masks/a/kernel",
    "epochs": "state/masks/a/kernel",
    "levels": "masks/a/kernel",
}


def loss_fn(params, x):
    return jnp.mean((x @ params["a"]["kernel"] + params["b"]) ** 2)


def go(kind, path, rate=0.1, **options):
    """Go on with a run of a kind, or begin it."""
    common = {"key": KEY, "checkpoint": path, **options}
    if kind == "stages":
        return swapjax.prune(
            loss_fn, PARAMS, X, sparsity=0.5, stages=2, samples=6,
            method=swapjax.magnitude(), **common,
        )  # fmt: skip
    optimizer = optax.sgd(rate)
    if kind == "epochs":
        schedule = swapjax.cubic(0, 2, every=1)
        tx = swapjax.sparse(
            optimizer, swapjax.gmp(), sparsity=0.5, schedule=schedule, key=KEY
        )
        return fit(loss_fn, PARAMS, tx, X, epochs=2, batch=4, **common)
    train = Trainer(loss_fn, X, swapjax.FineTune(optimizer, 2, batch=4))
    return swapjax.lottery(train, PARAMS, sparsity=0.5, rate=0.5, **common)


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """By kind: the bytes of a finished run's state, what came of it, how it is read."""
    found = {}
    for kind in KINDS:
        path = tmp_path_factory.mktemp("states") / f"{kind}.safetensors"
        result = go(kind, path)
        with pytest.MonkeyPatch.context() as patch:
            load = unittest.mock.Mock(wraps=resume.load)
            patch.setattr(resume, "load", load)
            assert equal(go(kind, path)[:2], result[:2])
        found[kind] = path.read_bytes(), result, load.call_args.args[1:]
    return found


def refused(path, call):
    """The one sentence that names the file."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.isprintable()
    assert len(sentence) < 600
    return sentence


# Damage


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_believed(kind, states, tmp_path):
    whole, _, asked = states[kind]
    path, draw = tmp_path / "state.safetensors", random.Random(kind)
    for place in range(len(whole)):
        bad = bytearray(whole)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        refused(path, lambda: resume.load(path, *asked))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_no_damage_is_believed(states, tmp_path_factory, kind, data):
    whole, _, asked = states[kind]
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    places = st.integers(0, len(whole) - 1)
    first, last = sorted((data.draw(places), data.draw(places)))
    put = data.draw(st.binary(max_size=40))
    bad = whole[:first] + put + whole[last:]
    path.write_bytes(bad)
    if bad != whole:
        refused(path, lambda: resume.load(path, *asked))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 200_002) + b"[" * 100_001 + b"]" * 100_001,
        b"PK\x03\x04 an archive",
    ],
)
def test_what_is_no_state_is_refused(content, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    refused(path, lambda: go("stages", path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_and_a_name_too_long_are_refused(kind, tmp_path):
    assert "is a folder" in refused(tmp_path, lambda: go(kind, tmp_path))
    path = tmp_path / ("x" * 300)
    assert "File name too long" in refused(path, lambda: go(kind, path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_another_kind_is_refused(kind, states, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(states[kind][0])
    for other in set(KINDS) - {kind}:
        said = refused(path, lambda other=other: go(other, path))
        assert f"not the state of a run of {other}" in said


# What another version, or somebody's program, might have written


def rewrite(path, whole, arrays=(), **metadata):
    """Write a state anew, with other arrays and metadata, and a digest that fits."""
    path.write_bytes(whole)
    old, told = tensors.read(path)
    told = {k: v for k, v in (told | metadata).items() if v is not None}
    new = {k: v for k, v in (old | dict(arrays)).items() if v is not None}
    tensors.write(path, new, told)


def record(states, kind, change):
    """The history of a state, its first record changed."""
    first, *rest = [part.to_dict() for part in states[kind][1].history]
    return {"history": json.dumps([change(first), *rest])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"run": "[]"}, "holds no texts by name as 'run'"),
        ({"run": "{"}, "holds what is no JSON as run"),
        ({"run": '{"a": "1", "a": "1"}'}, "holds what is no JSON as run"),
        ({"run": '{"key": 3}'}, "holds no texts by name as 'run'"),
        ({"run": "[" * 100_000}, "holds what is no JSON as run"),
        ({"run": None}, "is not the state of a run"),
        ({"made": "null"}, "holds no texts by name as 'made'"),
        ({"made": None}, "holds what is no JSON as made"),
        ({"format": "2"}, "was written by another version of swapjax"),
        ({"format": "4"}, "was written by another version of swapjax"),
        ({"format": None}, "was written by another version of swapjax"),
        ({"history": None}, "holds no history of 1 to"),
        ({"history": "null"}, "holds no history of 1 to"),
        ({"history": "{}"}, "holds no history of 1 to"),
        ({"history": "[]"}, "holds no history of 1 to"),
        ({"history": "[1]"}, "has other fields in record"),
        ({"history": "[{}, {}, {}, {}, {}]"}, "holds no history of 1 to"),
        ({"history": "nope"}, "holds what is no JSON as history"),
    ],
)
def test_metadata_of_another_kind_are_refused(kind, change, saying, states, tmp_path):
    path = tmp_path / "state.safetensors"
    rewrite(path, states[kind][0], **change)
    assert saying in refused(path, lambda: go(kind, path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (lambda first: first | {"new": 1}, "has other fields"),
        (lambda first: dict(list(first.items())[:-1]), "has other fields"),
        (lambda first: first | {"seconds": "1"}, "has a seconds of the wrong type"),
        (lambda first: first | {"seconds": True}, "has a seconds of the wrong type"),
        (lambda first: first | {"sparsity": None}, "has a sparsity of the wrong type"),
        (lambda first: first | {next(iter(first)): 1.0}, "of the wrong type"),
        (lambda first: first | {next(iter(first)): 7}, "has another"),
        (lambda first: list(first), "has other fields"),
    ],
)
def test_records_of_another_kind_are_refused(kind, change, saying, states, tmp_path):
    path = tmp_path / "state.safetensors"
    rewrite(path, states[kind][0], **record(states, kind, change))
    assert saying in refused(path, lambda: go(kind, path))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("stages", {"objective": [1.0]}),
        ("stages", {"status": "FINE"}),
        ("stages", {"details": [1.0]}),
        ("stages", {"details": {"rounds": "two"}}),
        ("epochs", {"densities": {"a/kernel": 1}}),
        ("epochs", {"accuracy": "high"}),
        ("levels", {"accuracy": [0.5]}),
    ],
)
def test_a_field_of_another_type_is_refused(kind, change, states, tmp_path):
    path = tmp_path / "state.safetensors"
    rewrite(path, states[kind][0], **record(states, kind, lambda first: first | change))
    (name,) = change
    said = refused(path, lambda: go(kind, path))
    assert f"has a {name} of the wrong type in record" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "array", "saying"),
    [
        ("params/b", None, "lacks params/b"),
        ("params/c", np.ones(2, "f4"), "holds besides its own params/c"),
        ("\x1b[31m", np.ones(2, "f4"), r"holds besides its own \x1b[31m"),
        ("params/a/kernel", np.zeros((2, 3), "f4"), "as float32 of shape (2, 3)"),
        ("params/a/kernel", np.zeros((3, 2), "f2"), "as float16 of shape (3, 2)"),
        ("params/a/kernel", np.zeros((3, 2), "i4"), "as int32 of shape (3, 2)"),
        ("masks", np.ones((3, 2), "f4"), "as float32 of shape (3, 2), wanted bool"),
        ("masks", np.ones((2, 2), "?"), "as bool of shape (2, 2), wanted bool"),
        ("masks", None, "lacks"),
    ],
)
def test_other_tensors_are_refused(kind, name, array, saying, states, tmp_path):
    path = tmp_path / "state.safetensors"
    name = MASKS[kind] if name == "masks" else name
    rewrite(path, states[kind][0], {name: array})
    assert saying in refused(path, lambda: go(kind, path))


@pytest.mark.parametrize("kind", ["stages", "levels"])
def test_params_that_are_not_finite_are_refused(kind, states, tmp_path):
    path = tmp_path / "state.safetensors"
    rewrite(path, states[kind][0], {"params/b": np.asarray([1, np.nan], "f4")})
    assert "NaN or infinite entries in b" in refused(path, lambda: go(kind, path))


@pytest.mark.parametrize("kind", ["stages", "levels"])
@pytest.mark.parametrize("fill", [True, False])
def test_masks_that_are_not_those_of_params_are_refused(kind, fill, states, tmp_path):
    path = tmp_path / "state.safetensors"
    rewrite(path, states[kind][0], {MASKS[kind]: np.full((3, 2), fill)})
    said = refused(path, lambda: go(kind, path))
    assert "masks and a history that do not agree" in said


@pytest.mark.parametrize("batches", ["-1", "2", "1.0", "true", "null", None])
def test_batches_that_were_not_taken_are_refused(batches, states, tmp_path):
    path = tmp_path / "state.safetensors"
    rewrite(path, states["stages"][0], batches=batches)
    said = refused(path, lambda: go("stages", path))
    assert "has counted batches that it cannot have taken" in said


def test_two_leaves_of_one_path_are_not_kept_as_one(tmp_path):
    path = tmp_path / "state.safetensors"
    state = resume.State({"p": {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}}}, {})
    with pytest.raises(ValueError, match="two leaves have the path p/a/b"):
        resume.save(path, state, {}, "stages")
    assert os.listdir(tmp_path) == []


# Other runs, and the same run elsewhere


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_only_the_file_has_is_named(kind, states, tmp_path):
    path = tmp_path / "state.safetensors"
    run = states[kind][2][1]
    rewrite(path, states[kind][0], run=json.dumps(run | {"mercy": "none"}))
    assert "another run (mercy is not known here)" in refused(
        path, lambda: go(kind, path)
    )
    rewrite(
        path, states[kind][0], run=json.dumps({k: run[k] for k in run if k != "key"})
    )
    assert "another run (key was None, is" in refused(path, lambda: go(kind, path))


@pytest.mark.parametrize("kind", ["epochs", "levels"])
def test_another_optimizer_is_another_run(kind, states, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(states[kind][0])
    assert "belongs to another run" in refused(path, lambda: go(kind, path, rate=0.2))


def test_what_changes_numbers_is_a_setting(states, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(states["stages"][0])
    with jax.default_matmul_precision("float32"):
        said = refused(path, lambda: go("stages", path))
    assert "another run (jax_default_matmul_precision was None, is float32)" in said
    with jax.enable_x64(True):
        said = refused(path, lambda: go("stages", path))
    assert "jax_enable_x64 was False, is True" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_under_another_version(kind, states, tmp_path):
    whole, result, (_, run, _) = states[kind]
    path = tmp_path / "state.safetensors"
    made = resume._versions() | {"JAX": "0.9.9", "Python": "3.10", "mode": "1 False"}
    other = {k: v.replace("(code ", "(code 0") for k, v in run.items()}
    rewrite(path, whole, made=json.dumps(made), run=json.dumps(other))
    with pytest.warns(
        UserWarning, match=r"written with Python 3\.10, now.*JAX 0\.9\.9"
    ):
        again = go(kind, path)
    assert equal(again[:2], result[:2])
    # Asserts that were left out are no other version.
    made = resume._versions() | {"mode": "1 False"}
    rewrite(path, whole, made=json.dumps(made))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(kind, path)
    # Other code under the same version is another run.
    rewrite(path, whole, run=json.dumps(other))
    if other != run:
        assert "belongs to another run" in refused(path, lambda: go(kind, path))
