"""Params and masks in files: there and back, and every fault named."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from trees import equal

from swapjax.io import checkpoint
from swapjax.sparsity.planning import plan


def network(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "fc1": {"kernel": jax.random.normal(keys[0], (4, 3), dtype)},
        "fc2": {
            "kernel": jax.random.normal(keys[1], (3, 2), dtype),
            "bias": jax.random.normal(keys[2], (2,), dtype),
        },
    }


def as_torch(params):
    return {
        "fc1.weight": np.asarray(params["fc1"]["kernel"]).T,
        "fc2.weight": np.asarray(params["fc2"]["kernel"]).T,
        "fc2.bias": np.asarray(params["fc2"]["bias"]),
    }


def by_path(params):
    return {
        "fc1/kernel": np.asarray(params["fc1"]["kernel"]),
        "fc2/kernel": np.asarray(params["fc2"]["kernel"]),
        "fc2/bias": np.asarray(params["fc2"]["bias"]),
    }


def half_masks(params):
    target = plan(params, 0.5)
    return target.layout.masks(tuple(leaf > 0 for leaf in target.layout.split(params)))


# Weights and masks there and back.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_params_come_back_as_they_were(tmp_path, dtype):
    params, path = network(dtype), tmp_path / "w.safetensors"
    checkpoint.save_params(path, params, {"made": "here"})
    empty = jax.tree.map(jnp.zeros_like, params)
    assert equal(checkpoint.load_params(path, empty), params)
    arrays, metadata = checkpoint.read(path)
    assert set(arrays) == {"fc1/kernel", "fc2/kernel", "fc2/bias"}
    assert metadata == {"made": "here"}


def test_params_take_the_dtypes_of_the_network(tmp_path):
    params, path = network(), tmp_path / "w.safetensors"
    checkpoint.save_params(path, params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert equal(checkpoint.load_params(path, half), half)


@pytest.mark.parametrize(
    "params",
    [
        jnp.arange(3.0),
        {"layers": [{"w": jnp.ones((2, 2))}, (jnp.zeros(1), jnp.asarray(3.0))]},
        {"empty": jnp.zeros((0, 4)), "one": jnp.ones(1)},
    ],
)
def test_any_tree_comes_back(tmp_path, params):
    checkpoint.save_params(tmp_path / "w.safetensors", params)
    empty = jax.tree.map(jnp.zeros_like, params)
    loaded = checkpoint.load_params(tmp_path / "w.safetensors", empty)
    assert equal(loaded, params)


def test_two_leaves_of_one_path_are_not_written_over_each_other(tmp_path):
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    with pytest.raises(ValueError, match="two leaves of the tree have the path a/b"):
        checkpoint.save_params(tmp_path / "w.safetensors", params)
    assert os.listdir(tmp_path) == []


def test_masks_come_back_and_take_a_bit_an_entry(tmp_path):
    params = {"big": {"kernel": jnp.ones((100, 801))}, "bias": jnp.ones(3)}
    target = plan(params, 0.5)
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (100, 801))
    masks, path = target.layout.masks((mask,)), tmp_path / "m.safetensors"
    checkpoint.save_masks(path, masks)
    assert 80_100 / 8 < path.stat().st_size < 80_100 / 8 + 400
    assert equal(checkpoint.load_masks(path, params), masks)
    arrays, _ = checkpoint.read(path)
    np.testing.assert_array_equal(arrays["big/kernel"], mask)


def test_masks_of_other_params_are_refused(tmp_path):
    params, path = network(), tmp_path / "m.safetensors"
    checkpoint.save_masks(path, half_masks(params))
    with pytest.raises(ValueError, match=r"not of this network fc2/bias, fc2/kernel"):
        checkpoint.load_masks(path, {"fc1": params["fc1"]})
    other = {**params, "fc1": {"kernel": jnp.ones((3, 4))}}
    with pytest.raises(ValueError, match=r"fc1/kernel must be bool of shape \(3, 4\)"):
        checkpoint.load_masks(path, other)


def test_params_and_masks_are_not_taken_for_each_other(tmp_path):
    params = network()
    checkpoint.save_params(tmp_path / "w.safetensors", params)
    with pytest.raises(ValueError, match="holds no masks"):
        checkpoint.load_masks(tmp_path / "w.safetensors", params)
    checkpoint.save_masks(tmp_path / "m.safetensors", jax.tree.map(jnp.isnan, params))
    with pytest.raises(ValueError, match="holds masks, not params"):
        checkpoint.load_params(tmp_path / "m.safetensors", params)


# What others have written.


@pytest.mark.parametrize("names", [by_path, as_torch])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_load_with_either_names(tmp_path, names, save):
    params = network()
    save(tmp_path / "w.npz", **names(params))
    assert equal(checkpoint.load_params(tmp_path / "w.npz", params), params)


def test_pytorch_kernels_are_transposed(tmp_path):
    params = {
        "conv": {"kernel": jnp.zeros((3, 2, 5, 7)), "bias": jnp.zeros(7)},
        "block": {"fc": {"kernel": jnp.zeros((4, 6))}},
    }
    weight = np.random.default_rng(0).normal(size=(7, 5, 3, 2)).astype(np.float32)
    dense = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    arrays = {
        "conv.weight": weight,
        "conv.bias": np.ones(7, np.float32),
        "block.fc.weight": dense,
    }
    safetensors.numpy.save_file(arrays, tmp_path / "t.safetensors")
    loaded = checkpoint.load_params(tmp_path / "t.safetensors", params)
    for out, into, row, column in [(0, 0, 0, 0), (6, 4, 2, 1), (3, 1, 2, 0)]:
        got = loaded["conv"]["kernel"][row, column, into, out]
        assert got == weight[out, into, row, column]
    np.testing.assert_array_equal(loaded["block"]["fc"]["kernel"], dense.T)
    np.testing.assert_array_equal(loaded["conv"]["bias"], np.ones(7))


def test_pytorch_names_in_the_network_itself_stay_as_they_are(tmp_path):
    params = {"fc1.weight": jnp.arange(6.0).reshape(2, 3)}
    np.savez(tmp_path / "w.npz", **{"fc1.weight": params["fc1.weight"]})
    assert equal(checkpoint.load_params(tmp_path / "w.npz", params), params)


# Faults.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc1/kernel": None, "fc2/bias": None}, "missing fc1/kernel, fc2/bias$"),
        ({"fc9/bias": np.ones(2)}, "not of this network fc9/bias$"),
        ({"fc2/bias": None, "x": np.ones(1)}, "missing fc2/bias; not of this .* x$"),
        (
            {"fc2/bias": np.ones(3), "fc1/kernel": np.ones((3, 4))},
            r"fc1/kernel is \(3, 4\), wanted \(4, 3\); fc2/bias is \(3,\), wanted",
        ),
        (
            {"fc2/bias": np.array([np.nan, 1]), "fc1/kernel": np.full((4, 3), np.inf)},
            r"NaN or infinite .* fc1/kernel \(12 of 12\), fc2/bias \(1 of 2\)",
        ),
    ],
)
def test_every_leaf_that_does_not_fit_is_named(tmp_path, change, message):
    params, path = network(), tmp_path / "w.npz"
    arrays = {k: v for k, v in (by_path(params) | change).items() if v is not None}
    # In the order of the network, as the message is.
    np.savez(path, **dict(sorted(arrays.items())))
    with pytest.raises(ValueError, match=rf"w\.npz: .*{message}"):
        checkpoint.load_params(path, params)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_without_being_opened(tmp_path):
    trap = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "p.npz", a=np.array([trap], dtype=object))
    with pytest.raises(ValueError, match=r"p\.npz: not a .* it holds pickled objects"):
        checkpoint.load_params(tmp_path / "p.npz", network())
    (tmp_path / "q.npz").write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="it is no zip archive"):
        checkpoint.load_params(tmp_path / "q.npz", network())
    assert not (tmp_path / "sprung").exists()


def readable(path, data, expected):
    """Whether a file of these bytes is read; if so, as expected."""
    path.write_bytes(data)
    try:
        arrays, _ = checkpoint.read(path)
    except ValueError as error:
        message = str(error)
    else:
        np.testing.assert_array_equal(arrays["a"], expected)
        return True
    assert message.startswith(f"{path}: not a readable .npz file")
    return False


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_an_error_wherever_the_damage_is(tmp_path, save):
    path, array = tmp_path / "w.npz", np.random.default_rng(0).integers(0, 9, 40)
    save(path, a=array)
    data = path.read_bytes()
    for end in range(len(data)):
        assert not readable(path, data[:end], array)
    flip = bytes(255 - b for b in data)
    # What holds dates and rights may be spoilt without harm, a sixth of so few bytes.
    spoilt = [data[:i] + flip[i : i + 2] + data[i + 2 :] for i in range(len(data))]
    assert sum(readable(path, s, array) for s in spoilt) < len(data) / 3


@pytest.mark.parametrize("data", [b"", b"just a text"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path, data):
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.npz: not a .* it is no zip archive"):
        checkpoint.read(tmp_path / "w.npz")


def test_a_single_array_is_not_an_npz_file(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(3))
    (tmp_path / "w.npy").rename(tmp_path / "w.npz")
    with pytest.raises(ValueError, match="it is no zip archive"):
        checkpoint.read(tmp_path / "w.npz")
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"w\.npy: not a readable safetensors file"):
        checkpoint.read(tmp_path / "w.npy")


@pytest.mark.parametrize("length", [0, 4, 30, -1])
def test_a_truncated_safetensors_file_is_an_error(tmp_path, length):
    path = tmp_path / "w.safetensors"
    checkpoint.save_params(path, network())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        checkpoint.load_params(path, network())


@pytest.mark.parametrize("shapes", ["{}", "none", '{"a": [30]}', '{"a": [2, 4, 2]}'])
def test_masks_with_wrong_shapes_in_their_header_are_an_error(tmp_path, shapes):
    path, header = tmp_path / "m.safetensors", {"swapjax.masks": shapes}
    safetensors.numpy.save_file({"a": np.zeros(1, np.uint8)}, path, header)
    with pytest.raises(ValueError, match=r"m\.safetensors: not a readable"):
        checkpoint.load_masks(path, {"a": jnp.ones(8)})


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_a_file_that_is_missing_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: no such file"):
        checkpoint.load_params(tmp_path / name, network())
    with pytest.raises(ValueError, match=f"{name}: no such file"):
        checkpoint.load_masks(tmp_path / name, network())
