"""SynFlow: which weights the paths from inputs to outputs go through, without data.

``R = sum of outputs`` of the network with every weight replaced by its absolute value,
on an input of ones, is a sum over paths. ``w dR/dw`` is the part of R that goes through
an entry. It leaves float32 in deep networks, where only the order is wanted: any scale
that all entries share will do.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves, Params
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.pruning.by_score import by_score
from swapjax.pruning.method import Method, Problem, layout_of, params_of
from swapjax.sparsity.masks import apply_masks

Total = Callable[[Leaves, jax.Array | float], jax.Array]

_PLAIN, _BY_LEAF, _BY_INPUT = range(3)  # what is scaled, in the order of trying
_REACH = 0.0, 16.0, 80.0  # of the logarithm of the scale; float32 ends at 87
_STEP = 1e-4  # of that logarithm
_COMFORT = 1e20  # R and its inverse, far from the ends of float32
_EULER = 1e-3  # what Euler's identity may miss by rounding


def synflow(
    apply: Callable[[Params, jax.Array], Any],
    shape: tuple[int, ...],
    *,
    additive: str = r"(^|[/._])(bias|mean)$",
) -> Method:
    """Prune before training by what each weight carries from inputs to outputs.

    The entries with the largest ``|w dR/dw|`` are kept (Tanaka et al., NeurIPS 2020,
    arXiv:2006.05467). In one stage high sparsities can empty whole layers; meant for
    ``stages=100`` and ``schedule=schedules.geometric()``. Needs no data: what `prune`
    is given only tells the losses of its history, so that few samples will do. Takes
    one reverse pass of one example, where R leaves float32 some forty forward ones too,
    and O(p) memory.

    All leaves are replaced by their absolute values, but those that add something, by
    zero: without them the scores of every layer that all paths go through sum up to R.
    Biases would break that, and the scales below. Variances of batch norm are positive
    already. Leaves of whole numbers stay.

    Where R is near the ends of float32, each leaf is scaled by a constant, which gives
    all scores one more factor if R is a power of the scale of every leaf; that is
    measured. If it is not, as with residual connections, the input and the outputs are
    scaled, which reaches to R of about 1e60; beyond that status tells of scores that
    are not finite. Both need activations with ``f(a x) = a f(x)`` for a > 0, such as
    ReLU, and no normalisation but by constants. Elsewhere nothing is scaled.

    Args:
        apply: ``apply(params, x) -> outputs``, in inference mode: with batch norm by
            running statistics. x is [1, *shape], floats.
        shape: of one example.
        additive: a regular expression searched in the paths of leaves, for those that
            add to what they meet.

    Returns:
        The method, for `swapjax.prune`. It reports no details.

    Raises:
        ValueError: for an apply that is no function or has no hash, a shape of other
            than positive whole numbers, and what is no regular expression.
    """
    if not callable(apply):
        raise ValueError(f"apply must be a function of params and x, got {apply!r}")
    try:
        hash(apply)
    except TypeError:
        raise ValueError("apply must have a hash, as functions do") from None
    try:
        shape = tuple(shape)
    except TypeError:
        raise ValueError(f"shape must be that of one example, got {shape!r}") from None
    for size in shape:
        require_count("shape", size)
    try:
        adds = re.compile(additive)
    except (re.error, TypeError) as e:
        raise ValueError(
            f"additive: {additive!r} is not a regular expression: {e}"
        ) from None

    settings = (
        ("apply", _Named(apply)),
        ("shape", shape),
        ("additive", additive),
    )

    def score(problem: Problem) -> Leaves:
        return carried(problem, apply, shape, adds)

    return by_score(
        "synflow", score, settings=settings, needs_rows=False, needs_params=True
    )


def carried(
    problem: Problem, apply: Callable, shape: tuple[int, ...], adds: re.Pattern
) -> Leaves:
    """Compute the scores of `synflow`, up to a factor that they share.

    Args:
        problem: with params.
        apply: the network.
        shape: of one example.
        adds: what is found in the paths of leaves that add something.
    """
    rest, weights = params_of(problem), problem.weights
    layout = layout_of(problem)
    if problem.within is not None:
        weights = apply_masks(weights, problem.within)
    wide = trees.wide(weights)
    rest = _positive(rest, adds, wide)

    def total(leaves: Leaves, scale: jax.Array | float) -> jax.Array:
        network = layout.merge(leaves, rest)
        x = jnp.ones((1, *shape), wide) * scale
        with jax.default_matmul_precision("highest"):
            outputs = jax.tree.leaves(apply(network, x))
        # A mean keeps R at the size of one activation.
        parts = [jnp.sum(out.astype(wide)) for out in outputs]
        return jnp.stack(parts).sum() / sum(out.size for out in outputs)

    return shares(total, tuple(jnp.abs(w).astype(wide) for w in weights))


def shares(total: Total, sizes: Leaves) -> Leaves:
    """Compute ``w dR/dw`` for all entries, up to a factor that they share.

    Args:
        total: R of the prunable leaves and of a scale of the input.
        sizes: the leaves, 0 or more.
    """
    wide = trees.wide(sizes)
    # A dense layer of i inputs and o outputs grows activations by sum/o on average;
    # sum/sqrt(i o) is the same over a chain of layers, and asks for no axes.
    even = tuple(
        s * (math.sqrt(s.size) / jnp.where(jnp.any(s > 0), jnp.sum(s), 1))
        for s in sizes
    )

    def scaled(way: jax.Array, t: jax.Array) -> tuple[Leaves, jax.Array]:
        leaves = tuple(
            jnp.where(way == _BY_LEAF, jnp.exp(t) * e, s)
            for e, s in zip(even, sizes, strict=True)
        )
        return leaves, jnp.where(way == _BY_INPUT, jnp.exp(t), 1)

    def flow(leaves: Leaves, scale: jax.Array) -> jax.Array:
        # By input, activations then run from 1/sqrt(R) to sqrt(R), and gradients back.
        return scale * total(leaves, scale)

    # One program for all three ways, since networks take long to compile.
    def attempt(state: tuple) -> tuple:
        way = state[0] + 1
        reach = jnp.asarray(_REACH, wide)[way]
        t = _bisect(lambda t: flow(*scaled(way, t)), reach)
        leaves, scale = scaled(way, t)
        differentiated = canonical_convolutions(jax.value_and_grad(flow))
        value, slopes = differentiated(leaves, scale)
        parts = tuple(jnp.abs(x * s) for x, s in zip(leaves, slopes, strict=True))
        comfortable = (value > 1 / _COMFORT) & (value < _COMFORT)
        holds = jnp.where(way == _PLAIN, comfortable, _homogeneous(value, parts))
        return way, parts, (way == _BY_INPUT) | (holds & _finite(parts))

    start = jnp.asarray(_PLAIN - 1), sizes, jnp.asarray(False)
    return jax.lax.while_loop(lambda state: ~state[2], attempt, start)[1]


def _homogeneous(value: jax.Array, parts: Leaves) -> jax.Array:
    """Whether R is a power of the scale of every leaf, by Euler's identity.

    ``sum_q w_q dR/dw_q = k R`` then, with k = 1 for a layer that all paths go through
    once, and more for layers stacked in a leaf.
    """
    powers = jnp.stack([jnp.sum(part) for part in parts]) / value
    whole = jnp.round(powers)
    return jnp.all((whole >= 1) & (jnp.abs(powers - whole) <= _EULER * whole))


def _bisect(rising: Callable[[jax.Array], jax.Array], reach: jax.Array) -> jax.Array:
    """Where in [-reach, reach] a function passes 1; 0 where it is 0 before.

    What overflowed counts as too large, NaN too, which comes of 0 times infinity.
    """

    def halve(state: tuple) -> tuple:
        low, high, positive = state
        middle = (low + high) / 2
        value = rising(middle)
        below = value < 1
        return (
            jnp.where(below, middle, low),
            jnp.where(below, high, middle),
            jnp.where(below, value > 0, positive),
        )

    start = -reach, reach, jnp.asarray(False)
    wide = lambda state: state[1] - state[0] > _STEP  # noqa: E731
    low, _, positive = jax.lax.while_loop(wide, halve, start)
    return jnp.where(positive, low, 0)


def _finite(leaves: Leaves) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _positive(params: Params, adds: re.Pattern, wide: jnp.dtype) -> Params:
    """Make the network without what adds, and without signs."""

    def one(path: str, leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        leaf = jnp.zeros_like(leaf) if adds.search(path) else jnp.abs(leaf)
        return leaf.astype(wide)

    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, map(one, trees.paths(params), leaves))


@dataclasses.dataclass(frozen=True, repr=False)
class _Named:
    """A function that prints as its name, without an address, in every process alike.

    Attributes:
        function: any that has a hash.
    """

    function: Callable

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__name__)
