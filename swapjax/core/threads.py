"""One thread for BLAS while LAPACK runs, which JAX calls on a CPU.

The threads of OpenBLAS wait for one another by spinning. On cores that others use too,
eigenvalues of a 1000 x 1000 matrix took 95 times as long with two threads as with one;
a stage has few systems large enough to gain from a second thread on idle cores.
"""

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import jax
from threadpoolctl import ThreadpoolController

VARIABLE = "OPENBLAS_NUM_THREADS"

# The number of threads is one for the process, so one limit at a time: of two that
# overlap the last would restore what the first had set.
_HELD = threading.Lock()


@contextlib.contextmanager
def one_blas_thread(arrays: Any = None) -> Iterator[None]:
    """Let BLAS use one thread, then as many as before.

    A number of threads that the user chose, by the environment variable
    OPENBLAS_NUM_THREADS, stays as it is. What is computed inside must be ready before
    the limit is lifted: JAX returns before it has computed. While another limit is in
    force, that one counts.

    Args:
        arrays: a tree whose arrays are computed with; nothing is limited where all of
            them lie on other devices than CPUs. By default CPUs may compute.
    """
    leaves = jax.tree.leaves(arrays)
    devices = [d for x in leaves if isinstance(x, jax.Array) for d in x.devices()]
    elsewhere = devices and all(d.platform != "cpu" for d in devices)
    if elsewhere or os.environ.get(VARIABLE) or not _HELD.acquire(blocking=False):
        yield
        return
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _HELD.release()


@functools.cache
def _controller() -> Any:
    """Find the libraries that are loaded, which takes milliseconds: so only once."""
    importlib.import_module("scipy.linalg")  # JAX calls the BLAS of SciPy
    return ThreadpoolController()
