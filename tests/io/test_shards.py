"""Files of a checkpoint and their index."""

import json

import hub_files as hub
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapjax.io import shards

INDEX = "model.safetensors.index.json"


def _refused(path, told):
    with pytest.raises(ValueError, match=told):
        shards.find(path)


@pytest.fixture
def folder(tmp_path):
    return hub.save(tmp_path / "model", hub.tensors(), 3)


def _rewrite(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_finds_all_tensors(folder):
    found = shards.find(folder)
    assert set(found.tensors) == set(hub.tensors())
    for name, array in hub.tensors().items():
        np.testing.assert_array_equal(found.tensors[name].read(), array)


def test_an_index_that_names_missing_shards_is_refused(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()
    _refused(folder, "names model-00002-of-00003.safetensors, which is not beside it")


def test_an_index_that_does_not_agree_is_refused(folder):
    _rewrite(folder, lambda where: where.pop("head.weight"))
    _refused(folder, "does not agree with .* on head.weight")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3, "x.bin"])
def test_an_index_names_files_beside_it_alone(folder, name):
    _rewrite(folder, lambda where: where.update({"head.weight": name}))
    _refused(folder, "not a readable index: head.weight is in .* no file beside it")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', "\xff"])
def test_a_damaged_index_is_refused(folder, text):
    (folder / INDEX).write_bytes(text.encode("latin1"))
    _refused(folder, "not a readable index")


def test_a_damaged_shard_is_refused(folder):
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    _refused(folder, "00002-of-00003.safetensors: not a readable safetensors file")


def test_a_folder_must_say_which_file(tmp_path):
    _refused(tmp_path, "one .safetensors file or one index of several, got nothing")
    _refused(tmp_path / "none", "no such file")
    for name in ("a", "b"):
        hub.save(tmp_path, {"w": np.ones(2)})
        (tmp_path / "model.safetensors").rename(tmp_path / f"{name}.safetensors")
    _refused(tmp_path, "got a.safetensors, b.safetensors; name the file")
    assert list(shards.find(tmp_path / "a.safetensors").tensors) == ["w"]
    hub.save(tmp_path, {"v": np.ones(2)})
    assert list(shards.find(tmp_path).tensors) == ["v"]


def test_empty_and_unaligned_tensors_are_read(tmp_path):
    wide = np.arange(3, dtype=np.float64)
    raw = np.zeros(3, np.uint8).tobytes() + wide.tobytes()
    header = {
        "none": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]},
        "flags": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]},
        "wide": {"dtype": "F64", "shape": [3], "data_offsets": [3, 27]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw)
    found = shards.find(path).tensors
    assert found["none"].read().shape == (0, 2)
    assert not found["flags"].read().any()
    np.testing.assert_array_equal(found["wide"].read(), wide)
    path.write_bytes(path.read_bytes()[: -len(raw)] + b"\2" + raw[1:])
    with pytest.raises(ValueError, match=r"odd\.safetensors: holds bytes other than 0"):
        shards.find(path).tensors["flags"].read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.integers(0, 400), st.integers(1, 255), st.booleans())
def test_what_is_damaged_is_refused_or_read(folder, place, bits, in_index):
    path = folder / (INDEX if in_index else "model-00001-of-00003.safetensors")
    whole = path.read_bytes()
    place %= len(whole)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
    try:
        for tensor in shards.find(folder).tensors.values():
            tensor.read()
    except ValueError as e:
        assert str(folder) in str(e)  # noqa: PT017
    finally:
        path.write_bytes(whole)
