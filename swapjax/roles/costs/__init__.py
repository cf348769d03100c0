"""What each leaf costs: multiplications of the products it enters, by the program.

The program is evaluated as far as it does without data: casts, transposes, slices and
scales of leaves are done, so that each product sees the matrix it is given, zeros and
all. What depends on data is known by its shape alone.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.static_leaves import are_arrays, of_arrays
from swapjax.core.types import Params
from swapjax.roles.costs.tally import Costs, Count, Tally, Value
from swapjax.roles.costs.walk import walk

__all__ = ["Costs", "Count", "count_products"]


def count_products(
    function: Callable[[Params, Any], Any], params: Params, batch: Any
) -> Costs:
    """Count the multiplications of a function of params and a batch, leaf by leaf.

    Those of convolutions and matrix products, exact from shapes; those with the zeros
    around an image count. Steps of loops count, as often as the program tells.

    Args:
        function: ``apply(params, x)`` or ``loss_fn(params, batch)``.
        params: a pytree of arrays, or of their shapes and dtypes, of which no zeros are
            known.
        batch: what function takes, arrays or shapes and dtypes.

    Returns:
        The counts.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.eye(8)}
        >>> costs = count_products(lambda p, x: x @ p["w"], params, jnp.ones((2, 8)))
        >>> costs.leaves[0]
        Count(macs=128, left=16)
    """
    leaves = jax.tree.leaves(params)
    places = [i for i, is_array in enumerate(are_arrays(leaves)) if is_array]
    arrays, of_list = of_arrays(function, params)
    program = jax.make_jaxpr(of_list)(arrays, batch)
    tally = Tally([math.prod(np.shape(leaf)) for leaf in leaves])
    inputs = [
        Value(None if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x), (i,))
        for i, x in zip(places, arrays, strict=True)
    ]
    inputs += [Value(data=True)] * len(jax.tree.leaves(batch))
    # Products are done as they are written, whoever is tracing around this.
    with jax.ensure_compile_time_eval():
        walk(program, inputs, tally, 1)
    return tally.costs()
