"""A state that grows block by block within one file, which is never rewritten.

It is a safetensors file of full size from the start, with room for every array and for
a record of each block. What a block makes is written to its place first, and its record
after that: an interruption in between leaves the blocks before it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

from swapjax.core import files
from swapjax.core.text import printable, reason
from swapjax.io import resume, tensors

_FORMAT = "blocks-1"
_RECORDS = "records"
_PIECE = 2**24  # bytes that are read at a time


class BlockFile:
    """The file of a run, made if it is not there.

    Args:
        path: of the file.
        arrays: name, shape and dtype of each array.
        run: from `resume.fingerprint`.
        kind: what the run is one of.
        blocks: how many there are.
        room: bytes of the longest record.

    Attributes:
        records: those of the blocks that are done.

    Raises:
        ValueError: for the file of another run, and one that is damaged.
        OSError: naming the file, where it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        arrays: Mapping[str, tuple[tuple[int, ...], Any]],
        run: dict[str, str],
        kind: str,
        *,
        blocks: int,
        room: int,
    ) -> None:
        self._path, self._room = Path(path), room + _Record.HEAD
        shapes = {name: (shape, np.dtype(of)) for name, (shape, of) in arrays.items()}
        shapes[_RECORDS] = ((blocks, self._room), np.dtype(np.uint8))
        metadata = resume.told(run, kind, _FORMAT)
        header, self._places = tensors.header(self._path, shapes, metadata)
        self._shapes, self._start = shapes, len(header)
        self._size = self._start + max(end for _, end in self._places.values())
        if not self._path.exists():
            files.write_atomically(self._path, lambda path: self._make(path, header))
        else:
            self._check(run, kind)
        with self._open() as file:
            self.records = self._read_records(file, blocks)

    def write(self, parts: Iterable[tuple[str, int | None, Any]], note: Any) -> None:
        """Write what a block made, and then that it is done.

        Args:
            parts: name of an array, number of the slice along its first axis or None
                for all of it, and values.
            note: whatever JSON takes.

        Raises:
            OSError: naming the file, when the disk is full for instance.
        """
        digest, ranges = hashlib.sha256(), []
        with self._open() as file:
            for name, row, values in parts:
                start, end = self._range(name, row)
                shape, dtype = self._shapes[name]
                array = np.ascontiguousarray(values, dtype)
                if array.nbytes != end - start:
                    raise ValueError(f"{name}: got shape {array.shape}, it has {shape}")
                raw = array.reshape(-1).view(np.uint8).data
                digest.update(raw)
                ranges.append([start, end])
                _put(file, start, raw)
            os.fsync(file.fileno())
            told = {"note": note, "ranges": ranges, "digest": digest.hexdigest()}
            record = _Record.encode(told, self._room)
            _put(file, self._place(len(self.records)), record)
            os.fsync(file.fileno())
        self.records = (*self.records, note)

    def read(self, name: str, row: int | None) -> np.ndarray:
        """Read an array, or a slice of one."""
        start, end = self._range(name, row)
        shape, dtype = self._shapes[name]
        with self._open() as file:
            file.seek(start)
            raw = np.fromfile(file, np.uint8, end - start)
        return raw.view(dtype).reshape(shape if row is None else shape[1:])

    def views(self) -> dict[str, np.ndarray]:
        """Map the arrays into memory; what is written to them does not reach the file.

        They take memory only as far as they are looked at.
        """
        # One map: each would hold a handle of its own.
        whole = np.memmap(self._path, np.uint8, mode="c")
        return {
            name: whole[slice(*self._range(name, None))].view(dtype).reshape(shape)
            for name, (shape, dtype) in self._shapes.items()
            if name != _RECORDS
        }

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """Open the file; what goes wrong names it."""
        try:
            with open(self._path, "r+b", buffering=0) as file:
                yield file
        except OSError as e:
            raise files.naming(e, self._path) from None

    def _make(self, path: Path, header: bytes) -> None:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(self._size)

    def _check(self, run: dict[str, str], kind: str) -> None:
        """Raise unless the file is one of this run."""
        if not self._path.is_file():
            raise ValueError(f"checkpoint: {printable(self._path)} is no file")
        try:
            with safetensors.safe_open(self._path, framework="numpy") as file:
                metadata = file.metadata() or {}
        except Exception as e:  # the library raises many kinds for damage
            raise ValueError(
                f"checkpoint: {printable(self._path)}: not a readable safetensors "
                f"file: {reason(e)}"
            ) from None
        resume.require_run(self._path, metadata, run, kind, _FORMAT)
        size = self._path.stat().st_size
        if size != self._size:
            resume.refuse(self._path, f"has {size:,} bytes, wanted {self._size:,}")

    def _read_records(self, file: BinaryIO, blocks: int) -> tuple[Any, ...]:
        """Read the records, and check what they tell of."""
        found: list[Any] = []
        for number in range(blocks):
            file.seek(self._place(number))
            told = _Record.decode(file.read(self._room))
            if told is None:  # the next one, which may be half written
                break
            if _digest(file, told["ranges"]) != told["digest"]:
                resume.refuse(
                    self._path, f"differs from what was written in block {number + 1}"
                )
            found.append(told["note"])
        return tuple(found)

    def _place(self, record: int) -> int:
        return self._range(_RECORDS, record)[0]

    def _range(self, name: str, row: int | None) -> tuple[int, int]:
        """Tell where in the file an array lies, or a slice of one."""
        start, end = (self._start + place for place in self._places[name])
        if row is None:
            return start, end
        size = (end - start) // self._shapes[name][0][0]
        return start + row * size, start + (row + 1) * size


def _digest(file: BinaryIO, ranges: Iterable[tuple[int, int]]) -> str:
    """Hash what lies in some ranges of a file."""
    result = hashlib.sha256()
    for start, end in ranges:
        file.seek(start)
        for piece in range(start, end, _PIECE):
            result.update(file.read(min(_PIECE, end - piece)))
    return result.hexdigest()


def _put(file: BinaryIO, start: int, raw: Any) -> None:
    file.seek(start)
    left = memoryview(raw)
    while left:
        left = left[file.write(left) :]


class _Record:
    """The bytes of a record: length and digest of a text, and the text."""

    HEAD = 8 + 32

    @classmethod
    def encode(cls, told: Any, room: int) -> bytes:
        text = json.dumps(told).encode()
        if cls.HEAD + len(text) > room:
            raise ValueError(f"a record of {len(text):,} bytes has no room in its file")
        head = len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()
        return (head + text).ljust(room, b"\0")

    @classmethod
    def decode(cls, raw: bytes) -> Any:
        """Undo `encode`; None for what it has not made."""
        length, digest = int.from_bytes(raw[:8], "little"), raw[8 : cls.HEAD]
        text = raw[cls.HEAD : cls.HEAD + length]
        if not length or hashlib.sha256(text).digest() != digest:
            return None
        return json.loads(text)
