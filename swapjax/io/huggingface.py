"""Checkpoints as Hugging Face keeps them, in and out under their own names.

A checkpoint is one ``.safetensors`` file or several with an index. A map tells which
leaf of params each tensor becomes (`swapjax.io.names`). What is saved has the names,
dtypes, layouts, order, metadata and shards of what was read, to the byte where nothing
was changed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import files, holes, trees
from swapjax.core.text import printable
from swapjax.core.types import Masks, Params
from swapjax.io import shards
from swapjax.io.names import Leaf as Leaf
from swapjax.io.names import Names, Slot, nested, slots, some


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Files of a checkpoint and their map. Made by `open_checkpoint`; holds no arrays.

    Attributes:
        source: the files.
        slots: the leaves of params by path, and what each is made of.
        kept: names of tensors that are no part of params; saved as they were.
    """

    source: shards.Shards
    slots: Mapping[str, Slot]
    kept: tuple[str, ...]

    def shapes(self) -> Params:
        """Return params as shapes and dtypes, from which `swapjax.plan` makes a plan.

        Raises:
            ValueError: as `load` does for tensors that do not fit the map.
        """
        return nested(self._shapes)

    def load(
        self,
        like: Params | None = None,
        *,
        dtype: Any = None,
        mapped: bool = False,
    ) -> Params:
        """Read params, tensor by tensor.

        Args:
            like: a tree of the same paths, shapes and dtypes, arrays or not, whose
                structure is wanted: an Equinox module, a state of nnx. By default
                dicts, and lists where layers are counted.
            dtype: that leaves of floats are cast to; by default that of `like`, or of
                the file.
            mapped: whether leaves stay on the disk, as read-only NumPy arrays, until
                something reads them: for models that do not fit into memory. A leaf
                that stacks several tensors is read all the same, and so is one that
                is cast.

        Raises:
            ValueError: for a tree of other paths or shapes, tensors that cannot be
                laid out as the map says, tensors of one stack that differ in shape or
                dtype, and integers that need x64.
        """
        # Shapes tell what does not fit before anything is read.
        wanted = self._shapes if like is None else trees.by_path(like)
        self._require(wanted, "like")
        leaves = {}
        for path, kind in wanted.items():
            to = jnp.result_type(kind)
            if dtype is not None and jnp.issubdtype(to, jnp.floating):
                to = dtype
            leaf = self.read(path)
            leaf = _cast(path, leaf, jax.dtypes.canonicalize_dtype(to))
            leaves[path] = leaf if mapped else jnp.array(leaf)
        if like is None:
            return nested(leaves)
        return jax.tree.unflatten(jax.tree.structure(like), list(leaves.values()))

    def read(self, path: str) -> np.ndarray:
        """Read one leaf, as the file has its numbers.

        Args:
            path: of the leaf.

        Raises:
            ValueError: for a path that is no leaf.
        """
        if path not in self.slots:
            raise ValueError(
                f"path: {printable(path)} is no leaf of {printable(self.source.path)}"
            )
        slot, tensors = self.slots[path], self.source.tensors
        if not slot.stack:
            return slot.leaf.ours(tensors[slot.names[0]].read())
        shape = self._shapes[path].shape
        out = np.empty((len(slot.names), *shape[len(slot.stack) :]),
                       tensors[slot.names[0]].dtype)  # fmt: skip
        for row, name in zip(out, slot.names, strict=True):
            row[...] = slot.leaf.ours(tensors[name].read())
        return out.reshape(shape)

    def by_name(self, tree: Params | Masks) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what a tree holds under the names and in the layouts of the file.

        Args:
            tree: of the paths of params, as params and masks are; scalars, as masks
                have them of what is never pruned, stand for all entries.

        Raises:
            ValueError: for a tree of other paths or shapes.
        """
        leaves = holes.by_path(tree)
        leaves = {k: True if x is holes.HOLE else x for k, x in leaves.items()}
        self._require(leaves, "tree", scalars=True)
        for path, slot in self.slots.items():
            whole = np.broadcast_to(np.asarray(leaves[path]), self._shapes[path].shape)
            for number, name in enumerate(slot.names):
                yield name, self._theirs(slot, whole, number)

    def save(self, path: str | Path, params: Params | Callable[[str], Any]) -> None:
        """Write params as the checkpoint was written, tensor by tensor.

        Each file is there whole or not at all; the index comes last. What is no part
        of params is copied from the checkpoint, which must still be there.

        Args:
            path: of the file, or of a folder for it, which is made; of a sharded
                checkpoint always a folder, and another than its own.
            params: of the paths and shapes of what was read; floats are cast to the
                dtypes that the file has. Or a function that gives a leaf by its path,
                asked as the tensors lie in the file, for what does not fit into
                memory.

        Raises:
            ValueError: for params of other paths or shapes, for numbers that the
                dtypes of the file cannot hold, and for the folder of the checkpoint.
        """
        path = Path(path)
        leaves = trees.by_path(params)
        # Modules that can be called are trees; a function is a leaf.
        if callable(params) and list(leaves) == [""] and leaves[""] is params:
            leaf: Callable[[str], Any] = params
        else:
            self._require(leaves, "params")
            leaf = leaves.__getitem__
        if self.source.index is None and path.suffix == ".safetensors":
            self._write(path, self.source.files[0], leaf)
            return
        if path.exists() and path.samefile(self.source.path.parent):
            raise ValueError(
                f"path: {printable(path)} is where the checkpoint lies that is copied "
                "from; name another folder"
            )
        path.mkdir(parents=True, exist_ok=True)
        for shard in self.source.files:
            self._write(path / shard.path.name, shard, leaf)
        if self.source.index is not None:
            index = self.source.index
            files.write_atomically(
                path / self.source.path.name, lambda p: p.write_bytes(index)
            )

    def _write(
        self, target: Path, shard: shards.Shard, leaf: Callable[[str], Any]
    ) -> None:
        places = {
            name: (path, number)
            for path, slot in self.slots.items()
            for number, name in enumerate(slot.names)
        }

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(shard.header)
                for name, tensor in shard.tensors.items():
                    if name in self.kept:
                        array = tensor.read()
                    else:
                        path, number = places[name]
                        whole = np.asarray(leaf(path))
                        self._require({path: whole}, "params", all_of=False)
                        array = self._theirs(self.slots[path], whole, number)
                        array = _cast(name, array, tensor.dtype)
                    flat = np.ascontiguousarray(array).reshape(-1)
                    file.write(flat.view(np.uint8).data)

        files.write_atomically(target, write)

    def _theirs(self, slot: Slot, whole: np.ndarray, number: int) -> np.ndarray:
        """Take one tensor out of a leaf, laid out as in the file."""
        one = whole.reshape(len(slot.names), *whole.shape[len(slot.stack) :])[number]
        return slot.leaf.theirs(one, self.source.tensors[slot.names[number]].shape)

    @functools.cached_property
    def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Tell the shapes of leaves by path.

        Raises:
            ValueError: for tensors that do not fit the map.
        """
        tensors, result = self.source.tensors, {}
        source = printable(self.source.path)
        for path, slot in self.slots.items():
            first = tensors[slot.names[0]]
            for name in slot.names:
                one = tensors[name]
                if (one.shape, one.dtype) != (first.shape, first.dtype):
                    raise ValueError(
                        f"{source}: {printable(name)} is {one.dtype} of shape "
                        f"{one.shape}, where {printable(slot.names[0])}, of one stack "
                        f"with it, is {first.dtype} of shape {first.shape}"
                    )
            try:
                laid = slot.leaf.ours(np.broadcast_to(np.int8(0), first.shape)).shape
            except ValueError:
                told = [
                    f"{word} {value}"
                    for word, value in (
                        ("axes", slot.leaf.axes),
                        ("shape", slot.leaf.shape),
                    )
                    if value is not None
                ]
                raise ValueError(
                    f"names: {printable(slot.names[0])} is of shape {first.shape}, "
                    f"which {' and '.join(told)} of {printable(path)} do not fit"
                ) from None
            result[path] = jax.ShapeDtypeStruct((*slot.stack, *laid), first.dtype)
        return result

    def _require(
        self,
        leaves: Mapping[str, Any],
        what: str,
        *,
        scalars: bool = False,
        all_of: bool = True,
    ) -> None:
        """Raise for leaves of other paths or shapes than those of the map."""
        missing = [path for path in self.slots if path not in leaves] if all_of else []
        extra = [path for path in leaves if path not in self.slots]
        faults = [f"lacks {some(missing)}"] if missing else []
        faults += [f"has {some(extra)} besides"] if extra else []
        shapes = self._shapes
        faults += [
            f"has {printable(path)} of shape {np.shape(leaf)}, wanted "
            f"{shapes[path].shape}"
            for path, leaf in leaves.items()
            if path in shapes
            and np.shape(leaf) != shapes[path].shape
            and not (scalars and np.shape(leaf) == ())
        ]
        if faults:
            raise ValueError(
                f"{what}: {'; '.join(faults[:4])}, by the names of "
                f"{printable(self.source.path)}"
            )


