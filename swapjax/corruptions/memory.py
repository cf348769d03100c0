"""Weights and gradients as analog memory hands them back: levels, drift, read noise."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import keys, trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves, LossFn, Params

_MOST_LEVELS = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalogMemory:
    """Numbers stored as conductances, and what comes back when they are read.

    A number w of a leaf is stored in a pair of devices, one for each sign, as a share
    of the leaf's largest magnitude m. It is written to one of a few levels, its
    conductance then falls as ``(t / t0)^-nu`` with an exponent of its own, and each
    read adds noise (Joshi et al., Nature Communications 2020, arXiv:1906.03138, has
    the pair, the drift and additive noise in shares of the largest weight; Rasch et
    al., 2021, arXiv:2104.02184, is a simulator of such memories)::

        q = round(w (levels - 1) / m) m / (levels - 1)
        d = q time^-nu,     nu ~ max(0, N(drift, drift_deviation^2))
        r = d (1 + multiplicative N(0, 1)) + additive m N(0, 1)

    The strengths are the user's: those of a device depend on its kind and on the
    conductance itself, which this model leaves out.

    As ``prune(noise=...)`` it is memory for gradients: each row is written and read
    once, its leaves each with their own m.

    Attributes:
        multiplicative: deviation of the read noise in shares of what is read.
        additive: deviation of the read noise in shares of the leaf's largest magnitude.
        levels: of a device, both ends included, so that a number is one of
            ``2 levels - 1``; from 2 to 65,536, or None for any number.
        drift: the mean exponent nu, 0 or more.
        drift_deviation: how nu deviates from weight to weight, 0 or more.
        time: t / t0 of the read, 1 or more. One key draws one nu a weight whatever the
            time.
        noisy_zeros: whether entries that are exactly 0, as pruned ones are, are stored
            and read as well. By default they have no devices and stay 0.

    Raises:
        ValueError: for values outside those.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from swapjax.corruptions import AnalogMemory
        >>> memory = AnalogMemory(levels=16, additive=0.02, drift=0.05, time=3600)
        >>> params = {"kernel": jnp.eye(3), "bias": jnp.ones(3)}
        >>> read = memory.read(jax.random.key(0), params)
        >>> bool(jnp.all((read["kernel"] == 0) == (params["kernel"] == 0)))
        True
    """

    multiplicative: float = 0.0
    additive: float = 0.0
    levels: int | None = None
    drift: float = 0.0
    drift_deviation: float = 0.0
    time: float = 1.0
    noisy_zeros: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("multiplicative", 0), ("additive", 0), ("drift", 0),
            ("drift_deviation", 0), ("time", 1),
        ):  # fmt: skip
            value: Any = getattr(self, name)
            real = isinstance(value, numbers.Real) and math.isfinite(value)
            if not (real and value >= least):
                raise ValueError(
                    f"{name} must be a number, {least} or more, got {value!r}"
                )
        if self.levels is not None:
            require_count("levels", self.levels, 2)
            if self.levels > _MOST_LEVELS:
                raise ValueError(
                    f"levels must be {_MOST_LEVELS} or less, got {self.levels}"
                )

    def read(
        self,
        key: jax.Array,
        params: Params,
        *,
        leaves: Callable[[str], bool] | None = None,
    ) -> Params:
        """Write weights, wait, and read them once.

        Args:
            key: a JAX PRNG key; another key is another write and read.
            params: any pytree of arrays.
            leaves: tells by its path, as ``fc1/kernel``, whether a leaf is stored in
                analog memory. By default those with two or more axes are: biases and
                the like stay digital.

        Returns:
            Params of the same shapes and dtypes.
        """
        found, treedef = jax.tree.flatten(params)
        paths = trees.paths(params)
        read = [
            self._read(jax.random.fold_in(key, i), leaf)
            if _is_stored(path, leaf, leaves)
            else leaf
            for i, (path, leaf) in enumerate(zip(paths, found, strict=True))
        ]
        return jax.tree.unflatten(treedef, read)

    def __call__(
        self, key: jax.Array, shared: jax.Array, index: jax.Array, n: int, row: Leaves
    ) -> Leaves:
        """Read one row of gradients, see `swapjax.GradientNoise`."""
        del shared, index, n  # rows are read one by one
        own = jax.random.split(key, len(row))
        return tuple(self._read(k, x) for k, x in zip(own, row, strict=True))

    @functools.partial(jax.jit, static_argnums=0)
    def _read(self, key: jax.Array, leaf: jax.Array) -> jax.Array:
        """Write and read a leaf."""
        of_drift, of_product, of_sum = jax.random.split(key, 3)
        stored = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

        def normal(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, stored.shape, stored.dtype)

        largest = jnp.max(jnp.abs(stored), initial=0)
        x = stored
        if self.levels is not None:
            # Shares of the largest first: a gap of tiny numbers may be no number.
            shares = x / jnp.where(largest > 0, largest, 1)
            x = jnp.round(shares * (self.levels - 1)) / (self.levels - 1) * largest
        if self.time > 1 and (self.drift or self.drift_deviation):
            nu = self.drift + self.drift_deviation * normal(of_drift)
            x = x * jnp.exp(-math.log(self.time) * jnp.maximum(nu, 0))
        if self.multiplicative:
            x = x * (1 + self.multiplicative * normal(of_product))
        if self.additive:
            x = x + self.additive * largest * normal(of_sum)
        if not self.noisy_zeros:
            x = jnp.where(stored == 0, stored, x)
        return x.astype(leaf.dtype)


def in_analog_memory(
    loss_fn: LossFn,
    memory: AnalogMemory,
    key: jax.Array | None = None,
    *,
    leaves: Callable[[str], bool] | None = None,
) -> LossFn:
    """Make the loss of a network whose weights are read from analog memory.

    Gradients are those of the loss at the weights as read, handed to the weights that
    were written as if reading changed nothing: levels have no slope of their own
    (the straight-through estimator; Bengio et al., 2013, arXiv:1308.3432). Layer-wise
    methods do not find the weights in such a loss; prune what `AnalogMemory.read`
    returns with them.

    Args:
        loss_fn: ``loss_fn(params, batch)``.
        memory: what holds the weights.
        key: a JAX PRNG key; every call reads the same then, of one chip. Without one
            the last part of each batch holds a key an example, as in
            ``(images, labels, jax.random.split(key, n))``: the weights are read anew
            for each row of gradients, with the key of its first example.
        leaves: which leaves are held there, as for `AnalogMemory.read`.

    Returns:
        ``loss(params, batch)``, for `swapjax.prune`, training or evaluation. The batch
        that ``loss_fn`` sees has no keys.

    Raises:
        ValueError: by the loss, for a batch without keys where they are needed.
    """

    @functools.wraps(loss_fn)
    def loss(params: Params, batch: Any) -> jax.Array:
        own, batch = (key, batch) if key is not None else _take_key(batch)
        read = memory.read(own, params, leaves=leaves)
        return loss_fn(jax.tree.map(_straight_through, params, read), batch)

    return loss


def _take_key(batch: Any) -> tuple[jax.Array, tuple]:
    """Take the key of the first example off a batch."""
    last: Any = batch[-1] if isinstance(batch, tuple | list) and batch else None
    if not (keys.is_key(last) and jnp.ndim(last)):
        raise ValueError(
            "batch must end with a PRNG key an example where in_analog_memory has none"
        )
    return last[0], tuple(batch[:-1])


def _is_stored(path: str, leaf: Any, leaves: Callable[[str], bool] | None) -> bool:
    if not jnp.issubdtype(getattr(leaf, "dtype", jnp.int32), jnp.floating):
        return False
    return jnp.ndim(leaf) >= 2 if leaves is None else bool(leaves(path))


def _straight_through(written: Any, read: Any) -> Any:
    return read if read is written else _pass(written, read)


@jax.custom_jvp
def _pass(written: jax.Array, read: jax.Array) -> jax.Array:
    """Be what was read, with the slope of what was written."""
    del written
    return read


@_pass.defjvp
def _(values: tuple, slopes: tuple) -> tuple[jax.Array, jax.Array]:
    return values[1], slopes[0]
