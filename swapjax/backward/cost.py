"""What the way back costs: multiplications of the two products of each layer.

The gradient dY of a layer's output is multiplied with the weights, for the gradient of
its input, and with its input, for that of the weights; each as often as the layer
multiplies forward. A zero of dY saves its part of both.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from swapjax.backward.address import Site, trace
from swapjax.backward.graph import Graph
from swapjax.backward.products import products_of, site_of
from swapjax.core import programs, trees
from swapjax.core.types import LossFn, Params


@dataclasses.dataclass(frozen=True)
class Layer:
    """A product of weights with data, and what it costs.

    Attributes:
        name: the path of the leaf.
        site: its output.
        macs: multiplications of the product, in all steps of the scans around it.
        passes_on: whether the gradient of its input is needed; that of the first
            layer's is not.
    """

    name: str
    site: Site
    macs: int
    passes_on: bool

    @property
    def backward_macs(self) -> int:
        """Multiplications on the way back."""
        return self.macs * (1 + self.passes_on)


def find_layers(loss_fn: LossFn, params: Params, batch: Any) -> tuple[Layer, ...]:
    """Find the products that a loss multiplies weights and data by, from shapes alone.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        params: a pytree of arrays or of their shapes and dtypes.
        batch: what loss_fn takes, arrays or shapes and dtypes.

    Returns:
        Layers in the order of the program. Products of data with data, as those of
        queries and keys, are none, and no part of the ratios that are made of layers;
        `vcas` counts them in what it reports.

    Raises:
        ValueError: for a loss without a product of params and data.

    Example:
        >>> import jax.numpy as jnp
        >>> from swapjax.backward import find_layers
        >>> params = {"fc1": jnp.zeros((8, 4)), "fc2": jnp.zeros((4, 2))}
        >>> loss_fn = lambda p, x: jnp.mean(jax.nn.relu(x @ p["fc1"]) @ p["fc2"])
        >>> layers = find_layers(loss_fn, params, jnp.zeros((10, 8)))
        >>> [(layer.name, layer.macs, layer.backward_macs) for layer in layers]
        [('fc1', 320, 320), ('fc2', 80, 160)]
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    return layers_of(trace(loss_fn, params, batch), trees.paths(params), shapes)


def layers_of(
    program: core.ClosedJaxpr, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[Layer, ...]:
    """Find the products of a program whose first inputs are leaves."""
    graph = Graph(program)
    found = []
    for product in products_of(graph, paths, shapes)[1]:
        node = graph.nodes[product.node]
        macs = programs.multiplications(node.eqn) * math.prod(node.levels)
        site = site_of(graph, product, at_input=False)
        found.append(Layer(product.name, site, macs, product.needs_gradient))
    return tuple(found)


def mac_ratio(macs: Sequence[int], densities: Sequence[float]) -> float:
    """Compute what part of the multiplications on the way back is left.

    ``sum_l rho_l macs_l / sum_l macs_l``; its inverse is the ideal speed-up, that of a
    machine to which zeros cost nothing. No time of dense kernels.

    Args:
        macs: those of the layers, as `Layer.backward_macs` tells them.
        densities: rho, the fraction of dY that is not zero, of each.

    Raises:
        ValueError: for other than one density in [0, 1] a layer, and no layer.
    """
    if len(macs) != len(densities) or not macs:
        raise ValueError(
            f"densities: one for each of {len(macs)} layers wanted, got "
            f"{len(densities)}"
        )
    for rho in densities:
        if not 0 <= rho <= 1:
            raise ValueError(f"densities: each must be in [0, 1], got {rho}")
    total = sum(macs)
    left = sum(n * rho for n, rho in zip(macs, densities, strict=True))
    return left / total if total else 1.0
