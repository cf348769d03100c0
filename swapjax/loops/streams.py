"""Data as people have them: arrays of all examples, or batches one after the other."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from swapjax.core import losses, trees
from swapjax.core.objective import Objective, as_objective
from swapjax.core.types import LossFn, Params

Fits = Callable[[Any], Any]

_PATIENCE = 20  # seconds of counting without a word


class Stream:
    """Batches one after the other, with a count of those that were taken.

    An iterator ends for good. What begins anew, as a data loader, a list or a generator
    function does, is gone through again and again; each pass ends with StopIteration.

    Args:
        batches: an iterator, anything that one can be made of, or a function that
            makes one.
        name: the argument that it came in, for messages.

    Attributes:
        taken: batches so far, of all passes.
        repeats: whether it begins anew.
        is_fresh: whether the next batch is the first of a pass.
    """

    def __init__(self, batches: Any, name: str = "data") -> None:
        self._batches, self._name = batches, name
        self.repeats = not isinstance(batches, Iterator)
        self._pass: Iterator | None = None if self.repeats else batches
        self._held: list[Any] = []
        self._first: Any = None
        self.taken, self.is_fresh = 0, True

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        """Take the next batch of this pass, and count it."""
        if not self._held:
            self._held.append(self._read())
        self.taken, self.is_fresh = self.taken + 1, False
        return self._held.pop()

    def peek(self) -> Any:
        """Look at the next batch without taking it; None at the end of a pass."""
        if not self._held:
            try:
                self._held.append(self._read())
            except StopIteration:
                return None
        return self._held[0]

    def take(self, count: int, *, again: bool = True) -> Iterator:
        """Yield a number of batches.

        Args:
            count: how many.
            again: whether to begin anew where they end.

        Raises:
            ValueError: when there are fewer.
        """
        for i in range(count):
            fresh = self.is_fresh
            batch = next(self, None)
            if batch is None and self.repeats and again and not fresh:
                batch = next(self, None)
            if batch is None:
                raise ValueError(
                    f"{self._name}: {self.noun} ended after {i} of {count} batches"
                )
            yield batch

    def restart(self) -> None:
        """Begin a pass anew, where one has begun."""
        if self.repeats and not self.is_fresh:
            self._pass, self._held, self.is_fresh = None, [], True

    @property
    def noun(self) -> str:
        """What it is called in messages."""
        return "the iterable" if self.repeats else "the iterator"

    def count(self) -> int:
        """Count the batches of a pass, by going through one where it has no length.

        Raises:
            ValueError: for an iterator.
        """
        if not self.repeats:
            raise ValueError(f"{self._name}: an iterator does not tell its length")
        with suppress(TypeError):
            return len(self._batches)
        found, started, quiet = 0, time.monotonic(), True
        for _ in self._begin():
            found += 1
            if quiet and time.monotonic() - started > _PATIENCE:
                quiet = False
                warnings.warn(
                    f"{self._name}: counting the batches of a pass, {found:,} so far; "
                    "steps_per_epoch= says how many to take, and must for what has no "
                    "end",
                    stacklevel=2,
                )
        return found

    def _begin(self) -> Iterator:
        """Begin a pass."""
        made = self._batches
        if not hasattr(made, "__iter__"):
            made = made()
        if not isinstance(made, Iterable):
            raise ValueError(
                f"{self._name}: the function must return an iterable of batches, got "
                f"{made!r}"
            )
        return iter(made)

    def _read(self) -> Any:
        if self._pass is None:
            self._pass = self._begin()
        try:
            batch = next(self._pass)
        except StopIteration:
            if self.repeats:
                self._pass = None
            self.is_fresh = True
            raise
        what = f"a batch of {self._name}"
        batch = as_arrays(batch, what)
        if not trees.count_examples(batch, what):
            raise ValueError(f"{what}: number {self.taken} has no examples in it")
        self._require_like(batch)
        # Several are gathered, and a loader may fill the same memory with each.
        return jax.tree.map(lambda x: x.copy() if _is_numpy(x) else x, batch)

    def _require_like(self, batch: Any) -> None:
        """Raise for a batch of other kind than the first.

        Raises:
            ValueError: naming what differs.
        """
        now = jax.tree.structure(batch), [_kind(x) for x in jax.tree.leaves(batch)]
        if self._first is None:
            self._first = now
        for was, found in zip(self._first, now, strict=True):
            if found != was:
                raise ValueError(
                    f"{self._name}: batches must be alike but for their size, batch "
                    f"{self.taken} has {found} after {was}"
                )


def take_data(data: Any, fits: Fits | None, size: int = 1, name: str = "data") -> Any:
    """Take data for arrays of all examples, or for batches one after the other.

    An iterator, a function that makes one, and whatever can be iterated over and is
    neither an array nor a pytree are batches. A list is what the loss takes it for: it
    may be one pytree, as ``[x, y]``, or hold batches, and so may a tuple of batches
    that are no arrays.

    Args:
        data: as the user gave it.
        fits: raises for what the loss does not take as a batch, from shapes alone; None
            where there is no loss, and a list is a pytree.
        size: examples of a batch that is cut out of arrays.
        name: the argument, for messages.

    Returns:
        A pytree of arrays of NumPy and of JAX, or a `Stream`.

    Raises:
        ValueError: for a list that the loss takes in both ways, or that is empty, and
            leaves that are no arrays.
    """
    if isinstance(data, Stream):
        return data
    if is_stream(data):
        return Stream(data, name)
    if fits is not None and _may_hold_batches(data):
        if not data:
            raise ValueError(f"{name}: there are no batches in it")
        if _holds_batches(data, fits, size, name):
            return Stream(data, name)
    return as_arrays(data, name)


def taken_by(loss: LossFn | Objective, params: Params) -> Fits:
    """Make a function that raises for what a loss does not take as a batch."""
    objective = as_objective(loss)

    def evaluate(params: Params, batch: Any) -> Any:
        state = objective.init(params, batch)
        return objective.loss(params, state, batch, jax.random.key(0))[0]

    def fits(batch: Any) -> None:
        returned = jax.eval_shape(evaluate, params, batch)
        losses.require_scalar(returned, differentiable=False)

    return fits


def is_stream(data: Any) -> bool:
    """Whether data are batches one after the other, whatever a loss takes."""
    if isinstance(data, Stream | Iterator):
        return True
    is_leaf = jax.tree_util.all_leaves([data]) and not isinstance(data, str | bytes)
    if not is_leaf or _is_array(data) or isinstance(data, Mapping):
        return False
    return hasattr(data, "__iter__") or callable(data)


def as_arrays(data: Any, what: str) -> Any:
    """Make arrays of NumPy of what is none of JAX, as tensors of others are.

    Args:
        data: a pytree of arrays and numbers, or a mapping that is none.
        what: it is, for messages.

    Raises:
        ValueError: for a leaf that no array can be made of.
    """
    if isinstance(data, Mapping) and jax.tree_util.all_leaves([data]):
        data = dict(data)

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array | np.ndarray | jax.core.Tracer):
            return leaf
        try:
            found = np.asarray(leaf)
        except Exception as e:  # whatever a tensor of others says
            raise ValueError(
                f"{what}: no array can be made of {leaf!r}, nor is it an iterable of "
                f"batches: {e}"
            ) from e
        if found.dtype.kind in "OSU":
            raise ValueError(
                f"{what}: a {type(leaf).__name__} is no array; give arrays, or batches "
                "of arrays one after the other"
            )
        return found

    return jax.tree.map(convert, data)


def shapes_of(data: Any, size: int | None = None) -> Any:
    """Tell shapes and dtypes of arrays, of as many of their examples at most."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        shape = np.shape(x)
        if size is not None:
            shape = (min(size, shape[0]), *shape[1:])
        dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(shape, dtype)

    return jax.tree.map(one, data)


