"""The functions that drivers call to train, and one made of `finetune`."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import LossFn, Masks, Params
from swapjax.loops.finetune import FineTune, finetune
from swapjax.sparsity import masks as masking

Train = Callable[[Params, Masks, jax.Array], Params]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains by `swapjax.loops.finetune.finetune`, the zeros of masks staying zero.

    Called as ``train(params, masks, key)``, as the drivers do. The optimizer starts
    afresh at each call, and the same key brings the same batches in the same order.

    Attributes:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        data: a pytree of arrays with a leading axis of examples.
        settings: optimizer, steps and batch.
        progress: called now and then with the steps done and the steps in all.

    Raises:
        ValueError: for an iterator of batches, which cannot be seen twice.
    """

    loss_fn: LossFn
    data: Any
    settings: FineTune
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator):
            raise ValueError(
                "data: an iterator of batches can be seen once only; give arrays"
            )

    def __call__(self, params: Params, masks: Masks, key: jax.Array) -> Params:
        """Train params, zero where masks are False."""
        return finetune(
            self.loss_fn, params, self.data, self.settings, masks=masks, key=key,
            callback=self.progress,
        )  # fmt: skip

    def describe(self) -> str:
        """What tells it from others, by settings and data; not by its loss."""
        # Imported here so that the core does without safetensors.
        from swapjax.io.resume import digest

        return f"{self.settings.describe()}, data={digest(self.data)}"


def describe(train: Any) -> str:
    """What tells a function of the user's from others, so far as it can say so.

    Args:
        train: anything; a method ``describe()`` speaks for it. The code of a function
            cannot be compared, so that two functions without one are told apart no
            further than function from None.
    """
    if train is None:
        return "none"
    speak = getattr(train, "describe", None)
    return speak() if callable(speak) else "a function"


def call(
    train: Train, params: Params, masks: Masks, key: jax.Array, name: str
) -> Params:
    """Train, and check what came back.

    Args:
        train: of the user.
        params: zero where masks are False.
        masks: with the tree of params.
        key: for the order of the data.
        name: of the argument that train is.

    Raises:
        ValueError: for another tree, other shapes or dtypes, entries that are not
            finite, or zeros of the masks that moved.
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
        moved = int(jnp.sum(~mask & (new != 0), dtype=jnp.int32))
        if moved:
            raise ValueError(
                f"{name}: moved {moved:,} entries of {path} that masks hold at zero; "
                "train with the masks it is given, as swapjax.training.Trainer does"
            )
    trees.require_finite(paths, jax.tree.leaves(trained), f"the params of {name}")
    return masking.apply_masks(trained, masks)


def require_tree(tree: Any, params: Params, what: str) -> None:
    """Raise unless a tree is like that of params.

    Args:
        tree: to look at.
        params: as it should be.
        what: the sentence that "the tree of params" ends.

    Raises:
        ValueError: for another structure.
    """
    wanted: object = jax.tree.structure(params)
    got: object = jax.tree.structure(tree)
    if wanted != got:
        raise ValueError(f"{what} the tree of params {wanted}, got {got}")
