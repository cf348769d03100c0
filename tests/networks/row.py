"""What a network of the table is, and how its stacks come apart."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.roles.role import Role, matrix

N = 16  # examples

VECTOR, TABLE, UNKNOWN = Role("vector"), Role("table"), Role("unknown")
DENSE = matrix("input", "output")
TORCH = matrix("output", "input")


class Setup(NamedTuple):
    """Params, their mean loss of a batch, and examples."""

    params: Any
    loss_fn: Callable[[Any, Any], jax.Array]
    data: Any


@dataclasses.dataclass(frozen=True)
class Stack:
    """A node of params whose leaves all have an axis of layers.

    Attributes:
        get: finds the node.
        put: gives a tree with another node in its place.
        axis: of all its leaves.
    """

    get: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]
    axis: int = 0

    def split(self, tree):
        """Put the list of its layers in place of the node."""
        node = self.get(tree)
        count = jax.tree.leaves(node)[0].shape[self.axis]
        return self.put(
            tree, [jax.tree.map(self._slice(i), node) for i in range(count)]
        )

    def join(self, tree):
        """Undo split."""
        stack = lambda *leaves: jnp.stack(leaves, self.axis)  # noqa: E731
        return self.put(tree, jax.tree.map(stack, *self.get(tree)))

    def _slice(self, i):
        def take(leaf):  # on the host: a slice of each shape is a program of its own
            layer = np.asarray(leaf)[(slice(None),) * self.axis + (i,)]
            return jnp.asarray(layer) if isinstance(leaf, jax.Array) else layer

        return take


def at(*keys, axis=0):
    """The stack at a place in nested dicts and lists."""

    def get(tree):
        return functools.reduce(lambda node, key: node[key], keys, tree)

    def put(tree, value, left=keys):
        if not left:
            return value
        inside = put(tree[left[0]], value, left[1:])
        if isinstance(tree, list):
            return [inside if i == left[0] else x for i, x in enumerate(tree)]
        return {**tree, left[0]: inside}

    return Stack(get, put, axis)


@dataclasses.dataclass(frozen=True)
class Network:
    """A small network.

    Attributes:
        name: of the row.
        build: makes it.
        roles: of all leaves, written down by hand.
        stacks: what comes apart into layers, from the outermost.
        loop: of networks with stacks, the loss of the one with separate leaves, as a
            program of its own; None where the leaves are only joined.
        shown: what the program shows of a leaf where that is another role, and right
            as well.
        named: what names tell of a leaf where that is another role; None for a
            network whose names no framework gives, and which may tell nothing.
    """

    name: str
    build: Callable[[], Setup]
    roles: Mapping[str, Role]
    stacks: tuple[Stack, ...] = ()
    loop: Callable[[Any, Any], jax.Array] | None = None
    shown: Mapping[str, Role] = dataclasses.field(default_factory=dict)
    named: Mapping[str, Role] | None = dataclasses.field(default_factory=dict)

    def make(self) -> Setup:
        """Make it, once."""
        return _made(self.build)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The leaves that data is multiplied with, in the order of params."""
        paths = trees.paths(self.make().params)
        return tuple(p for p in paths if self.roles[p].kind == "matrix")

    def split(self, tree):
        """Take all stacks apart."""
        for stack in self.stacks:
            tree = stack.split(tree)
        return tree

    def join(self, tree):
        """Undo split."""
        for stack in reversed(self.stacks):
            tree = stack.join(tree)
        return tree

    def unstacked(self) -> Setup:
        """Make the network with separate leaves, whose loss joins them first.

        It runs the same program on the same numbers, so that all bits must agree.
        """
        params, loss_fn, data = self.make()
        joined = lambda params, batch: loss_fn(self.join(params), batch)  # noqa: E731
        return Setup(jax.tree.map(jnp.asarray, self.split(params)), joined, data)

    def layers(self) -> dict[str, str]:
        """The name of each layer of a matrix, and its path in the separate network.

        In the order of the separate network; where that has a block 10, as a key of a
        dict, blocks are taken by their numbers.
        """
        found = [
            (name, path)
            for name, path in self._apart().items()
            if self.roles[name.split("[")[0]].kind == "matrix"
        ]
        if any("block10" in path for _, path in found):
            found.sort(key=lambda pair: [*map(int, re.findall(r"\d+", pair[1])), 99])
        return dict(found)

    def separate_roles(self) -> dict[str, Role]:
        """The roles of the leaves of the separate network."""
        found = {}
        for path, name in ((v, k) for k, v in self._apart().items()):
            role = self.roles[name.split("[")[0]]
            left = [i for i in range(len(role.axes)) if i not in role.stack]
            axes = tuple(role.axes[i] for i in left)
            pixels = tuple(left.index(i) for i in role.pixels)
            found[path] = dataclasses.replace(role, axes=axes, pixels=pixels)
        return found

    def _apart(self) -> dict[str, str]:
        """The name of each layer, and its path in the separate network."""
        params = self.make().params
        numbered, names = [], []
        for path, leaf in zip(
            trees.paths(params), jax.tree.leaves(params), strict=True
        ):
            role = self.roles[path]
            # A vector comes apart along all its axes, as the stack's is not known.
            stack = role.stack if role.kind == "matrix" else range(leaf.ndim)
            sides = [range(leaf.shape[i]) for i in stack]
            places = list(itertools.product(*sides))
            shape = [n if i in stack else 1 for i, n in enumerate(leaf.shape)]
            first = np.arange(len(places)).reshape(shape) + len(names)
            numbered.append(np.broadcast_to(first, leaf.shape))
            inside = [",".join(map(str, place)) for place in places]
            names += [f"{path}[{place}]" if place else path for place in inside]
        apart = self.split(jax.tree.unflatten(jax.tree.structure(params), numbered))
        leaves = zip(trees.paths(apart), jax.tree.leaves(apart), strict=True)
        return {names[leaf.flat[0]]: path for path, leaf in leaves}


@functools.cache
def _made(build) -> Setup:
    return build()


def fill(shapes, seed=0):
    """Give a tree of shapes normal numbers of a size that suits small networks."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


def numbers(*shape, seed=1):
    """Examples of normal numbers, [N, *shape]."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(N, *shape)), jnp.float32)


def tokens(length, size, seed=2):
    """Examples of token numbers, [N, length]."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, size, (N, length)), jnp.int32)


def squared(got, wanted):
    """The mean squared error."""
    return jnp.mean(jnp.square(got - wanted))


def next_token(logits, ids):
    """The cross-entropy of the tokens that follow."""
    chosen = jax.nn.one_hot(ids[:, 1:], logits.shape[-1])
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits[:, :-1]) * chosen, -1))


def under(prefix, roles):
    """The same roles, below a place of the tree."""
    return {f"{prefix}/{path}": role for path, role in roles.items()}


def stacked(roles, axis=0):
    """The roles of leaves stacked along an axis."""
    return {
        path: dataclasses.replace(
            role,
            axes=(*role.axes[:axis], "stack", *role.axes[axis:]),
            pixels=tuple(i + (i >= axis) for i in role.pixels),
        )
        if role.kind == "matrix"
        else role
        for path, role in roles.items()
    }
