"""Find the inputs of every layer from the loss alone.

Layer-wise pruning needs the second moments of the inputs of each layer, and a network
is only known as ``loss_fn(params, batch)``. So its program is evaluated equation by
equation, and every prunable leaf is followed to the products it enters (see `walk`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.activations import constants, dependence
from swapjax.activations import view as views
from swapjax.activations.join import joins
from swapjax.activations.layer import Layer
from swapjax.activations.product import Product
from swapjax.activations.values import Frame, Value
from swapjax.activations.walk import walk
from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.compiled import Compiled
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.loops.convolutions.canonical import canonical_convolutions


def followed(
    loss_fn: LossFn, params: Params, batch: Any, paths: Sequence[str]
) -> tuple[str, ...]:
    """List the leaves that can be followed, from shapes alone.

    All, or leaves in turn, each with those before it that could be followed: of two
    that are multiplied with each other it is the first.

    Args:
        loss_fn: as in `second_moments`.
        params: the network.
        batch: of the loss, or its shapes and dtypes.
        paths: of the leaves.
    """
    known = tuple(paths)
    if _can_follow(loss_fn, params, batch, known):
        return known
    known = ()
    for path in paths:
        if _can_follow(loss_fn, params, batch, (*known, path)):
            known = (*known, path)
    return known


def _can_follow(
    loss_fn: LossFn, params: Params, batch: Any, paths: tuple[str, ...]
) -> bool:
    """Tell whether leaves can be followed together."""

    def look(params: Params, batch: Any) -> tuple[Layer, ...]:
        batches = jax.tree.map(lambda x: x[None], batch)
        several = has_branches(loss_fn, params, batches, paths)
        size = jax.tree.leaves(batch)[0].shape[0]
        products = find_products(
            loss_fn, params, batches, paths, one_by_one=several, batch=size
        )
        moments = [product.flat_moment() for product in products]
        return join_layers(params, paths, products, moments)

    try:
        jax.eval_shape(look, params, batch)
    except ValueError:
        return False
    return True


def second_moments(
    loss_fn: LossFn,
    params: Params,
    examples: Any,
    paths: Sequence[str],
    *,
    batch: int = 1,
    chunk: int = 256,
) -> tuple[Layer, ...]:
    """Measure what each prunable leaf is multiplied with, over some examples.

    One forward pass over chunks of examples. Only the moments outlive a chunk.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch whose leaves have
            a leading axis of examples.
        params: the network, any pytree of arrays.
        examples: a pytree of arrays with a leading axis of examples.
        paths: the prunable leaves, by the paths that `swapjax.plan` gives them.
        batch: examples that loss_fn takes at a time; divides their number.
        chunk: such batches that are evaluated at a time.

    Returns:
        One layer per prunable leaf, the moments in float32 or wider. The inputs of a
        convolution are ordered by the pixels of its kernel, then by channel.

    Raises:
        ValueError: for a path of no leaf, and examples that do not make whole batches;
            naming the leaf, for one that is used in no product with what depends on
            the data, as several matrices, or in any other way; and for activations
            that are not finite.
    """
    require_count("batch", batch)
    require_count("chunk", chunk)
    paths, known = tuple(paths), trees.paths(params)
    for path in paths:
        if path not in known:
            raise ValueError(f"paths: {path!r} is no leaf of params")
    count = trees.count_examples(examples)
    if count < 1 or count % batch:
        raise ValueError(
            f"examples: {count} of them do not make whole batches of batch={batch}"
        )
    layers = _measure((loss_fn, paths, batch, chunk), params, examples)
    trees.require_finite(paths, [layer.moment for layer in layers], "activations")
    return layers


@Compiled
def _measure(
    loss_fn: LossFn,
    paths: tuple[str, ...],
    batch: int,
    chunk: int,
    params: Params,
    examples: Any,
) -> tuple[Layer, ...]:
    """Average the moments over chunks; see `second_moments`."""
    batches = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), examples)
    n = jax.tree.leaves(batches)[0].shape[0]
    # Chunks of one size, then the few batches that are left.
    count = math.ceil(n / chunk)
    size = n // count
    left = n - count * size

    several = has_branches(loss_fn, params, batches, paths)

    def measure(start: jax.Array | int, size: int) -> list[Product]:
        data = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), batches
        )
        return find_products(
            loss_fn, params, data, paths, one_by_one=several, batch=batch
        )

    def add(total: list, start: jax.Array | int, size: int) -> list:
        found = measure(start, size)
        return [t + x.flat_moment() for t, x in zip(total, found, strict=True)]

    # Nobody asks for the moments of this one, so the compiler leaves its network out.
    products = measure(0, 1)
    total = [jnp.zeros_like(product.flat_moment()) for product in products]
    starts = size * jnp.arange(count, dtype=jnp.int32)
    step = lambda total, start: (add(total, start, size), None)  # noqa: E731

    def over_all(total: list) -> list:
        total = jax.lax.scan(step, total, starts)[0]
        return add(total, count * size, left) if left else total

    total = canonical_convolutions(over_all)(total)
    means = [t / (n * batch) for t in total]
    return join_layers(params, paths, products, means)


def join_layers(
    params: Params,
    paths: tuple[str, ...],
    products: Sequence[Product],
    moments: Sequence[jax.Array],
) -> tuple[Layer, ...]:
    """Join all the products with each leaf into its layer."""
    leaves = [leaf for _, leaf in _prunable(params, paths)]
    frame = Frame(paths, 0)
    mine = [
        [j for j, product in enumerate(products) if i in product.view.leaves]
        for i in range(len(leaves))
    ]
    fails = [
        functools.partial(frame.error, views.of_leaf(i, leaf.shape))
        for i, leaf in enumerate(leaves)
    ]
    found = joins(
        [[products[j] for j in several] for several in mine],
        [leaf.shape for leaf in leaves],
        fails,
    )
    result = []
    for i, (leaf, several, join) in enumerate(zip(leaves, mine, found, strict=True)):
        layer = join.layer(
            i, [products[j] for j in several], [moments[j] for j in several]
        )
        wide = trees.wide((layer.moment, leaf))
        result.append(dataclasses.replace(layer, moment=layer.moment.astype(wide)))
    return tuple(result)


def _prunable(params: Params, paths: tuple[str, ...]) -> list[tuple[int, Any]]:
    """List place and leaf of each path."""
    known, leaves = trees.paths(params), jax.tree.leaves(params)
    places = [known.index(path) for path in paths]
    return [(i, leaves[i]) for i in places]


def has_branches(
    loss_fn: Callable[[Any, Any], Any],
    params: Params,
    batches: Any,
    paths: tuple[str, ...],
) -> bool:
    """Tell whether data decide on branches with leaves, or how often they are used.

    Batches side by side would all take all of them, and JAX does not put rows of
    experts (``ragged_dot``) side by side.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
    program = jax.make_jaxpr(loss_fn)(params, one).jaxpr
    flags = [dependence.DATA] * len(program.invars)
    flags[: len(jax.tree.leaves(params))] = [
        dependence.LEAF if path in paths else dependence.CONSTANT
        for path in trees.paths(params)
    ]
    found: list = []
    dependence.flow(program, flags, found.append)
    return bool(found)


