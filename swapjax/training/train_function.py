"""The training functions that drivers call, and one that is made of `finetune`."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import identity, keys, trees
from swapjax.core.types import LossFn, Masks, Params
from swapjax.loops.finetune import FineTune, finetune
from swapjax.loops.streams import is_stream
from swapjax.sparsity import masks as masking
from swapjax.training.settle import require_settling_of

Train = Callable[[Params, Masks, jax.Array], Params]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A training function that keeps pruned weights at zero.

    Drivers call it as ``train(params, masks, key)``. It runs
    `swapjax.loops.finetune.finetune`: the optimizer starts afresh at each call, and the
    same key brings the same batches in the same order.

    Attributes:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        data: a pytree of arrays with a leading axis of examples, or batches that can be
            gone through again, from the first one at each call.
        settings: optimizer, steps and batch.
        progress: called now and then with the steps done and the steps in all.

    Raises:
        ValueError: for an iterator of batches, which can be read only once.
    """

    loss_fn: LossFn
    data: Any
    settings: FineTune
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator):
            raise ValueError(
                "data: an iterator of batches can be seen once only; give arrays, or "
                "what begins anew"
            )

    def __call__(self, params: Params, masks: Masks, key: jax.Array) -> Params:
        """Train params, zero where masks are False.

        Raises:
            ValueError: for an optimizer with masks of its own that would change after
                the last step, and as `swapjax.loops.finetune.finetune` does.
        """
        require_settling_of(self.settings.optimizer, params, self.settings.steps)
        return finetune(
            self.loss_fn, params, self.data, self.settings, masks=masks, key=key,
            callback=self.progress,
        )  # fmt: skip

    def describe(self) -> str:
        """Return a fingerprint of settings and data; the loss is not part of it."""
        data = "batches" if is_stream(self.data) else identity.digest(self.data)
        return f"{self.settings.describe()}, data={data}"


def describe(train: Any) -> str:
    """Fingerprint a training or evaluation function.

    Args:
        train: a function, or None. Its method ``describe()``, if it has one, returns
            the fingerprint. The code of functions is not compared: all functions
            without such a method have the same fingerprint.
    """
    if train is None:
        return "none"
    speak = getattr(train, "describe", None)
    return speak() if callable(speak) else "a function"


def call(
    train: Train, params: Params, masks: Masks, key: jax.Array, name: str
) -> Params:
    """Call a training function, and check what it returns.

    Args:
        train: the training function.
        params: zero where masks are False.
        masks: with the tree of params.
        key: for the order of the data.
        name: of the argument that train was given as, for errors.

    Raises:
        ValueError: for another tree, other shapes or dtypes, entries that are not
            finite, or weights that moved where masks are False.
    """
    trained = train(params, masks, key)
    require_tree(trained, params, f"{name}: must return")
    trained = jax.tree.map(jnp.asarray, trained)
    paths = trees.paths(params)
    leaves = [jax.tree.leaves(tree) for tree in (params, trained, masks)]
    for path, old, new, mask in zip(paths, *leaves, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"{name}: must leave {path} {old.dtype} of shape {old.shape}, got "
                f"{new.dtype} of shape {new.shape}"
            )
        if keys.is_key(new):  # it is no number that masks could hold at zero
            continue
        moved = int(jnp.sum(~mask & (new != 0), dtype=jnp.int32))
        if moved:
            raise ValueError(
                f"{name}: moved {moved:,} entries of {path} that masks hold at zero; "
                "train with the masks it is given, as swapjax.training.Trainer does"
            )
    trees.require_finite(paths, jax.tree.leaves(trained), f"the params of {name}")
    return masking.apply_masks(trained, masks)


def require_tree(tree: Any, params: Params, what: str) -> None:
    """Raise unless a tree has the structure of params.

    Args:
        tree: to check.
        params: the tree to compare with.
        what: the beginning of the error, as in ``"train: must return"``.

    Raises:
        ValueError: for another structure.
    """
    wanted: object = jax.tree.structure(params)
    got: object = jax.tree.structure(tree)
    if wanted != got:
        raise ValueError(f"{what} the tree of params {wanted}, got {got}")
