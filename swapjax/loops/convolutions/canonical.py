"""The same function with convolutions that are fast in loops on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend import core

from swapjax.loops.convolutions.program import Rewriter

Function = TypeVar("Function", bound=Callable)


def canonical_convolutions(fn: Function) -> Function:
    """Make the convolutions of a function fast in loops on a CPU.

    XLA for CPUs has fast kernels for convolutions of one layout, and brings others into
    it in the outermost computation only. Gradients of convolutions have others, and
    take 10 to 100 times as long in the body of ``jax.lax.scan``, ``map``,
    ``while_loop`` or ``cond``. Here every ``conv_general_dilated`` of the traced
    function, in the programs that it calls and in its own loops too, is written in that
    layout, with transposes around it; one with one channel a group as a sum of shifted
    products; one with one pixel as a matrix product. What has no such form stays as it
    is. Results are the same up to rounding.

    Wrap what differentiates, not what is differentiated, and what calls ``jax.vmap``,
    not what it maps: both make convolutions of other forms. Call it in ``jax.jit``, or
    in a loop, since it traces at every call.

    On other back ends the function is called as it is. `jax.default_backend` decides,
    or ``jax.default_device`` where that is set, when the function is traced: a program
    that is then exported for another platform keeps the layout of CPUs, with the same
    result.

    Args:
        fn: a pure function of pytrees. JAX arrays are traced as `jax.jit` does; all
            else that it takes reaches it as it is, and what it returns is returned as
            it is.

    Returns:
        A function of the same arguments.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> def loss(kernel, image):
        ...     return jnp.sum(jax.lax.conv(image, kernel, (1, 1), "SAME") ** 2)
        >>> gradient = swapjax.canonical_convolutions(jax.grad(loss))
        >>> @jax.jit
        ... def sum_of_gradients(kernel, images):
        ...     step = lambda total, image: (total + gradient(kernel, image), None)
        ...     return jax.lax.scan(step, jnp.zeros_like(kernel), images)[0]
        >>> sum_of_gradients(jnp.ones((4, 3, 3, 3)), jnp.ones((5, 2, 3, 8, 8))).shape
        (4, 3, 3, 3)
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if platform() != "cpu":
            return fn(*args, **kwargs)
        taken, rebuild = _arrays_of((args, kwargs))
        restore: Callable[[list], Any] = list

        def traced(*arrays: jax.Array) -> list:
            nonlocal restore
            args, kwargs = rebuild(arrays)
            found, restore = _arrays_of(fn(*args, **kwargs))
            return found

        program = jax.make_jaxpr(traced)(*taken)
        rewriter = Rewriter()
        if not rewriter.changes(program.jaxpr):
            return restore(core.jaxpr_as_fun(program)(*taken))
        return restore(rewriter.evaluate(program.jaxpr, program.consts, taken))

    return call  # type: ignore[return-value]


def platform() -> str:
    """Tell what is traced now is meant for: ``"cpu"``, ``"gpu"``, ``"tpu"``."""
    device = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    name = getattr(device, "platform", device)
    return "gpu" if name in ("cuda", "rocm") else name


def _arrays_of(tree: Any) -> tuple[list, Callable]:
    """Take the JAX arrays out of a tree, and tell how to put others in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    found = [leaves[i] for i in places]

    def put(arrays: Any) -> Any:
        whole = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            whole[i] = array
        return jax.tree.unflatten(treedef, whole)

    return found, put