def find_products(
    loss_fn: Callable[[Any, Any], Any],
    params: Params,
    data: Any,
    paths: tuple[str, ...],
    *,
    one_by_one: bool,
    batch: int,
) -> list[Product]:
    """Find the products in a few batches [k, ...]; moments are summed, not averaged.

    Args:
        loss_fn: of params and a batch; it may return any arrays.
        params: the network.
        data: the batches.
        paths: the prunable leaves.
        one_by_one: whether batches are evaluated one after the other.
        batch: how many examples there are in each.
    """
    every, treedef = jax.tree.flatten(params)
    places = [i for i, _ in _prunable(params, paths)]
    leaves = tuple(every[i] for i in places)

    def losses(leaves: Leaves, data: Any) -> jax.Array:
        whole = list(every)
        for i, leaf in zip(places, leaves, strict=True):
            whole[i] = leaf
        # Made in the loss, as variables of nnx want to be where they are used.
        network = functools.partial(jax.tree.unflatten, treedef, whole)
        loss = lambda batch: loss_fn(network(), batch)  # noqa: E731
        return jax.lax.map(loss, data) if one_by_one else jax.vmap(loss)(data)

    with jax.default_matmul_precision("highest"):
        program = jax.make_jaxpr(losses)(leaves, data)
    inputs = [Value(x, view=views.of_leaf(i, x.shape)) for i, x in enumerate(leaves)]
    inputs += [Value(x, data=True) for x in jax.tree.leaves(data)]
    count = jax.tree.leaves(data)[0].shape[0]
    frame = Frame(paths, batch if one_by_one else count * batch)
    for value in walk(program.jaxpr, program.consts, inputs, frame):
        constants.settle(value, frame)
    return [
        product._replace(moment=frame.spread(product)) for product in frame.products
    ]
