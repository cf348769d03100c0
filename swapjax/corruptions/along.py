"""Linear maps along the height and along the width of images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def along_both(matrix: Callable[[int], np.ndarray], x: jax.Array) -> jax.Array:
    """Apply a linear map along the height, and along the width, of images.

    Args:
        matrix: of a number of pixels, [any, that number].
        x: [n, height, width, channels].
    """
    rows, columns = (jnp.asarray(matrix(size), x.dtype) for size in x.shape[1:3])
    # In full precision on accelerators, too: pixels have 8 bits.
    full = jax.lax.Precision.HIGHEST
    x = jnp.einsum("ih,nhwc->niwc", rows, x, precision=full)
    return jnp.einsum("jw,niwc->nijc", columns, x, precision=full)
