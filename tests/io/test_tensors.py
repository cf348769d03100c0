"""What weights, masks and states are written as, and what is believed of a file."""

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from trees import equal

from swapjax.io import checkpoint

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, bool)}


def take_apart(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def of_one(path, dtype, shape, data):
    told = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    return put_together(path, {"a": told}, data)


def refused(path, message, read=checkpoint.read):
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()


# Writing.


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint16", "int32", "float16", "bfloat16", "float32", "complex64",
     "float8_e4m3fn", "float8_e5m2"],
)  # fmt: skip
def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path, dtype):
    path, params = tmp_path / "w.safetensors", {"a/b": jnp.ones((2, 3), dtype)}
    checkpoint.save_params(path, params)
    assert equal(
        checkpoint.load_params(path, {"a/b": jnp.zeros((2, 3), dtype)}), params
    )
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.get_slice("a/b").get_shape() == [2, 3]


def test_the_same_makes_the_same_bytes_wherever_arrays_live(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    written = []
    for number, a in enumerate(
        (jnp.asarray(array), array, np.asfortranarray(array), array.astype(">f4"),
         array.astype(np.float64))
    ):  # fmt: skip
        path = tmp_path / f"{number}.safetensors"
        metadata = {"x": "1", "y": "é\n"} if number % 2 else {"y": "é\n", "x": "1"}
        checkpoint.save_params(path, {"a": a}, metadata)
        written.append(path.read_bytes())
    assert len(set(written)) == 1
    np.testing.assert_array_equal(safetensors.numpy.load(written[0])["a"], array)


def test_keys_and_numbers_come_back_as_what_they_are_here(tmp_path):
    path = tmp_path / "w.safetensors"
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    params = {"rng": keys, "rate": 0.5, "count": 3, "on": True, "none": None}
    checkpoint.save_params(path, params)
    loaded = checkpoint.load_params(path, params)
    assert loaded["rng"].dtype == keys.dtype
    np.testing.assert_array_equal(
        jax.random.key_data(loaded["rng"]), jax.random.key_data(keys)
    )
    numbers = [(loaded[k].item(), loaded[k].shape) for k in ("rate", "count", "on")]
    assert numbers == [(0.5, ()), (3, ()), (True, ())]


@pytest.mark.parametrize(
    ("params", "metadata", "message"),
    [
        ({"a": jnp.ones(2, jnp.int4)}, {}, "a is of int4, which safetensors do not"),
        ({"a": "text"}, {}, "a is a str, not an array"),
        ({"a": np.array(["x"])}, {}, "a is of <U1, which"),
        ({"a": np.array([2**40])}, {}, "a does not fit into int32; enable x64"),
        ({"__metadata__": jnp.ones(1)}, {}, "a leaf cannot be called __metadata__"),
        (PARAMS, {"swapjax.sha256": "0"}, "swapjax.sha256 is a name of swapjax's own"),
        (PARAMS, {"epoch": 3}, "metadata: 'epoch' is 3, strings wanted"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, params, metadata, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.save_params(tmp_path / "w.safetensors", params, metadata)
    assert list(tmp_path.iterdir()) == []


# Believing.


def test_no_bit_of_our_files_changes_in_silence(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoint.save_params(path, PARAMS, {"made": "here"})
    arrays, metadata = checkpoint.read(path)
    content = path.read_bytes()
    for at in range(8 * len(content)):
        if at % 11:
            continue
        byte, bit = divmod(at, 8)
        changed = bytes([content[byte] ^ 1 << bit])
        path.write_bytes(content[:byte] + changed + content[byte + 1 :])
        try:
            found, told = checkpoint.read(path)
        except ValueError:
            continue
        assert told == metadata
        assert equal(found, arrays)


def test_a_file_tells_that_it_has_a_digest_in_two_ways(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoint.save_params(path, PARAMS)
    header, data = take_apart(path)
    marks = header["__metadata__"]
    digest = marks.pop("swapjax.sha256")
    refused(put_together(path, header, data), "it differs from what was written to it")
    marks["swapjax.shb256"] = digest
    refused(put_together(path, header, data), "it differs from what was written to it")
    header["__metadata__"] = {"swapjax.sha256": digest, "swapjax.format": "2"}
    refused(put_together(path, header, data), "was written by a later version")
    header["__metadata__"] = {"swapjax.new": "1"}
    refused(put_together(path, header, data), "swapjax.new, which is not known")
    # Files of others have none.
    del header["__metadata__"]
    arrays, metadata = checkpoint.read(put_together(path, header, data))
    assert (equal(arrays, jax.tree.map(np.asarray, PARAMS)), metadata) == (True, {})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}', "a is of F4, which"),
        (b'{"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}', "0 and 1 as bool"),
        (
            b'{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"a":3}',
            "not a readab",
        ),
        (
            b'{"\\u001b[2J":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}',
            r"\\x1b\[2J",
        ),
        (b"[" * 10_000, "not a readable"),
        (b'{"a":{"dtype":"I8","shape":[-2],"data_offsets":[0,2]}}', "not a readable"),
        (b'{"a":{"dtype":"I8","shape":[99],"data_offsets":[0,2]}}', "not a readable"),
        (
            b'{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}   x',
            "not a readable",
        ),
    ],
)
def test_headers_that_are_wrong_are_told(tmp_path, header, message):
    refused(put_together(tmp_path / "w.safetensors", header, b"\1\2"), message)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2),
     ("BF16", ml_dtypes.bfloat16)],
)  # fmt: skip
def test_small_floats_are_read_as_what_they_stand_for(tmp_path, name, kind):
    values = np.array([0.5, -3, 16]).astype(kind)
    path = of_one(tmp_path / "w.safetensors", name, [3], values.tobytes())
    loaded = checkpoint.load_params(path, {"a": jnp.zeros(3)})
    np.testing.assert_array_equal(loaded["a"], [0.5, -3, 16])
    assert checkpoint.read(path)[0]["a"].dtype == kind


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_files_of_pytorch_are_called_by_their_name(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"PK\3\4")
    refused(path, "is PyTorch's own kind of file; save the state dict as")


