"""A network as pure functions of its params."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Params
from swapjax.robust import Hypersphere


class Model(NamedTuple):
    """A network as a function.

    Attributes:
        name: as it was asked for.
        params: initial weights, a dict of arrays; running statistics of batch norm
            among them, under ``mean`` and ``var``, which no gradient reaches.
        apply: ``(params, images [n, ...]) -> logits [n, classes]``, in inference mode.
        loss_fn: ``(params, (images, labels)) -> mean cross-entropy``.
        training_loss: the same with the statistics of the batch in batch norm, whose
            running ones it leaves alone; estimate these anew before inference.
        statistics: ``(params, images) -> params`` with the statistics of those images
            in place of running ones, for `swapjax.recalibrate_batchnorm`; None for a
            network without batch norm.
        flattened: the shape [h, w, c] that a dense layer reads flattened, by the path
            of its kernel. PyTorch flattens it as [c, h, w].
        training_apply: what `apply` is with the statistics of the batch in batch norm;
            None for a network without.
        training_losses: what `training_loss` is the mean of, a number for each example;
            None for a network without batch norm, and for other losses than the
            cross-entropy.
        cosines: path of the last kernel where the outputs are cosines, else None.
        sphere: how losses see cosines, with the margin in `loss_fn`; None for logits.
    """

    name: str
    params: Params
    apply: Callable[[Params, jax.Array], jax.Array]
    loss_fn: Callable[[Params, Any], jax.Array]
    training_loss: Callable[[Params, Any], jax.Array]
    statistics: Callable[[Params, jax.Array], Params] | None = None
    flattened: Mapping[str, tuple[int, int, int]] = types.MappingProxyType({})
    training_apply: Callable[[Params, jax.Array], jax.Array] | None = None
    training_losses: Callable[[Params, Any], jax.Array] | None = None
    cosines: str | None = None
    sphere: Hypersphere | None = None

    def logits(self, outputs: jax.Array) -> jax.Array:
        """Return the logits that outputs stand for."""
        return outputs if self.sphere is None else self.sphere.logits(outputs)


def from_functions(
    name: str,
    params: Params,
    apply: Callable[[Params, jax.Array], jax.Array],
    *,
    flattened: Mapping[str, tuple[int, int, int]] = types.MappingProxyType({}),
    training_apply: Callable[[Params, jax.Array], jax.Array] | None = None,
    statistics: Callable[[Params, jax.Array], Params] | None = None,
) -> Model:
    """Make a model with the mean cross-entropy of its logits.

    Args:
        name: and all else: see `Model`.
        params: initial weights.
        apply: in inference mode.
        flattened: what dense layers read.
        training_apply: with the statistics of the batch in batch norm, if there is any.
        statistics: likewise.
    """
    each = optax.softmax_cross_entropy_with_integer_labels

    def loss_fn(params: Params, batch: Any) -> jax.Array:
        x, y = batch
        return jnp.mean(each(apply(params, x), y))

    def training_losses(params: Params, batch: Any) -> jax.Array:
        assert training_apply is not None
        x, y = batch
        return each(training_apply(params, x), y)

    def training_loss(params: Params, batch: Any) -> jax.Array:
        return jnp.mean(training_losses(params, batch))

    return Model(
        name,
        params,
        apply,
        loss_fn,
        loss_fn if training_apply is None else training_loss,
        statistics,
        flattened,
        training_apply,
        None if training_apply is None else training_losses,
    )
