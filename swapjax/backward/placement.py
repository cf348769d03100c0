"""Where the gradients of a loss are pruned, from its program alone.

A gradient is pruned where it comes densely, since the threshold takes it for normal:

- at the *output* of a product, if what comes back to it went through no activation: as
  where a batch norm follows, whose derivative mixes the gradients of all examples;
- at the *input* of the next product, if an activation lies between, as a ReLU, which
  would set half of the gradient to zero first. Zeros of pruning are zeros after it, and
  add to those that it makes.

So convolutions with batch norm and those with ReLU alone are treated as by Ye et al.
(ECCV 2020, arXiv 1908.00173), as second-hand summaries tell it; the same rule tells
where in a transformer. A normalisation is told by a statistic of the output that meets
its own entries, whichever axes it runs over, so layer norm is one; batch norm with
running statistics scales and shifts, and is none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from swapjax.backward.address import Site, trace
from swapjax.backward.follow import follow
from swapjax.backward.graph import Graph
from swapjax.backward.products import PRODUCTS, products_of, site_of
from swapjax.core import trees
from swapjax.core.types import Params


def find_sites(
    loss_fn: Callable[[Params, Any], Any], params: Params, batch: Any
) -> tuple[Site, ...]:
    """Find where the gradients of a loss are pruned, from shapes alone.

    An activation is whatever bends or gates its input entry by entry, with pooling,
    reshapes, casts, dropout, biases and scales around it. The input of a product counts
    as pruned for the product before only if nothing is added between, unless it is of
    another product beside it, as in plain recurrent cells: never on a skip path. Where
    an activation leads to a product of data with data, the output before it is pruned.
    Left out are the first product's input, which needs no gradient, and the classifier,
    a product from whose output the loss is reached through no other.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        params: a pytree of arrays or of their shapes and dtypes.
        batch: what loss_fn takes, arrays or shapes and dtypes.

    Returns:
        Sites in the order of the program, named after the leaf that is multiplied with
        data, ``"conv1/kernel"``, those at inputs as ``"conv2/kernel:input"``; ``#2``
        follows the path in the second product of a leaf. Nothing is found in functions
        with a derivative of their own (``jax.custom_vjp``), in ``while`` loops and in
        ``jax.shard_map``, at products that a softmax alone follows, and at
        ``ragged_dot``; there mark what enters or leaves them by `site`.

    Raises:
        ValueError: for a loss without a product of params and data.

    Example:
        >>> import jax.numpy as jnp
        >>> from swapjax.backward import find_sites
        >>> params = {name: jnp.zeros((4, 4)) for name in ("fc1", "fc2", "fc3")}
        >>> def loss_fn(params, x):
        ...     for name in ("fc1", "fc2"):
        ...         x = jax.nn.relu(x @ params[name])
        ...     return jnp.mean(x @ params["fc3"])
        >>> [site.name for site in find_sites(loss_fn, params, jnp.zeros((2, 4)))]
        ['fc2:input']
    """
    program = trace(loss_fn, params, batch)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    return sites_of(program, trees.paths(params), shapes)


def sites_of(
    program: core.ClosedJaxpr,
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    *,
    outputs: bool = False,
) -> tuple[Site, ...]:
    """Find where gradients are pruned in a program; see `find_sites`.

    Args:
        program: whose first inputs are leaves; its first result is the loss.
        paths: of the leaves.
        shapes: of the leaves.
        outputs: whether all are sites at the output of the product whose gradient the
            others make sparse, behind activations too; of those alone that pass a
            gradient on.
    """
    graph = Graph(program)
    known, found = products_of(graph, paths, shapes)
    alive = graph.before(graph.outputs[:1])
    read = graph.before([graph.nodes[p.node].inputs[p.data] for p in found])
    inner = {p.node: p for p in found if graph.nodes[p.node].outputs[0] in read}
    weighted = {p.node for p in found}
    apart = {
        i
        for i, node in enumerate(graph.nodes)
        if node.name in PRODUCTS and i not in weighted
    }
    kinds: set[tuple[int, str]] = set()
    for product in inner.values():
        (output,) = graph.nodes[product.node].outputs
        ends = follow(graph, output, known, alive)
        if any(not end.reached.bent for end in ends):
            kinds.add((product.node, "output"))
            continue
        next_ones = {
            (end.node, "input")
            for end in ends
            if end.node in inner and end.operand == inner[end.node].data
            if not end.reached.summed and not end.reached.mixed
        }
        # Before a product of data with data, as in a mixture, nothing else is left.
        falls = not next_ones and any(end.node in apart for end in ends)
        at_output = falls or (outputs and next_ones)
        kinds |= {(product.node, "output")} if at_output else next_ones
    if outputs:
        kinds = {kind for kind in kinds if inner[kind[0]].needs_gradient}
    return tuple(
        site_of(graph, inner[node], at_input=kind == "input")
        for node, kind in sorted(kinds)
    )
