"""Each layer as a function of its weights alone, up to what comes out layers later.

Two streams of values go through the program, those of the pruned network and those of
the dense one. Both stay on the host between layers, a batch at a time on the device.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.segments import Program, Segment
from swapjax.activations.segments_code import Run
from swapjax.activations.segments_unroll import Ref
from swapjax.core import trees
from swapjax.core.types import LossFn, Masks, Params
from swapjax.pruning.solvers.newton import Minimum, minimise

Through = Literal["dense", "pruned"]
Curvature = Literal["gauss-newton", "hessian"]
_Values = dict[int, Any]


class LayerUse(NamedTuple):
    """A layer, and the operations from the first to after the last that read it."""

    ref: Ref
    start: int
    stop: int


class Ahead:
    """A pruned network that is fitted to a dense one, layer after layer.

    Args:
        loss_fn: tells the program.
        params: the pruned network, zero off masks.
        masks: with the tree of params.
        dense: the network before pruning.
        batches: pytrees of arrays of NumPy, of one shape.
        through: whose weights later layers have.
        curvature: of the objective.

    Attributes:
        layers: in the order of the program.

    Raises:
        ValueError: for masked leaves that cannot be told apart in the program.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        params: Params,
        masks: Masks,
        dense: Params,
        batches: Sequence[Any],
        *,
        through: Through,
        curvature: Curvature,
    ) -> None:
        self._tree = jax.tree.structure(params)
        self._leaves, self._dense = jax.tree.leaves(params), jax.tree.leaves(dense)
        self._masks, self._through = jax.tree.leaves(masks), through
        paths = trees.paths(params)
        masked = [i for i, mask in enumerate(self._masks) if np.ndim(mask)]
        named = [paths[i] for i in masked]
        self._program = Program(loss_fn, params, batches[0], named)
        self.layers = _find(self._program, masked)
        inputs = [self._program.inputs(batch) for batch in batches]
        self._place, self._pruned, self._aims = 0, inputs, list(inputs)
        product = _gauss_newton if curvature == "gauss-newton" else _hessian
        jit = functools.partial(jax.jit, static_argnums=(0, 1))
        self._outputs, self._value = jit(_outputs), jit(_value)
        self._gradient, self._product = jit(_gradient), jit(product)

    @property
    def params(self) -> Params:
        """The network as it is now."""
        return jax.tree.unflatten(self._tree, self._leaves)

    def name(self, layer: LayerUse) -> str:
        """Name a layer by its path, and its place in a stack."""
        row = "" if layer.ref.row is None else f"[{layer.ref.row}]"
        return self._program.paths[layer.ref.leaf] + row

    def last(self, number: int, ahead: int) -> LayerUse:
        """Find the layer whose outputs are compared when one is fitted."""
        return max(self.layers[number : number + ahead + 1], key=lambda x: x.stop)

    def fit(self, number: int, ahead: int, **newton: Any) -> tuple[Minimum, float]:
        """Fit a layer; those before it first.

        Args:
            number: of the layer.
            ahead: how many layers later to compare.
            newton: as `minimise` takes them.

        Returns:
            What came of it, and the sum of squares of the dense values.
        """
        layer = self.layers[number]
        self._advance(layer.start)
        part = self._program.segment(layer.start, self.last(number, ahead).stop)
        here, held = part.reads.index(layer.ref), self._held(part, number)
        fixed = part.run, here
        dense = part.take(self._dense)
        taken = [[values[i] for i in part.takes] for values in self._pruned]
        aims = [
            jax.device_get(
                self._outputs(
                    *fixed, dense[here], dense, part.constants,
                    [values[i] for i in part.takes],
                )
            )
            for values in self._aims
        ]  # fmt: skip

        def over(function: Callable, *weights: jax.Array) -> list:
            return [
                function(*fixed, weights[0], held, part.constants, x, aim, *weights[1:])
                for x, aim in zip(taken, aims, strict=True)
            ]

        def gradient(w: jax.Array) -> tuple[float, jax.Array]:
            values, slopes = zip(*over(self._gradient, w), strict=True)
            return sum(map(float, values)), sum(slopes[1:], start=slopes[0])

        def product(w: jax.Array, v: jax.Array) -> jax.Array:
            with _naming(self.name(layer)):
                found = over(self._product, w, v)
            return sum(found[1:], start=found[0])

        leaf = layer.ref.of(self._leaves[layer.ref.leaf])
        found = minimise(
            lambda w: sum(map(float, over(self._value, w))),
            gradient,
            product,
            leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)),
            jnp.asarray(layer.ref.of(self._masks[layer.ref.leaf])),
            **newton,
        )
        self._put(layer.ref, found.weights)
        size = sum(
            float(np.sum(np.square(a, dtype=np.float64))) for x in aims for a in x
        )
        return found, size

    def _advance(self, place: int) -> None:
        """Let both streams go on to a place of the program."""
        part = self._program.segment(self._place, place)
        self._pruned = _go_on(part, self._leaves, self._pruned)
        self._aims = _go_on(part, self._dense, self._aims)
        self._place = place

    def _held(self, part: Segment, number: int) -> tuple[Any, ...]:
        """Take what a part reads while a layer is fitted."""
        later = {layer.ref for layer in self.layers[number + 1 :]}
        return tuple(
            ref.of((self._dense if is_dense else self._leaves)[ref.leaf])
            for ref in part.reads
            for is_dense in [self._through == "dense" and ref in later]
        )

    def _put(self, ref: Ref, weights: jax.Array) -> None:
        old = self._leaves[ref.leaf]
        new = weights.astype(old.dtype)
        if ref.row is not None:
            new = jnp.asarray(old).at[ref.row].set(new)
        self._leaves[ref.leaf] = new


