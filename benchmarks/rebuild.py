"""Files of other content than they should have, checksums and lengths in order."""

import io
import json
import random
import struct
import warnings
import zipfile
from typing import Any

import numpy as np
from damage import damage_bytes, damage_json


def rebuild_json(content: bytes, chance: random.Random) -> bytes:
    """Write JSON with another value in it."""
    return json.dumps(damage_json(json.loads(content), chance)).encode()


# safetensors.


def rebuild_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Write a safetensors file with another header, and the length that it has."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    match chance.randrange(5):
        case 0:
            data = damage_bytes(data, chance) if data else b"\0"
        case 1:  # a name twice
            text = json.dumps(header)
            key = chance.choice(sorted(header))
            text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(header[key])}}}"
            return _with_length(text) + data
        case 2:  # another shape or dtype of as many bytes
            name = chance.choice([k for k in header if k != "__metadata__"])
            told = header[name]
            told["shape"] = told["shape"][::-1] if chance.random() < 0.5 else [
                int(np.prod(told["shape"]))
            ]  # fmt: skip
            told["dtype"] = chance.choice((told["dtype"], "I32", "U32", "F32", "BF16"))
        case _:
            header = damage_json(header, chance)
    return _with_length(json.dumps(header)) + data


def _with_length(header: str) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode()


# Archives.

_NAMES = (
    "",
    "x",
    "../x.npy",
    "a\x1b[2J.npy",
    "x" * 300,
    "x_train",
    "d/",
    "y_train.npy",
)
_DESCRS = (
    "<f4", "<f8", "<f2", ">f4", "|u1", "<i8", "|b1", "<c8", "<U3", "|S4", "|O", "|V4",
    "<M8[s]", "<m8[s]", "<f16", "", "zzz", "<f0", "|U0",
)  # fmt: skip
_SHAPES = (
    "()", "(0,)", "(1,)", "(-1,)", "(4, 8, 8)", "(8, 8)", "(60,)", "(3.0,)", "(None,)",
    "(9999999999999,)", "(99999999999999999999999999,)", "(True,)", "3",
    "(60, 8, 8, 1)", "(((60,)))", "(60L,)", "(1, " + "1, " * 70 + ")",
)  # fmt: skip


def rebuild_npz(content: bytes, chance: random.Random) -> bytes:
    """Write an archive with other members, and checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    method = zipfile.ZIP_STORED
    at = chance.randrange(len(members))
    name, data = members[at]
    match chance.randrange(9):
        case 0:
            del members[at]
        case 1:
            members.append((name, chance.choice(members)[1]))
        case 2:
            members[at] = (chance.choice(_NAMES), data)
        case 3:
            members[at] = (name, damage_bytes(data, chance))
        case 4:
            members[at] = (name, chance.choice((b"", b"hello", members[at - 1][1])))
        case 5 | 6:
            members[at] = (name, _other_header(data, chance))
        case 7:
            members[at] = (name, _other_values(data, chance))
        case _:
            method = chance.choice((8, 12, 14))
    result = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(result, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are twice there
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, data)
    rebuilt = result.getvalue()
    return (
        damage_bytes(rebuilt, chance) if method and chance.random() < 0.6 else rebuilt
    )


def _other_header(data: bytes, chance: random.Random) -> bytes:
    array = np.load(io.BytesIO(data))
    descr, shape = array.dtype.str, str(array.shape)
    order, after = "False", ""
    match chance.randrange(5):
        case 0:
            descr = chance.choice(_DESCRS)
        case 1:
            shape = chance.choice(_SHAPES)
        case 2:
            order = chance.choice(("True", "None", "1", "false"))
        case 3:
            after = chance.choice(("(", "'''", "\n x", ", 'z': 1", "\\", "-" * 9000))
        case _:
            descr, shape = chance.choice(_DESCRS), chance.choice(_SHAPES)
    text = (
        f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}{after}"
    )
    header = text.encode()
    size = struct.pack("<H", len(header))
    return b"\x93NUMPY\x01\x00" + size + header + array.tobytes()


def _other_values(data: bytes, chance: random.Random) -> bytes:
    array = np.load(io.BytesIO(data))
    numbers = array.dtype.kind in "iuf"
    with np.errstate(all="ignore"):
        other: Any = chance.choice(
            (
                lambda: array.astype("f8"), lambda: array.astype("i8"),
                lambda: array.astype("c16"), lambda: array.astype("U8"),
                lambda: array.astype("m8[s]") if numbers else array,
                lambda: np.asfortranarray(array), lambda: array[:-1], lambda: array.T,
                lambda: array.reshape(-1), lambda: array[..., None],
                lambda: array.astype(">f4"), lambda: array.astype("?"),
                lambda: np.zeros_like(array), lambda: np.asarray(3),
                lambda: np.full(array.shape, chance.choice((np.nan, np.inf, 1e300))),
                lambda: array.astype("i8") + chance.choice((-1, 1, 2**31, 2**62)),
                lambda: _with_one(array.astype("f8"), chance),
            )
        )()  # fmt: skip
    file = io.BytesIO()
    np.lib.format.write_array(file, other, allow_pickle=False)
    return file.getvalue()


def _with_one(array: np.ndarray, chance: random.Random) -> np.ndarray:
    array = array.copy()
    array.flat[chance.randrange(array.size)] = chance.choice((np.nan, -np.inf, 1e300))
    return array
