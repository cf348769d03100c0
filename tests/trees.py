"""Trees of arrays compared and laid end to end."""

import jax
import numpy as np


def _array(leaf):
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def equal(first, second):
    """Whether two trees of one structure are the same bit for bit, dtypes included."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    arrays = ((_array(a), _array(b)) for a, b in pairs)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


def flat(leaves):
    """All entries of the leaves in one array of float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
