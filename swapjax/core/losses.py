"""What a loss function returns, looked at before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp


def require_scalar(
    returned: Any, *, differentiable: bool = True, name: str = "loss_fn"
) -> None:
    """Raise unless a loss function returns one real number.

    Args:
        returned: what it returns, or the shapes and dtypes of that.
        differentiable: whether gradients of it are wanted, which only floats have.
        name: of the function.

    Raises:
        ValueError: for anything else, naming what is wanted.
    """
    leaves, treedef = jax.tree.flatten(returned)
    if not jax.tree_util.treedef_is_leaf(treedef) or len(leaves) != 1:
        kind, parts = type(returned).__name__, len(leaves)
        if isinstance(returned, tuple | list):
            parts = len(returned)
        raise ValueError(
            f"{name} must return one scalar, the mean loss of a batch, got a "
            f"{kind} of {parts}; return the loss alone, or hand over "
            "swapjax.Loss(loss_fn, has_aux=True)"
        )
    shape, dtype = jnp.shape(leaves[0]), jnp.result_type(leaves[0])
    got = f"{dtype}[{','.join(map(str, shape))}]"
    if shape:
        raise ValueError(
            f"{name} must return one scalar, the mean loss of a batch, got {got}"
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} must return a real number, got {got}; take jnp.real or jnp.abs"
        )
    if differentiable and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must return a float to have gradients, got {got}; such a loss "
            "will do for methods that look at weights alone"
        )