def _may_hold_batches(data: Any) -> bool:
    """Whether data look as batches would: a list, or a tuple of trees alike."""
    if isinstance(data, list):
        return True
    if type(data) is not tuple or jax.tree_util.all_leaves(data):
        return False
    return len({jax.tree.structure(x) for x in data}) == 1


def _holds_batches(data: Any, fits: Fits, size: int, name: str) -> bool:
    """Ask the loss whether a list is one pytree, or batches.

    Raises:
        ValueError: where it takes both.
    """
    try:
        whole = as_arrays(data, name)
        trees.count_examples(whole)
        as_tree = _is_taken(fits, shapes_of(whole, size))
    except ValueError:
        as_tree = False
    try:
        first = as_arrays(data[0], name)
        trees.count_examples(first)
        as_batches = _is_taken(fits, shapes_of(first))
    except ValueError:
        as_batches = False
    if as_tree and as_batches:
        raise ValueError(
            f"{name}: the loss takes the list as one pytree and its elements as "
            "batches; say which: iter(data) or lambda: data for batches, tuple(data) "
            "for a pytree"
        )
    # Where the loss takes neither, its own error is to say why.
    return as_batches or (not as_tree and not jax.tree_util.all_leaves(data))


def _is_taken(fits: Fits, batch: Any) -> bool:
    try:
        fits(batch)
    except Exception:  # whatever a loss says of what it does not take
        return False
    return True


def _is_numpy(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "__array__") or isinstance(leaf, jax.core.Tracer | np.generic)


def _kind(leaf: Any) -> str:
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return f"{dtype}[{', '.join(map(str, ('any', *np.shape(leaf)[1:])))}]"
