"""Find the inputs of every layer from the loss alone.

Layer-wise pruning needs the second moments of the inputs of each layer, and a network
is only known as ``loss_fn(params, batch)``. So its program is evaluated equation by
equation. Every prunable leaf is followed through equations that only rearrange it
(transposes, reshapes, flips, changes of dtype) and into programs that are called
(``jit``, ``jax.checkpoint``, functions with custom derivatives). Where it enters a
``dot_general``, or is the kernel of a ``conv_general_dilated``, the other operand is
the input of its layer. A leaf that enters any other equation is not a layer, which
raises an error that names it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations.layer import Layer, Product, View, of_convolution, of_dot
from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.compiled import Compiled
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.roles.primitives import CALLS, MOVES, SAME

_LOOPS = {"scan", "while", "cond"}


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
            the data, as several matrices, within a loop or a branch, or in any other
            way; and for activations that are not finite.
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

    def measure(start: jax.Array | int, size: int) -> tuple[Layer, ...]:
        data = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), batches
        )
        return _find(loss_fn, params, data, paths)

    def add(total: Leaves, start: jax.Array | int, size: int) -> Leaves:
        layers = measure(start, size)
        return tuple(t + x.moment for t, x in zip(total, layers, strict=True))

    # Nobody asks for the moments of this one, so the compiler leaves its network out.
    layers = measure(0, 1)
    total = tuple(jnp.zeros_like(layer.moment) for layer in layers)
    starts = size * jnp.arange(count, dtype=jnp.int32)
    step = lambda total, start: (add(total, start, size), None)  # noqa: E731
    total = jax.lax.scan(step, total, starts)[0]
    if left:
        total = add(total, count * size, left)
    return tuple(
        Layer(t / (n * batch), layer.index)
        for t, layer in zip(total, layers, strict=True)
    )


class _Value(NamedTuple):
    """A variable of the program.

    Attributes:
        array: its value.
        data: whether the value depends on the data.
        view: the leaf that it is a rearrangement of, or None.
    """

    array: Any
    data: bool = False
    view: View | None = None


def _find(
    loss_fn: LossFn, params: Params, data: Any, paths: tuple[str, ...]
) -> tuple[Layer, ...]:
    """Find the layers of a few batches [k, b, ...]; moments are summed, not averaged.

    Args:
        loss_fn: of params and a batch.
        params: the network.
        data: the batches.
        paths: the prunable leaves.
    """
    every, treedef = jax.tree.flatten(params)
    known = trees.paths(params)
    places = [known.index(path) for path in paths]
    leaves = tuple(every[i] for i in places)

    def losses(leaves: Leaves, data: Any) -> jax.Array:
        whole = list(every)
        for i, leaf in zip(places, leaves, strict=True):
            whole[i] = leaf
        network = jax.tree.unflatten(treedef, whole)
        return jax.vmap(lambda batch: loss_fn(network, batch))(data)

    with jax.default_matmul_precision("highest"):
        program = jax.make_jaxpr(losses)(leaves, data)
    inputs = [_Value(x, view=View(i, x.shape)) for i, x in enumerate(leaves)]
    inputs += [_Value(x, data=True) for x in jax.tree.leaves(data)]
    products: list[Product] = []
    _walk(program.jaxpr, program.consts, inputs, products, paths)
    return tuple(
        _join([p for p in products if p.view.leaf == i], path, leaf)
        for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
    )


def _join(products: list[Product], path: str, leaf: jax.Array) -> Layer:
    """Join all the products with a leaf into one layer."""
    if not products:
        raise _error(path, "is in no product with what depends on the data")
    for other in products[1:]:
        # Places depend on shapes alone, so they are known while the program is traced.
        with jax.ensure_compile_time_eval():
            same = jnp.array_equal(products[0].places(), other.places())
        if not same:
            raise _error(path, "is used as several matrices")
    moment = products[0].moment
    for other in products[1:]:
        moment = moment + other.moment
    wide = trees.wide((moment, leaf))
    return Layer(moment.astype(wide), products[0].places())


def _walk(
    program: core.Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[_Value],
    products: list[Product],
    paths: tuple[str, ...],
) -> list[_Value]:
    """Evaluate a program, and append each product with a leaf to `products`."""
    values: dict[core.Var, _Value] = {}

    def read(atom: core.Var | core.Literal) -> _Value:
        return _Value(atom.val) if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(program.constvars, map(_Value, consts), strict=True))
    values.update(zip(program.invars, inputs, strict=True))
    for eqn in program.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = _evaluate(eqn, operands, products, paths)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _evaluate(
    eqn: core.JaxprEqn,
    operands: list[_Value],
    products: list[Product],
    paths: tuple[str, ...],
) -> list[_Value]:
    """Evaluate one equation."""
    name = eqn.primitive.name
    if name in CALLS:
        inner = eqn.params[CALLS[name]]
        closed = isinstance(inner, core.ClosedJaxpr)
        program, consts = (inner.jaxpr, inner.consts) if closed else (inner, ())
        return _walk(program, consts, operands, products, paths)

    result = eqn.primitive.bind(*(value.array for value in operands), **eqn.params)
    arrays = result if eqn.primitive.multiple_results else [result]
    data = any(value.data for value in operands)
    views = [value.view for value in operands if value.view is not None]
    if not views:
        return [_Value(array, data) for array in arrays]

    view = views[0]
    if len(arrays) > 1:
        _product(eqn, operands, paths[view.leaf])  # says that it is none
    (array,) = arrays
    if name in SAME:
        return [_Value(array, data, view)]
    if name in MOVES and array.size == math.prod(view.shape):
        return [_Value(array, data, view._replace(moves=(*view.moves, eqn)))]
    products.append(_product(eqn, operands, paths[view.leaf]))
    return [_Value(array, data)]


def _product(eqn: core.JaxprEqn, operands: list[_Value], path: str) -> Product:
    """Read the product off an equation that a leaf enters.

    Raises:
        ValueError: when it is not one.
    """
    name = eqn.primitive.name
    if name in _LOOPS:
        raise _error(path, f"is used within {name}, where it cannot be followed")
    if name not in ("dot_general", "conv_general_dilated"):
        raise _error(path, f"enters the loss through {name}")
    which = 0 if operands[0].view is not None else 1
    leaf, other = operands[which], operands[1 - which]
    assert leaf.view is not None
    if not other.data:
        raise _error(path, "is multiplied with what does not depend on the data")
    if name == "dot_general":
        return of_dot(eqn, leaf.view, which, leaf.array.shape, other.array)
    if which == 0:
        raise _error(path, "is convolved as an image, not as a kernel")
    if eqn.params["batch_group_count"] > 1:
        raise _error(path, "is the kernel of a convolution with groups of examples")
    return of_convolution(eqn, leaf.view, leaf.array.shape, other.array)


def _error(path: str, what: str) -> ValueError:
    return ValueError(
        f"params: {path} {what}, so it is not the matrix of a layer; leave it out with "
        "swapjax.plan(..., exclude=...), or use a method that is not layer-wise"
    )
