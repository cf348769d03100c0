"""FreeFlow: how much flows through each operation of a supernet, without data.

Every weight is replaced by its absolute value and the input by ones. The sum of the
logits is then a sum over paths, and ``alpha dR/dalpha`` is the part of it that goes
through an operation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.search import layers
from swapjax.search.kernels import even
from swapjax.search.space import Space

Alpha = Mapping[str, Any]
OperationScore = Callable[[Any, Alpha], dict[str, np.ndarray]]

DTYPES = ("float64", "float32")


def freeflow(
    space: Space,
    *,
    shape: tuple[int, int, int] = (32, 32, 3),
    norm: str = "none",
    dtype: str = "float64",
    rescale: bool = False,
) -> OperationScore:
    """Score operations by the flow through them: no data, no labels, no training.

    ``S = |alpha dR/dalpha|`` with R the sum of the logits of the supernet whose every
    weight, and alpha, is replaced by its absolute value, on one image of ones. A
    label-free, data-free operation score in the style of FreeFlow (arXiv 2106.11542
    v1), implemented from the public code of the paper's second version.

    Without batch norm the flows into a node sum to the flow out of it, at every node of
    every cell. Signs of weights do not count; operations whose alpha is zero score 0. R
    grows with the depth beyond float32, so float64 is used inside, whatever
    ``jax_enable_x64`` says.

    Compiled at the first call. Costs one forward and one backward pass of one image.

    Args:
        space: of the supernet.
        shape: of one image.
        norm: ``"none"``: batch norm is left out; ``"train"`` and ``"eval"`` keep it, as
            the paper's code does with statistics of the one image. Flow is then not
            conserved, and in float32 often no number.
        dtype: of all computation, ``"float64"`` or ``"float32"``.
        rescale: divide each kernel by the mean over outputs of what it sums to over
            inputs, so that every convolution hands on as much as it gets. Otherwise one
            of 3 x 3 pixels hands on some three times as much as one of 1 x 1, and
            thirteen times as much as a pool. Ours, not the paper's.

    Returns:
        ``score(theta, alpha) -> scores``, for `remove`: for each kind of cell
        float64[edges, ops], NumPy arrays.

    Raises:
        ValueError: for another norm or dtype, and a shape that the space cannot take.
    """
    layers.require_norm(norm)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    jax.eval_shape(lambda key: space.init(key, shape), jax.random.key(0))  # its checks

    def total(alpha: Alpha, theta: Any) -> jax.Array:
        ones = jnp.ones((1, *shape), dtype)
        return jnp.sum(space.apply(theta, alpha, ones, norm=norm))

    @jax.jit
    def flows(theta: Any, alpha: Alpha) -> Alpha:
        theta, alpha = jax.tree.map(jnp.abs, (theta, alpha))
        theta = even(theta) if rescale else theta
        slopes = canonical_convolutions(jax.grad(total))(alpha, theta)
        return jax.tree.map(lambda a, s: jnp.abs(a * s), alpha, slopes)

    def score(theta: Any, alpha: Alpha) -> dict[str, np.ndarray]:
        with jax.enable_x64(True):
            found = flows(*cast((theta, alpha), dtype))
            return {kind: np.asarray(x, np.float64) for kind, x in found.items()}

    return score


def cast(tree: Any, dtype: str) -> Any:
    """Bring all floats of a tree to a dtype; under `jax.enable_x64` for float64."""

    def one(leaf: Any) -> jax.Array:
        array = jnp.asarray(leaf)
        return (
            array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array
        )

    return jax.tree.map(one, tree)
