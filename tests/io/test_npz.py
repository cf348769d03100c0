"""Archives of anyone's: what is in them, and what is not believed of them."""

import io
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from swapjax.io import npz
from swapjax.io.npz import read_npz, require_room


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def headed(text, data=b"\0" * 48, version=b"\1\0"):
    """The bytes of a .npy file with a header of any text."""
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text.encode()))
    return b"\x93NUMPY" + version + size + text.encode() + data


def archive(path, *members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        read_npz(path)
    assert str(error.value).startswith(f"{path}: not a readable .npz file: ")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">i2")[::2],
        np.float64(3),
        np.zeros((0, 4), np.uint8),
        np.array(["a", "bc"]),
        np.array([b"x"]),
        np.array([1, 2], "M8[s]"),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
        np.float16([1, 2]),
        np.zeros(2, "V3"),
        np.ones((2,) * 20),
    ],
)
def test_arrays_come_as_numpy_reads_them(tmp_path, array):
    np.savez(tmp_path / "a.npz", **{"b/c": array, "plain": [1]})
    found, known = read_npz(tmp_path / "a.npz"), np.load(tmp_path / "a.npz")
    assert list(found) == ["b/c", "plain"]
    np.testing.assert_array_equal(found["b/c"], known["b/c"])
    assert found["b/c"].dtype == known["b/c"].dtype


@pytest.mark.parametrize("version", [b"\1\0", b"\2\0", b"\3\0"])
def test_headers_may_be_written_in_other_ways(tmp_path, version):
    text = '{"shape":(2,3L,),"descr":"<f8", "fortran_order": True }   \n'
    path = archive(tmp_path / "a.npz", ("a", headed(text, version=version)))
    assert read_npz(path)["a"].shape == (2, 3)


HEADER = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }"


@pytest.mark.parametrize(
    "text",
    [
        HEADER % ("<f8", "False", "(-6,)"),
        HEADER % ("<f8", "False", "(6.0,)"),
        HEADER % ("<f8", "False", "(0x6,)"),
        HEADER % ("<f8", "False", "(3*2,)"),
        HEADER % ("<f8", "False", "6"),
        HEADER % ("<f8", "False", "(,)"),
        HEADER % ("<f8", "None", "(6,)"),
        HEADER % ("f4,f4", "False", "(6,)"),
        HEADER % ("<f8\\x00", "False", "(6,)"),
        HEADER % ("float", "False", "(6,)"),
        HEADER % ("<f8", "False", "(6,)") + "+{}",
        "{" + HEADER % ("<f8", "False", "(6,)") + "}",
        "{'descr': '<f8', 'shape': (6,)}",
        "{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (6,)}",
        "__import__('os').getcwd()",
        "[" * 4000,
        "((" * 900 + "{}",
        "",
    ],
)
def test_headers_are_matched_and_not_evaluated(tmp_path, text):
    path = archive(tmp_path / "a.npz", ("a.npy", headed(text)))
    refused(path, "a: its header is not that of an array of numbers")


@pytest.mark.parametrize(
    ("shape", "length"),
    [("(7,)", 48), ("(5,)", 48), ("(10000000000000,)", 48), ("(2**40,)", 48),
     ("(3, 0)", 48), ("(999999999, 999999999)", 48), ("()", 7)],
)  # fmt: skip
def test_a_shape_must_take_the_bytes_that_are_there(tmp_path, shape, length):
    text = HEADER % ("<f8", "False", shape)
    path = archive(tmp_path / "a.npz", ("a.npy", headed(text, bytes(length))))
    refused(path, r"does not take the \d+ bytes that follow|is not that of an array")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("notes.txt", b"hello")], "notes.txt: it is no array"),
        ([("a.npy", b"")], "a: it is no array"),
        ([("a.npy", npy([1])), ("a", npy([2]))], "it holds a twice"),
        ([("a.npy", npy(np.array([None])))], "a: it holds pickled objects"),
        ([("a.npy", headed(HEADER % ("|O8", "False", "(6,)")))], "pickled objects"),
        ([("a.npy", headed(HEADER % ("|b1", "False", "(1,)"), b"\2"))], "0 and 1 as"),
        ([("a.npy", headed(HEADER % ("|S0", "False", "(6,)"), b""))], "of no bytes"),
        ([("a.npy", headed(" " * 20_000))], "its header is of 20,000 bytes"),
        ([("a\x1b[2J.npy", b"x")], re.escape(r"a\x1b[2J: it is no array")),
        ([("a.npy", headed("", version=b"\4\0"))], "it is no array"),
    ],
)
def test_members_that_are_no_arrays_of_numbers_are_named(tmp_path, members, message):
    refused(archive(tmp_path / "a.npz", *members), message)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 8])
def test_compressed_members_are_checked_to_their_end(tmp_path, method):
    array = np.random.default_rng(0).integers(0, 9, 300)
    path = archive(tmp_path / "a.npz", ("a.npy", npy(array)), method=method)
    np.testing.assert_array_equal(read_npz(path)["a"], array)
    content = path.read_bytes()
    for at in range(40, len(content) - 120, 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        try:  # a few bits of these formats mean nothing
            found = read_npz(path)["a"]
        except ValueError:
            continue
        np.testing.assert_array_equal(found, array)


def test_an_encrypted_member_is_said_to_be(tmp_path):
    path = archive(tmp_path / "a.npz", ("a.npy", npy([1])))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    refused(path, "a: it is encrypted$")


@pytest.mark.parametrize("before", [npy([1.0]), b"#!/bin/sh\n", b"\0" * 22])
def test_nothing_may_stand_before_an_archive(tmp_path, before):
    path = archive(tmp_path / "a.npz", ("a.npy", npy([1])))
    path.write_bytes(before + path.read_bytes())
    refused(path, "it is no zip archive")


def test_little_that_unpacks_to_much_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_LEAST", 2 * 2**20)
    data = headed(HEADER % ("|u1", "False", f"({2**20},)"), bytes(2**20))
    members = [(f"{i}.npy", data) for i in range(9)]
    path = archive(tmp_path / "a.npz", *members, method=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    refused(
        path, r"it would unpack from 1\d,\d{3} to 9,437,\d{3} bytes; up to 2,097,152"
    )
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    # One of them is small enough.
    found = read_npz(path, lambda names: names[1:2])
    assert {name: a.size for name, a in found.items()} == {"1": 2**20}


def test_room_is_relative_to_the_file_above_256_mib():
    require_room("it", 2**28, 1)
    require_room("it", 100 * 2**30, 2**30)
    with pytest.raises(ValueError, match="it would unpack from 1 to 268,435,457 bytes"):
        require_room("it", 2**28 + 1, 1)
    with pytest.raises(ValueError, match="would unpack"):
        require_room("it", 100 * 2**30 + 1, 2**30)


def test_directories_and_empty_archives_hold_nothing(tmp_path):
    np.savez(tmp_path / "e.npz")
    assert read_npz(tmp_path / "e.npz") == {}
    path = archive(tmp_path / "d.npz", ("folder/", b""), ("folder/a.npy", npy([1])))
    assert list(read_npz(path)) == ["folder/a"]
    with pytest.raises(ValueError, match="no such file"):
        read_npz(tmp_path)
