"""Arrays out of .npz files of anyone's, which may be damaged or made to harm.

Every size is compared before memory is taken, every checksum after; headers are
matched, not evaluated; nothing is unpickled.
"""

import math
import os
import re
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO

import numpy as np

from swapjax.core.text import printable, reason

_LEAST, _TIMES = 256 * 2**20, 100
_HEADER = 10_000  # bytes of the longest header, as NumPy has it
_CHUNK = 2**20
_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive, of an empty one
_DTYPE = re.compile(r"[<>|=]?[?biufcSUMmV]\d{0,9}(\[\d{0,9}\w{1,2}\])?")
_ITEM = (
    r"\s*(['\"])(?:descr\1\s*:\s*(['\"])(?P<descr>[^'\"\\]*)\2"
    r"|fortran_order\1\s*:\s*(?P<order>True|False)"
    r"|shape\1\s*:\s*\((?P<shape>[\d\sL,]*)\))\s*"
)
_SIZE = re.compile(r"\s*(\d{1,18})L?\s*")


def require_room(what: str, unpacked: int, packed: int) -> None:
    """Raise where something unpacks to far more than it is.

    Args:
        what: it is, the start of the sentence.
        unpacked: bytes that it would take in memory.
        packed: bytes that it takes in the file.

    Raises:
        ValueError: beyond 256 MiB and 100 times what it takes in the file.
    """
    limit = max(_LEAST, _TIMES * packed)
    if unpacked > limit:
        raise ValueError(
            f"{what} would unpack from {packed:,} to {unpacked:,} bytes; up to "
            f"{limit:,} are taken of compressed files, numpy.savez does not compress"
        )


def read_npz(
    path: str | Path, choose: Callable[[Collection[str]], Collection[str]] | None = None
) -> dict[str, np.ndarray]:
    """Read arrays of a .npz file.

    Args:
        path: the file.
        choose: picks which arrays to read out of the names of all; by default all.

    Returns:
        The arrays by name.

    Raises:
        ValueError: for a file that is missing, damaged, encrypted, or far larger than
            it seems, and for members that are twice there, are no arrays, or hold
            pickles or records.
    """
    if not os.path.isfile(path):  # which no name can make fail
        raise ValueError(f"{printable(path)}: no such file")
    try:
        with open(path, "rb") as file:
            # What is before an archive is skipped by zipfile, and may be anything.
            if file.read(4) not in _STARTS or not zipfile.is_zipfile(file):
                raise ValueError("it is no zip archive")
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                names = members if choose is None else choose(list(members))
                chosen = {name: members[name] for name in names if name in members}
                size = sum(info.file_size for info in chosen.values())
                require_room("it", size, os.path.getsize(path))
                return {
                    name: _read(archive, name, info) for name, info in chosen.items()
                }
    except Exception as e:  # zipfile and its decoders raise a dozen kinds for damage
        raise ValueError(
            f"{printable(path)}: not a readable .npz file: {reason(e)}"
        ) from None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """List the members by the names of their arrays."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"it holds {printable(name)} twice")
        if not info.is_dir():
            members[name] = info
    return members


def _read(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    try:
        if info.flag_bits & 1:
            raise ValueError("it is encrypted")
        with archive.open(info) as file:
            return _read_array(file, info.file_size)
    except Exception as e:
        raise ValueError(f"{printable(name)}: {reason(e)}") from None


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """Read the array of a .npy file that is said to be of so many bytes."""
    dtype, shape, fortran = _read_header(file)
    length = math.prod(shape) * dtype.itemsize
    if file.tell() + length != size:
        raise ValueError(
            f"its header tells of {dtype} of shape {shape}, which does not take the "
            f"{size - file.tell():,} bytes that follow"
        )
    raw = np.empty(length, np.uint8)
    for start in range(0, length, _CHUNK):
        part = raw[start : start + _CHUNK]
        part[:] = np.frombuffer(file.read(part.size), np.uint8)
    if file.read(1):  # at the end the checksum is compared
        raise ValueError("it goes on after its end")
    if dtype.kind == "b" and length and raw.max() > 1:
        raise ValueError("it holds bytes other than 0 and 1 as bool")
    array = raw.view(dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _read_header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it is no array")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _HEADER:
        raise ValueError(f"its header is of {length:,} bytes, too many")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin1")
    if re.search(r"['\"]\|O\d*['\"]", text):
        raise ValueError("it holds pickled objects")
    found = _parse_header(text)
    shape = found.get("shape")
    sizes = [_SIZE.fullmatch(part) for part in (shape or "").split(",")]
    if sizes[-1] is None:  # "()" and "(3,)" end in nothing
        sizes.pop()
    descr = found.get("descr", "")
    if len(found) != 3 or None in sizes or not _DTYPE.fullmatch(descr):
        raise ValueError("its header is not that of an array of numbers")
    dtype = np.dtype(descr)
    if not dtype.itemsize:
        raise ValueError(f"it is of {dtype}, entries of no bytes")
    return dtype, tuple(int(m[1]) for m in sizes if m), found["order"] == "True"


def _parse_header(text: str) -> dict[str, str]:
    """Take the literal of a dict apart; what is no such literal gives nothing."""
    text = text.strip()
    if text[:1] != "{" or text[-1:] != "}":
        return {}
    rest = text[1:-1]
    found: dict[str, str] = {}
    while match := re.match(_ITEM, rest):
        told = {k: v for k, v in match.groupdict().items() if v is not None}
        if told.keys() & found.keys():
            return {}
        found |= told
        rest = rest[match.end() :]
        if not rest.startswith(","):
            break
        rest = rest[1:]
    return {} if rest.strip() else found
