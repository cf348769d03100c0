"""Masks by layers, and what plans say of layers."""

import math

import jax
import numpy as np

import swapjax
from swapjax.core import trees


def plans(row, sparsity=None, **options):
    """Plan a network with stacks, and the same with leaves of their own."""
    found = []
    for params, loss_fn, data in (row.make(), row.unstacked()):
        told = {"loss_fn": loss_fn, "batch": data}
        found.append(swapjax.plan(params, sparsity, **told, **options))
    return found


def whole(masks, params):
    """Masks at full shape, those of leaves that are never pruned too."""
    return jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape), masks, params)


def by_layer(row, tree):
    """The layers of all matrices of a tree like params, by their names."""
    apart = row.split(tree)
    found = dict(zip(trees.paths(apart), jax.tree.leaves(apart), strict=True))
    return {name: np.asarray(found[path]) for name, path in row.layers().items()}


def kept_by_layer(row, masks):
    """How many entries of each layer masks keep."""
    layers = by_layer(row, whole(masks, row.make().params))
    return {name: int(mask.sum()) for name, mask in layers.items()}


def inputs_first(row, name, layer):
    """One layer with its inputs, counted through, along the first axis."""
    role = row.roles[name.split("[")[0]]
    axes = [i for i in range(len(role.axes)) if i not in role.stack]
    inputs = [axes.index(i) for i in role.channels]
    pixels = [axes.index(i) for i in role.pixels]
    outputs = [axes.index(i) for i in role.outputs]
    moved = layer.transpose(*inputs, *pixels, *outputs)
    return moved.reshape(math.prod(layer.shape[i] for i in inputs), -1)