def open_checkpoint(path: str | Path, names: Names | None = None) -> Checkpoint:
    """Open a checkpoint of Hugging Face's kind; nothing but headers is read.

    Args:
        path: a ``.safetensors`` file, an index (``model.safetensors.index.json``) of
            several, or a folder with one of them.
        names: the leaf of params that each tensor becomes, by its name in the file,
            with ``{i}`` where layers are counted: a `Leaf`, or the path of one that is
            laid out alike. None leaves tensors in the file, and ``*`` may stand in
            names of such. By default all, dots for slashes.

    Raises:
        ValueError: for files that are missing or damaged, an index that names missing
            shards or does not agree with them, names that no line or two lines of the
            map match, a line that matches nothing, two tensors of one leaf, layers
            that are not counted from 0 without a gap, and a leaf below another.

    Example:
        >>> import numpy as np, tempfile
        >>> from safetensors.numpy import save_file
        >>> from swapjax.io.huggingface import Leaf, open_checkpoint
        >>> arrays = {f"layer.{i}.weight": np.ones((3, 2), "f") for i in range(4)}
        >>> folder = tempfile.mkdtemp()
        >>> save_file(arrays, f"{folder}/model.safetensors", {"format": "pt"})
        >>> names = {"layer.{i}.weight": Leaf("layers/kernel", axes=(1, 0))}
        >>> open_checkpoint(folder, names).load()["layers"]["kernel"].shape
        (4, 2, 3)
    """
    found = shards.find(path)
    return Checkpoint(found, *slots(printable(found.path), list(found.tensors), names))


def _cast(what: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """Cast an array; floats are rounded, all else stays what it is.

    Raises:
        ValueError: for what the dtype cannot hold.
    """
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    both = [jnp.issubdtype(d, jnp.floating) for d in (array.dtype, dtype)]
    if any(both) and not all(both):
        raise ValueError(f"{printable(what)}: is of {array.dtype}, wanted {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
    lost = (
        np.any(np.isfinite(array) & ~np.isfinite(result))
        if all(both)
        else not np.array_equal(result.astype(array.dtype), array)
    )
    if lost:
        raise ValueError(f"{printable(what)}: does not fit into {dtype}")
    return result
