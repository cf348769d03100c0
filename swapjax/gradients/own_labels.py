"""Labels that a network would give: the true Fisher in place of the empirical."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count
from swapjax.core.compiled import Compiled
from swapjax.core.trees import count_examples
from swapjax.core.types import Params


def own_labels(
    key: jax.Array,
    predict: Callable[[Params, Any], jax.Array],
    params: Params,
    inputs: Any,
    *,
    batch: int = 1000,
) -> jax.Array:
    """Draw labels from what a network predicts, in place of those of the data.

    The second moment of gradients at such labels is the Fisher information; at the
    labels of the data it is the empirical Fisher, a stand-in that wrong labels spoil
    (Martens, JMLR 2020, arXiv:1412.1193; Kunstner et al., NeurIPS 2019,
    arXiv:1905.12558). Prune with them where labels are wrong, or where there are none:
    the loss, and all that it chooses, then asks for the outputs of the dense network.
    Draw them once, of the dense network, before `prune`.

    Args:
        key: a JAX PRNG key; the same key gives the same labels.
        predict: ``predict(params, inputs) -> logits``, [n, ..., classes], the network
            in inference mode.
        params: the trained weights.
        inputs: a pytree of arrays with a leading axis of n examples, without labels.
        batch: examples in one pass.

    Returns:
        Integers, int32 [n, ...], in [0, classes).

    Raises:
        ValueError: for no examples or leaves that disagree about their number, a batch
            below 1, and logits that are not floats, have no axis of examples and of
            classes, or are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> predict = lambda params, x: x @ params
        >>> images, params = jnp.ones((4, 2)), jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> labels = swapjax.own_labels(jax.random.key(0), predict, params, images)
        >>> labels.tolist()
        [0, 0, 0, 0]
    """
    require_count("batch", batch)
    inputs = jax.tree.map(jnp.asarray, inputs)
    n = count_examples(inputs)
    if not n:
        raise ValueError("inputs have no examples")
    size = min(batch, n)
    parts = []
    for start in range(0, n, size):
        # The last part begins early, so that all are of one size and one program.
        first = min(start, n - size)
        part = jax.tree.map(lambda a, at=first: a[at : at + size], inputs)
        drawn, sound = _draw((predict,), jax.random.fold_in(key, start), params, part)
        if not sound:
            raise ValueError(
                f"logits of predict are not finite in examples {first} to "
                f"{first + size - 1}"
            )
        parts.append(drawn[start - first :])
    return jnp.concatenate(parts)


@Compiled
def _draw(
    predict: Callable[[Params, Any], jax.Array],
    key: jax.Array,
    params: Params,
    inputs: Any,
) -> tuple[jax.Array, jax.Array]:
    """Draw labels, and tell whether all logits are finite."""
    logits = predict(params, inputs)
    n = jax.tree.leaves(inputs)[0].shape[0]
    shape, dtype = jnp.shape(logits), jnp.result_type(logits)
    if len(shape) < 2 or shape[0] != n or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"predict must return float logits [{n}, ..., classes], got {dtype} of "
            f"shape {shape}"
        )
    # Sums of probabilities in 16 bits are too coarse to draw by.
    logits = logits.astype(jnp.promote_types(dtype, jnp.float32))
    labels = jax.random.categorical(key, logits).astype(jnp.int32)
    return labels, jnp.all(jnp.isfinite(logits))
