"""Roles in one word each, to write those of a network down by hand."""

import jax

from swapjax.core.trees import paths
from swapjax.roles.names import name_roles


def word(role):
    """``"sio"`` for a stack, an input, an output; the kind of what is no matrix."""
    return "".join(axis[0] for axis in role.axes) or role.kind


def words(tree):
    """The roles of a tree of arrays or of shapes, by path."""
    names = paths(tree)
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(tree)]
    return dict(zip(names, map(word, name_roles(names, shapes)), strict=True))


def words_of(shapes):
    """The roles of a flat dict of shapes, by path."""
    return dict(zip(shapes, map(word, roles_of(shapes)), strict=True))


def roles_of(shapes):
    return name_roles(list(shapes), list(shapes.values()))


def matrices(tree):
    """The matrices and tables among the roles of a tree, by path."""
    return {path: w for path, w in words(tree).items() if w != "vector"}