@contextlib.contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Name the layer where JAX says that there is no forward derivative.

    Raises:
        ValueError: in the place of the TypeError of JAX.
    """
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise ValueError(
            f"loss_fn: what {layer} makes goes through a jax.custom_vjp, which has no "
            "forward derivative, and products with the curvature take one; use "
            f"jax.custom_jvp, or give {layer.split('[')[0]} a scalar True in masks"
        ) from None


def _find(program: Program, masked: Sequence[int]) -> tuple[LayerUse, ...]:
    """Find the layers among what operations read, in order of their first use."""
    spans: dict[Ref, tuple[int, int]] = {}
    for number, operation in enumerate(program.unrolled.operations):
        for ref in program.unrolled.reads(operation):
            start, _ = spans.get(ref, (number, number))
            spans[ref] = start, number + 1
    wanted = set(masked)
    found = [LayerUse(ref, *span) for ref, span in spans.items() if ref.leaf in wanted]
    for leaf in masked:
        rows = {layer.ref.row for layer in found if layer.ref.leaf == leaf}
        if not rows:
            raise ValueError(
                f"masks: {program.paths[leaf]} is not reached by the program of loss_fn"
            )
        if None in rows and len(rows) > 1:
            raise ValueError(
                f"masks: {program.paths[leaf]} is read as a whole and in slices by the "
                "program of loss_fn; give it a scalar True"
            )
    return tuple(sorted(found, key=lambda layer: (layer.start, layer.ref)))


def _go_on(
    part: Segment, leaves: Sequence[Any], several: Sequence[_Values]
) -> list[_Values]:
    """Run a part for every batch, and bring what is needed later to the host."""
    read = part.take(leaves)
    return [
        part.after(values, jax.device_get(part(read, values))) for values in several
    ]


def _outputs(
    run: Run,
    place: int,
    leaf: jax.Array,
    leaves: Sequence[Any],
    constants: Sequence[Any],
    values: Sequence[Any],
) -> tuple[jax.Array, ...]:
    """Run a part with one of its leaves replaced; of what it gives take floats."""
    leaf = leaf.astype(leaves[place].dtype)
    found = run([*leaves[:place], leaf, *leaves[place + 1 :]], constants, values)
    return tuple(
        x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for x in found
        if jnp.issubdtype(x.dtype, jnp.floating)
    )


def _value(
    run: Run,
    place: int,
    leaf: jax.Array,
    leaves: Sequence[Any],
    constants: Sequence[Any],
    values: Sequence[Any],
    aims: Sequence[Any],
) -> jax.Array:
    """Half the sum of squares between what a part gives and what it should."""
    found = _outputs(run, place, leaf, leaves, constants, values)
    return _half(found, aims)


def _half(found: Sequence[jax.Array], aims: Sequence[Any]) -> jax.Array:
    squares = (jnp.sum(jnp.square(x - y)) for x, y in zip(found, aims, strict=True))
    return 0.5 * sum(squares, start=jnp.zeros(()))


def _gradient(run: Run, place: int, leaf: jax.Array, *given: Any) -> Any:
    return jax.value_and_grad(lambda w: _value(run, place, w, *given))(leaf)


def _gauss_newton(run: Run, place: int, leaf: jax.Array, *given: Any) -> jax.Array:
    """``J^T J v``, with J the derivative of what a part gives."""
    leaves, constants, values, _, v = given

    def outputs(w: jax.Array) -> tuple[jax.Array, ...]:
        return _outputs(run, place, w, leaves, constants, values)

    _, pushed = jax.jvp(outputs, (leaf,), (v,))
    return jax.vjp(outputs, leaf)[1](pushed)[0]


def _hessian(run: Run, place: int, leaf: jax.Array, *given: Any) -> jax.Array:
    slope = jax.grad(lambda w: _value(run, place, w, *given[:-1]))
    return jax.jvp(slope, (leaf,), (given[-1],))[1]
