"""What a function returns, and how far off that is with other params."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import keys
from swapjax.core.static_leaves import of_arrays
from swapjax.core.types import Params


def outputs_of(
    function: Callable[..., Any], params: Params, inputs: Sequence[Any]
) -> list[Any]:
    """Call a function, compiled as a whole, and list the arrays that it returns."""
    arrays, of_list = of_arrays(function, params)
    with jax.default_matmul_precision("highest"):
        results = jax.jit(of_list)(arrays, *inputs)
    return jax.tree.leaves(results)


def error_of(
    function: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    wanted: Sequence[Any],
) -> float:
    """Tell how far outputs are off, of the largest; infinity where shapes are."""
    try:
        found = outputs_of(function, params, inputs)
    except Exception:  # a module that knows its sizes says so in its own way
        return float("inf")
    return max(map(_difference, wanted, found), default=0.0)


def _difference(wanted: Any, found: Any) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    a, b = (np.asarray(keys.bits(x)) for x in (wanted, found))
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(kind), b.astype(kind)
    apart = a != b  # infinities that are the same are not
    if not apart.any():
        return 0.0
    sizes = np.abs(a)
    largest = float(np.max(sizes, where=np.isfinite(sizes), initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        off = float(np.max(np.abs(a[apart] - b[apart]))) / largest
    return off if off == off else float("inf")


def halves(arrays: Sequence[Any]) -> set[Any]:
    """List the dtypes of floats of less than 32 bits."""
    dtypes = {jnp.asarray(x).dtype if np.isscalar(x) else x.dtype for x in arrays}
    return {d for d in dtypes if jnp.issubdtype(d, jnp.floating) and d.itemsize < 4}
