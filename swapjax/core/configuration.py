"""Settings of JAX that are for finding faults in one's own code."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Compute as if nobody looked for faults: promote, and let infinities pass.

    Strict promotion of dtypes and ranks, and stops at NaN and infinity, are for finding
    faults in a loss, which is looked at before. Solvers, and the libraries that they
    call, compare with infinity, and promote.
    """
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield
