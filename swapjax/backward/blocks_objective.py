"""Dropping whole blocks of gradients, so that products shrink, as an objective."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from swapjax.backward.address import Site, equation_at
from swapjax.backward.blocks import Along, Blocks, blocks_of, dropped
from swapjax.backward.graph import Graph
from swapjax.backward.products import products_of, site_of
from swapjax.backward.rewrite import Do
from swapjax.backward.sampling import own_key
from swapjax.backward.shared import (
    Traced,
    keys_after,
    keys_before,
    loss_alone,
    pass_back,
    require_new_key,
    require_state,
    take_loss,
    trace_loss,
)
from swapjax.core import trees
from swapjax.core.checks import require_count, require_fraction
from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Params

_OWN = np.uint32(2**32 - 4)  # apart from what losses fold into their keys
_CHANNELS = 128  # of a block


class BlocksState(NamedTuple):
    """The state of `drop_blocks`.

    Attributes:
        step: steps taken, ``int32[]``.
        key: what tells the key of the last step from others, ``uint32[2]``.
        repeated: steps that had the key of the step before, ``int32[]``.
        inner: the state of the objective that is differentiated.
    """

    step: jax.Array
    key: jax.Array
    repeated: jax.Array
    inner: Any


class _Settings(NamedTuple):
    """The arguments of `drop_blocks`, checked."""

    inner: Objective
    keep: float
    along: Along
    size: int


def drop_blocks(
    loss_fn: LossFn | Objective,
    *,
    keep: float = 0.25,
    along: Along = "examples",
    block: int | Literal["channel", "example"] | None = None,
) -> Objective:
    """Drop whole blocks of the gradients that a loss sends back, at random.

    At each product of a weight with data, blocks of the gradient of its output are
    drawn by their norms, without replacement and as many each time; what is kept is
    divided by its probability, so that the expectation is the exact gradient. Both
    products of the backward pass take the blocks that were kept only, gathered into
    smaller arrays of fixed shapes: unlike single zeros, that saves time.

    Blocks of examples are dropped once: a gradient that has lost an example has lost it
    in all layers before, unless they mix examples as batch norm does, and nothing more
    is drawn there. Blocks of channels are dropped anew in every layer: their variance
    adds up, and they save less, since the gradient of the weight keeps its shape. With
    a quarter of the channels kept training diverged on both networks that were measured
    at the learning rate of exact gradients; a quarter of the examples cost at most half
    a point of accuracy there.

    Members of a ``vmap`` draw each their own, and so do the devices of a
    ``jax.shard_map``, from the examples that they have.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, a pytree of
            arrays with a leading axis of examples; or an
            `swapjax.training.Objective` that follows the derivative of its loss.
        keep: share of the blocks that is kept, in (0, 1); at least one of them.
        along: ``"examples"`` of the batch, or ``"channels"`` of the output.
        block: how many of them are a block, one example or 128 channels by default; the
            largest divisor of their number up to that. ``"channel"`` and ``"example"``
            are 1.

    Returns:
        An objective for `swapjax.training.fit`, whose state is a `BlocksState`.

    Raises:
        ValueError: for arguments out of range. From the first state: for a loss without
            a product of weights and data, and for one where nothing can be dropped.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from swapjax import backward
        >>> from swapjax.training import fit
        >>> def loss_fn(params, x):
        ...     hidden = jnp.tanh(x @ params["in"])
        ...     return jnp.mean((hidden @ params["out"] - x) ** 2)
        >>> params = {"in": jnp.full((4, 8), 0.1), "out": jnp.full((8, 4), 0.1)}
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> less = backward.drop_blocks(loss_fn, keep=0.5)
        >>> fitted = fit(less, params, optax.sgd(0.1), x, epochs=2, batch=16,
        ...              key=jax.random.key(1))
        >>> fitted.history[-1].loss < fitted.history[0].loss
        True
    """
    require_fraction("keep", keep, zero=False)
    if along not in ("channels", "examples"):
        raise ValueError(f"along must be 'channels' or 'examples', got {along!r}")
    inner = take_loss(loss_fn)
    settings = _Settings(inner, float(keep), along, _size(block, along))
    return Objective(
        loss=functools.partial(loss_alone, inner, BlocksState),
        init=functools.partial(_init, settings),
        gradient=functools.partial(_gradient, settings),
        replays=inner.replays,
        check=inner.check,
    )


def _size(block: Any, along: Along) -> int:
    """Take the size of a block."""
    if block is None:
        return _CHANNELS if along == "channels" else 1
    if isinstance(block, str):
        if block + "s" != along:
            raise ValueError(
                f"block must be a whole number or {along[:-1]!r} along {along}, got "
                f"{block!r}"
            )
        return 1
    require_count("block", block)
    return int(block)


def _init(settings: _Settings, params: Params, batch: Any) -> BlocksState:
    """Make the first state."""
    inner = settings.inner.init(params, batch)
    _find(settings, params, (inner, batch, jax.random.key(0)))
    return BlocksState(inner=inner, **keys_before())


def _gradient(
    settings: _Settings, params: Params, state: BlocksState, batch: Any, key: Any
) -> tuple[Params, jax.Array, BlocksState, dict[str, jax.Array]]:
    """Compute the gradients of a step."""
    require_state(state, BlocksState)
    require_new_key(state, key)
    data = (state.inner, batch, key)
    traced, found = _find(settings, params, data)
    counts = [int(np.prod(site.levels, dtype=int)) for site in found]
    ends = np.cumsum(counts)
    own = own_key(key, _OWN, (params, state, batch))
    pieces = jnp.split(jax.random.bits(own, (int(ends[-1]),), jnp.uint32), ends[:-1])
    extras = {
        site.name: piece.reshape(site.levels)
        for site, piece in zip(found, pieces, strict=True)
    }

    def replace(
        equation: core.JaxprEqn, operands: list, site: Site, bits: Any, do: Do
    ) -> list:
        del equation, do
        return [dropped(found[site], *operands, bits)]

    passed = pass_back(traced, params, data, tuple(found), extras, replace)
    new = BlocksState(inner=passed.inner, **keys_after(state, key))
    return passed.gradients, passed.loss, new, passed.aux


def _find(
    settings: _Settings, params: Params, data: Any
) -> tuple[Traced, dict[Site, Blocks]]:
    """Trace the loss, and find the products of which blocks are dropped."""
    traced = trace_loss(settings.inner, params, data)
    graph = Graph(traced.program)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    _, products = products_of(graph, trees.paths(params), shapes)
    examples = trees.count_examples(data[1], "batch")
    found = {}
    for product in products:
        site = site_of(graph, product, at_input=False)
        equation = equation_at(traced.program.jaxpr, site.address)
        blocks = blocks_of(
            equation, site.operand, settings.along, settings.keep, settings.size,
            examples,
        )  # fmt: skip
        if blocks is not None:
            found[site] = blocks
    if not found:
        raise ValueError(
            f"loss_fn: no product has blocks of {settings.along} to drop; take smaller "
            f"blocks than {settings.size} or keep less than {settings.keep}"
        )
    return traced, found
