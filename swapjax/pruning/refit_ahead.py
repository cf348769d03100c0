"""Re-fit the weights that are left so that what comes out some layers later stays."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.checks import require_count, take_amount
from swapjax.core.given_masks import take_masks
from swapjax.core.types import LossFn, Masks, Params
from swapjax.loops.examples import require_finite, take_to_host
from swapjax.pruning.solvers.ahead import Ahead, Curvature, Through
from swapjax.sparsity.masks import apply_masks


class Reconstructed(NamedTuple):
    """A network whose kept weights were fitted again.

    Attributes:
        params: zero where masks are False.
        history: what was done to each layer, in the order of the program.
    """

    params: Params
    history: "tuple[Refitted, ...]"


@dataclasses.dataclass(frozen=True)
class Refitted:
    """What was done to one layer.

    Attributes:
        layer: its path; ``blocks/kernel[3]`` for a slice of a stack.
        until: the layer whose outputs were compared.
        error: how far they were from those of the dense network before, and after:
            the sum of squares, relative to that of the dense values.
        steps: of Newton's method, that were taken.
        products: with the curvature.
        seconds: wall time, compilation included.
    """

    layer: str
    until: str
    error: tuple[float, float]
    steps: int
    products: int
    seconds: float


def reconstruct(
    loss_fn: LossFn,
    params: Params,
    masks: Masks,
    data: Any,
    *,
    dense: Params,
    ahead: int = 3,
    samples: int = 1000,
    batch: int = 100,
    through: Through = "pruned",
    curvature: Curvature = "gauss-newton",
    steps: int = 3,
    products: int = 30,
    damping: float = 1e-3,
    tolerance: float = 1e-3,
    callback: Callable[[Refitted], None] | None = None,
) -> Reconstructed:
    """Fit the weights of a pruned network again, for what comes out layers later.

    SNOWS (Lucas and Mazumder, ICLR 2025, arXiv:2411.18376), for masks of any method.
    Layer after layer, in the order of the program, the kept weights are moved so that
    the values which go on after ``ahead`` more layers are those of the dense network,
    in the sum of squares, with inputs that come from the layers fitted before. By
    Newton's method: conjugate gradients on products with the curvature, which are
    derivatives along a direction, and a line search. A layer is never left with more
    error than it had. Values of all examples stay on the host, those of one batch at a
    time are on the device.

    Args:
        loss_fn: ``loss_fn(params, batch)``, in inference mode. Its program tells the
            layers; losses and labels are not looked at.
        params: the pruned network.
        masks: its masks, as `swapjax.prune` returns them. Leaves of which they keep all
            by a scalar stay as they are.
        data: a pytree of arrays with a leading axis of examples, the first of which are
            taken.
        dense: the network before pruning.
        ahead: how many more layers what a layer makes goes through before it is
            compared; those with masks count. At 0 each layer's own outputs are, and the
            problem is that of layer-wise methods. Beyond the last layer, the outputs of
            the last.
        samples: how many examples at most.
        batch: examples on the device at a time.
        through: whose weights the layers passed through have: as they are so far, which
            are ``"pruned"``, or those of the ``"dense"`` network.
        curvature: ``"gauss-newton"`` is never negative; ``"hessian"`` is exact, as in
            the paper, and a system is left where it is not convex. Where all that
            follows is piecewise linear, as with ReLU, both are the same.
        steps: the most of Newton's method, for each layer.
        products: the most for each step.
        damping: added to the curvature, in units of that along the gradient.
        tolerance: of each system, relative; and the relative decrease of a step that is
            the last.
        callback: called with what was done to each layer.

    Returns:
        The network, and what was done.

    Raises:
        ValueError: for arguments out of range, masks and a dense network that are not
            of these params, params and data that are not finite, data of too few
            examples, and, naming it, a masked leaf that the program does not read, or
            both whole and in parts, or after which there is a ``jax.custom_vjp``.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> params = {"a": {"kernel": jnp.eye(4)}, "b": {"kernel": jnp.ones((4, 2))}}
        >>> def loss_fn(p, x):
        ...     return jnp.mean(jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"])
        >>> x = jax.random.normal(jax.random.key(0), (8, 4))
        >>> pruned = swapjax.prune(
        ...     loss_fn, params, x, sparsity=0.5, method=swapjax.magnitude())
        >>> found = swapjax.reconstruct(
        ...     loss_fn, pruned.params, pruned.masks, x, dense=params, samples=8)
        >>> [layer.layer for layer in found.history]
        ['a/kernel', 'b/kernel']
    """
    require_count("ahead", ahead, least=0)
    for name, count in (
        ("samples", samples),
        ("batch", batch),
        ("steps", steps),
        ("products", products),
    ):
        require_count(name, count)
    for name, value, kinds in (
        ("through", through, get_args(Through)),
        ("curvature", curvature, get_args(Curvature)),
    ):
        if value not in kinds:
            listed = " or ".join(map(repr, kinds))
            raise ValueError(f"{name} must be {listed}, got {value!r}")
    damping = take_amount("damping", damping)
    tolerance = take_amount("tolerance", tolerance, zero=False)
    masks = take_masks(masks, params)
    _require_alike(dense, params)
    for what, tree in (("params", params), ("dense", dense)):
        require_finite(tree, what)
    batches = _batches(data, samples, batch)
    network = Ahead(
        loss_fn, apply_masks(params, masks), masks, dense, batches, through=through,
        curvature=curvature,
    )  # fmt: skip
    history = []
    for number, layer in enumerate(network.layers):
        started = time.perf_counter()
        found, size = network.fit(
            number, ahead, steps=steps, products=products, damping=damping,
            tolerance=tolerance,
        )  # fmt: skip
        unit = size / 2 if size else 1.0
        refitted = Refitted(
            layer=network.name(layer),
            until=network.name(network.last(number, ahead)),
            error=(found.objective[0] / unit, found.objective[-1] / unit),
            steps=len(found.objective) - 1,
            products=found.products,
            seconds=time.perf_counter() - started,
        )
        history.append(refitted)
        if callback is not None:
            callback(refitted)
    return Reconstructed(network.params, tuple(history))


def _batches(data: Any, samples: int, batch: int) -> list[Any]:
    """Cut the first examples into batches of one size, on the host.

    Raises:
        ValueError: for data without examples, and entries that are not finite.
    """
    count = min(samples, trees.count_examples(data))
    if count < 1:
        raise ValueError("data: has no examples")
    batch = min(batch, count)
    arrays = take_to_host(jax.tree.map(lambda x: x[: count // batch * batch], data))
    require_finite(arrays, "data")
    return [
        jax.tree.map(lambda x, i=i: x[i : i + batch], arrays)
        for i in range(0, count // batch * batch, batch)
    ]


def _require_alike(dense: Params, params: Params) -> None:
    """Raise unless the dense network has the leaves of the pruned one.

    Raises:
        ValueError: naming the first that differs.
    """
    if trees.paths(dense) != trees.paths(params):
        raise ValueError("dense: must have the tree of params")
    pairs = zip(jax.tree.leaves(dense), jax.tree.leaves(params), strict=True)
    for path, (old, new) in zip(trees.paths(params), pairs, strict=True):
        kinds = [f"{x.dtype} of shape {np.shape(x)}" for x in (new, old)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"dense: {path} must be {kinds[0]}, got {kinds[1]}")
