"""Examples that judge and nothing else: held out of each stage, or a set of one's own.

Methods choose by the loss. Where data are wrong, by their labels or their images, the
loss on these very data prefers weights that fit what is wrong with them.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from swapjax.core import sharding, trees
from swapjax.loops.examples import Source
from swapjax.loops.streams import as_arrays, is_stream

_OWN = 1  # folded into the key of a stage's examples, for those of a set of its own


@dataclasses.dataclass(frozen=True)
class Validation:
    """Where a stage takes the examples that judge from.

    Attributes:
        rows: how many of them there are at each stage.
        batch: examples a row.
        source: a set of the user's own; None to hold out of what a stage draws.
        fraction: what share of it, 0 with a set of the user's own.
    """

    rows: int
    batch: int
    source: Source | None = None
    fraction: float = 0.0

    def part(self, examples: Any, key: jax.Array | None) -> tuple[Any, Any]:
        """Part what a stage draws from what judges it.

        Args:
            examples: of the stage, on the device.
            key: that they were drawn by.

        Returns:
            Those to prune by, and those to judge by.
        """
        if self.source is None:
            return _split(examples, self.rows * self.batch)
        key = None if key is None else jax.random.fold_in(key, _OWN)
        return examples, self.source.draw(key)

    @property
    def spread(self) -> sharding.Spread | None:
        """The devices that a set of the user's own is sharded over."""
        return None if self.source is None else self.source.spread

    def describe(self) -> str:
        """Tell runs with other examples apart."""
        return str(self.fraction) if self.source is None else self.source.digest()


def check_validation(
    validation: Any,
    like: Any,
    source: Source | None,
    *,
    samples: int,
    batch: int,
    with_keys: bool = False,
) -> Validation | None:
    """Take what judges a run.

    Args:
        validation: None, a fraction, or examples.
        like: the shapes of examples of the run; None where they are not known yet.
        source: of the run's examples; None without any.
        samples: rows that a stage asks for, and the most of a set that judge it.
        batch: examples a row.
        with_keys: whether examples are drawn with keys, which `like` holds beside them.

    Raises:
        ValueError: for a fraction outside of (0, 1), or of a single row; examples of
            another structure than those of the run, not finite, or none; and for either
            where the run has no examples at all.
    """
    if validation is None:
        return None
    if source is None:
        raise ValueError("validation: there is no loss to ask without data, got none")
    if isinstance(validation, bool | int | float | np.number):
        fraction = float(validation)
        if isinstance(validation, bool) or not 0 < fraction < 1:
            raise ValueError(
                "validation must be a fraction in (0, 1) of each stage's examples, or "
                f"examples, got {validation!r}"
            )
        drawn = source.wanted // batch
        if drawn < 2:
            raise ValueError(
                f"validation: a fraction is held out in rows of batch={batch} "
                f"examples, and a stage draws {drawn} of them; 2 is the least"
            )
        held = min(max(1, round(fraction * drawn)), drawn - 1)
        return Validation(held, batch, fraction=fraction)
    if is_stream(validation):
        raise ValueError(
            "validation: its examples are drawn at each stage, which takes arrays and "
            "no iterator or iterable of batches"
        )
    validation = as_arrays(validation, "validation")
    return _of_set(validation, like, samples, batch, with_keys)


def _of_set(
    validation: Any, like: Any, samples: int, batch: int, with_keys: bool
) -> Validation:
    """Take a set of the user's own."""
    if with_keys and like is not None:
        like = like[0]
    if like is not None:
        _require_like(validation, like)
    validation = sharding.leave_to_compiler(validation)
    available = trees.count_examples(validation, "validation")
    if not available:
        raise ValueError("validation: there are no examples in it")
    # Fewer than a row make a row of their own.
    batch = min(batch, available)
    rows = min(samples, available // batch)
    source = Source(validation, rows * batch, "validation", with_keys=with_keys)
    return Validation(rows, batch, source)


def _require_like(validation: Any, like: Any) -> None:
    """Raise unless examples have the structure of those of the run.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    wanted: object = jax.tree.structure(like)
    got: object = jax.tree.structure(validation)
    if wanted != got:
        raise ValueError(f"validation: must have the tree of data {wanted}, got {got}")
    pairs = zip(jax.tree.leaves(validation), jax.tree.leaves(like), strict=True)
    for path, (leaf, of) in zip(trees.paths(like), pairs, strict=True):
        shape = np.shape(leaf)
        if not shape or shape[1:] != np.shape(of)[1:]:
            raise ValueError(
                f"validation: {path or 'it'} must have the shape "
                f"{('any', *np.shape(of)[1:])} of data, got {shape}"
            )
        kind, own = (_canonical(x.dtype) for x in (of, leaf))
        if kind != own:
            raise ValueError(
                f"validation: {path or 'it'} must be {kind} as in data, got {own}"
            )


def _canonical(dtype: Any) -> Any:
    """Take the dtype that JAX gives; that of PRNG keys is its own."""
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)


@functools.partial(jax.jit, static_argnums=1)
def _split(examples: Any, held: int) -> tuple[Any, Any]:
    """Hold out the last examples."""
    first = jax.tree.map(lambda x: x[: len(x) - held], examples)
    return first, jax.tree.map(lambda x: x[len(x) - held :], examples)