# Numbers of another kind.


@pytest.mark.parametrize(
    ("array", "dtype", "wanted"),
    [
        (np.arange(3, dtype=">f8"), "float32", [0, 1, 2]),
        (np.arange(3), "bfloat16", [0, 1, 2]),
        (np.full(3, 2**63, np.uint64), "float32", [2.0**63] * 3),
        (np.array([1.0, 2, 3]), "int32", [1, 2, 3]),
        (np.array([1, 0, 1], np.uint8), "bool", [True, False, True]),
        (np.arange(3.0), "complex64", [0, 1, 2]),
        (np.full(3, 0.1), "float16", [np.float16(0.1)] * 3),
        (np.array([2.0**31] * 3, np.float32), "uint32", [2**31] * 3),
        (np.arange(3) * 1j, "float32", None),
        (np.array(list("abc")), "float32", None),
        (np.array([b"a"] * 3), "float32", None),
        (np.arange(3).astype("M8[s]"), "float32", None),
        (np.arange(3).astype("m8[s]"), "float32", None),
        (np.zeros(3, "V4"), "float32", None),
        (np.ones(3, bool), "float32", None),
        (np.full(3, 0.5), "int32", None),
        (np.full(3, 2**31), "int32", None),
        (np.full(3, 2.0**31), "int32", None),
        (np.full(3, np.nan), "int32", None),
        (np.full(3, -1), "uint32", None),
        (np.full(3, 2**32 - 1), "int32", None),
        (np.arange(3), "bool", None),
    ],
)
def test_numbers_are_rounded_to_floats_and_else_kept_or_refused(
    tmp_path, array, dtype, wanted
):
    np.savez(tmp_path / "w.npz", a=array)
    like = {"a": jnp.zeros(3, dtype)}
    if wanted is None:
        message = rf"w\.npz: a is of .*, wanted {dtype}"
        with pytest.raises(ValueError, match=message):
            checkpoint.load_params(tmp_path / "w.npz", like)
    else:
        loaded = checkpoint.load_params(tmp_path / "w.npz", like)["a"]
        np.testing.assert_array_equal(loaded, jnp.asarray(wanted, dtype))


@pytest.mark.parametrize(("value", "dtype"), [(1e39, "float32"), (1e5, "float16")])
def test_what_a_dtype_cannot_hold_is_told_as_infinite(tmp_path, value, dtype):
    np.savez(tmp_path / "w.npz", **{"a\x1b": np.full(3, value)})
    with pytest.raises(
        ValueError, match=r"NaN or infinite entries in a\\x1b \(3 of 3\)"
    ):
        checkpoint.load_params(tmp_path / "w.npz", {"a\x1b": jnp.zeros(3, dtype)})


# Masks.

LIKE = {"a": jnp.ones((3, 5)), "b": jnp.ones(2)}
MASKS = {"a": jnp.arange(15).reshape(3, 5) > 7, "b": jnp.asarray(True)}


@pytest.mark.parametrize(
    "shapes",
    ['{"a":[-3,-5],"b":[]}', '{"a":[3.0,5.0],"b":[]}', '{"a":"35","b":[]}', "[]", "3",
     '{"a":null,"b":[]}', '{"a":[[3],[5]],"b":[]}', '{"a":[16],"b":[]}', '{"a":[3,5]}',
     "[" * 5000, '{"a":[5,3],"b":[]}', '{"a":[15],"b":[]}', "", "{", '{"a":[1e400]}'],
)  # fmt: skip
@pytest.mark.parametrize("sealed", [False, True])
def test_masks_of_other_shapes_are_refused(tmp_path, shapes, sealed):
    path = tmp_path / "m.safetensors"
    checkpoint.save_masks(path, MASKS)
    header, data = take_apart(path)
    if not sealed:  # as swapjax 0.2 wrote them
        header["__metadata__"] = {}
    header["__metadata__"]["swapjax.masks"] = shapes
    put_together(path, header, data)
    refused(path, ": ", lambda path: checkpoint.load_masks(path, LIKE))


def test_masks_of_version_0_2_are_read(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save_masks(path, MASKS)
    header, data = take_apart(path)
    header["__metadata__"] = {"swapjax.masks": '{"a": [3, 5], "b": []}'}
    put_together(path, header, data)
    assert equal(checkpoint.load_masks(path, LIKE), MASKS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.uint8)},
            "a packed mask of",
        ),
        (
            {"a": np.zeros(3, np.uint8), "b": np.zeros(1, np.uint8)},
            "takes 2 bytes, got",
        ),
        ({"a": np.zeros(2, np.uint8)}, "missing b"),
    ],
)
def test_masks_of_other_bytes_are_refused(tmp_path, arrays, message):
    path, marks = tmp_path / "m.safetensors", {"swapjax.masks": '{"a":[3,5],"b":[]}'}
    safetensors.numpy.save_file(arrays, path, marks)
    refused(path, message, lambda path: checkpoint.load_masks(path, LIKE))
