"""A loss that returns more than a number, or that draws at random."""

from collections.abc import Callable
from typing import Any

import jax

from swapjax.core import losses
from swapjax.core.types import Params


class Loss:
    """A loss function with an aux, a key, or both.

    `swapjax.prune`, `swapjax.training.fit` and what stands beside them take it in the
    place of ``loss_fn(params, batch)``. Without a key it is such a function itself,
    which returns the loss alone, and goes wherever one is taken.

    Two of them are the same if they are one object, as functions are: what is compiled
    for one is gone with it.

    Args:
        function: ``function(params, batch)``, the mean loss of a batch.
        has_aux: whether it returns a pair of the loss and anything else, as
            ``jax.value_and_grad(has_aux=True)`` takes it. `fit` tells the scalars in it
            if it is a dict; for states, as batch statistics, see
            `swapjax.training.Objective`.
        has_key: whether it is ``function(params, batch, key)``, and draws, as dropout
            does. `fit` gives each step a key of its own. `prune` gives each row of
            examples a key, that of its first example, drawn with the examples of the
            stage from the key of the run: a row and its gradient are the same in every
            pass.

    Raises:
        ValueError: for other than a function; when called, for a loss that is no pair
            where it should be one, and without a key where it draws.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> def function(params, x, key):
        ...     seen = jax.random.bernoulli(key, 0.5, x.shape)
        ...     error = (x * seen) @ params["kernel"] - 1
        ...     return jnp.mean(error**2), {"largest": jnp.max(error)}
        >>> loss_fn = swapjax.Loss(function, has_aux=True, has_key=True)
        >>> params = {"kernel": jnp.ones((4, 2))}
        >>> pruned = swapjax.prune(
        ...     loss_fn, params, jnp.ones((30, 4)), sparsity=0.5, method=swapjax.obd(),
        ...     samples=30, key=jax.random.key(0))
        >>> int(pruned.masks["kernel"].sum())
        4
    """

    def __init__(
        self, function: Callable, *, has_aux: bool = False, has_key: bool = False
    ) -> None:
        if not callable(function):
            raise ValueError(f"function must be one of params, got {function!r}")
        self.function, self.has_aux, self.has_key = function, has_aux, has_key

    def __call__(self, params: Params, batch: Any, key: Any = None) -> jax.Array:
        """Return the loss alone."""
        return self.with_aux(params, batch, key)[0]

    def with_aux(
        self, params: Params, batch: Any, key: Any = None
    ) -> tuple[jax.Array, Any]:
        """Return the loss, and what else there is; None without."""
        if self.has_key and key is None:
            raise ValueError(
                "loss_fn: draws with a key, which prune and fit hand over and this "
                "does not; fix one: lambda params, batch: loss(params, batch, key)"
            )
        found = self.function(params, batch, *([key] if self.has_key else ()))
        if not self.has_aux:
            losses.require_scalar(found, differentiable=False)
            return found, None
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                "loss_fn must return a pair (loss, aux), as has_aux says, got "
                f"{_told(found)}"
            )
        losses.require_scalar(found[0], differentiable=False)
        return found

    def of_row(self, params: Params, row: tuple[Any, jax.Array]) -> jax.Array:
        """Return the loss of a batch that comes with a key for each of its examples."""
        batch, keys = row
        return self(params, batch, keys[0])


def _told(found: Any) -> str:
    """Say what was returned; a traced number says nothing to a reader."""
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}"
    return "one array" if hasattr(found, "shape") else f"a {type(found).__name__}"


def draws(loss: Any) -> bool:
    """Whether a loss needs a key."""
    return isinstance(loss, Loss) and loss.has_key
