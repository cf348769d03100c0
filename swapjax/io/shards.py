"""Safetensors files of others as they lie on the disk: headers, one file or several.

Of tensors only names, kinds and places are read; each is mapped into memory when it is
asked for. Headers are kept to the byte, so that a file can be written as it was.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors

from swapjax.core.text import printable, reason
from swapjax.io import tensors

_INDEX = ".safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
        file: that it is in.
        dtype: of its entries.
        shape: of it.
        start: where its bytes begin.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Map the tensor into memory; read-only.

        Raises:
            ValueError: for bytes that are no bools.
        """
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if not size:
            return np.empty(self.shape, self.dtype)
        raw: np.ndarray = np.memmap(self.file, np.uint8, "r", self.start, (size,))
        if self.dtype == np.bool_ and raw.max() > 1:
            raise ValueError(
                f"{printable(self.file)}: holds bytes other than 0 and 1 as bool"
            )
        if self.start % self.dtype.itemsize:
            raw = np.array(raw)  # which no view of wider entries may lie across
        return raw.view(self.dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file.

    Attributes:
        path: of it.
        header: all that is before the tensors, to the byte.
        tensors: by name, in the order in which they lie.
    """

    path: Path
    header: bytes
    tensors: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The files of a checkpoint.

    Attributes:
        path: of the file, or of the index of several.
        files: that hold the tensors.
        index: the text of the index, to the byte; None for one file.
    """

    path: Path
    files: tuple[Shard, ...]
    index: bytes | None

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: t for file in self.files for name, t in file.tensors.items()}


def find(path: str | Path) -> Shards:
    """Find the files of a checkpoint, and read what they tell of their tensors.

    Args:
        path: a ``.safetensors`` file, an index (``.safetensors.index.json``), or a
            folder with one of them.

    Raises:
        ValueError: for a path at which there is no such file, or two; a file or index
            that is damaged; an index that names shards that are missing or lie
            elsewhere, tensors that a shard has not, or not all that it has.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ValueError(f"{printable(path)}: no such file")
    if not path.name.endswith(_INDEX):
        return Shards(path, (_shard(path),), None)
    text = path.read_bytes()
    files: dict[str, set[str]] = {}
    for name, file in _weight_map(path, text).items():
        files.setdefault(file, set()).add(name)
    missing = [file for file in sorted(files) if not (path.parent / file).is_file()]
    if missing:
        raise ValueError(
            f"{printable(path)}: names {', '.join(map(printable, missing))}, "
            f"{'which is' if len(missing) == 1 else 'which are'} not beside it"
        )
    shards = tuple(_shard(path.parent / file) for file in sorted(files))
    for shard in shards:
        odd = files[shard.path.name] ^ set(shard.tensors)
        if odd:
            raise ValueError(
                f"{printable(path)}: does not agree with {printable(shard.path.name)} "
                f"on {', '.join(map(printable, sorted(odd)[:4]))}"
            )
    return Shards(path, shards, text)


def _in_folder(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{_INDEX}")) or sorted(folder.glob("*.safetensors"))
    single = folder / "model.safetensors"
    if single in found or len(found) == 1:
        return single if single in found else found[0]
    listed = ", ".join(printable(file.name) for file in found) or "nothing"
    raise ValueError(
        f"{printable(folder)}: must hold one .safetensors file or one index of "
        f"several, got {listed}; name the file"
    )


def _weight_map(path: Path, text: bytes) -> dict[str, str]:
    try:
        told = json.loads(text, object_pairs_hook=tensors.distinct)["weight_map"]
        if not isinstance(told, dict) or not told:
            raise ValueError("its weight_map is no object of names")
        for name, file in told.items():
            # Of a path elsewhere, which nothing in a checkpoint has to name.
            plain = isinstance(file, str) and Path(file).name == file
            if not plain or not file.endswith(".safetensors"):
                raise ValueError(f"{name} is in {file!r}, which is no file beside it")
        return told
    except Exception as e:  # what JSON holds may be anything
        raise ValueError(
            f"{printable(path)}: not a readable index: {reason(e)}"
        ) from None


def _shard(path: Path) -> Shard:
    try:
        # It compares lengths and offsets; of the kinds of arrays it knows fewer.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            start = file.read(8)
            header = start + file.read(int.from_bytes(start, "little"))
        told = json.loads(header[8:], object_pairs_hook=tensors.distinct)
        metadata = told.pop("__metadata__", None) or {}
        if any(key.startswith("swapjax.") for key in metadata):
            raise ValueError(
                "swapjax wrote it; swapjax.io.checkpoint reads it, digest and all"
            )
        return Shard(path, header, dict(_tensors(path, len(header), told)))
    except Exception as e:  # JSON and the library raise many kinds for damage
        raise ValueError(
            f"{printable(path)}: not a readable safetensors file: {reason(e)}"
        ) from None


def _tensors(path: Path, start: int, told: dict) -> Iterator[tuple[str, Tensor]]:
    for name, one in sorted(told.items(), key=lambda x: x[1]["data_offsets"]):
        dtype = tensors.dtype_of(name, one["dtype"])
        shape = tuple(one["shape"])
        yield name, Tensor(path, dtype, shape, start + one["data_offsets"][0])
