"""Placement on devices: that of the user is kept, the compiler does the rest.

Nothing here computes. Arrays come with the shardings of their owner, ``jax.jit`` finds
out what follows from them, and results go back to where they came from.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from swapjax.core import trees


class Spread(NamedTuple):
    """The axes of a mesh that examples are sharded over.

    Attributes:
        mesh: the devices, all axes left to the compiler.
        axes: names, as in the first entry of a PartitionSpec.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of devices, or groups of them, with examples of their own."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def place(self, tree: Any) -> Any:
        """Put arrays on the mesh, their first axis along these axes."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(self.axes)))


def find_spread(data: Any) -> Spread | None:
    """Find how the examples of a pytree are sharded; None if they are not.

    Raises:
        ValueError: for arrays that are sharded in different ways.
    """
    found = {}
    for path, leaf in zip(trees.paths(data), jax.tree.leaves(data), strict=True):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(leaf, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
            continue
        first = sharding.spec[0] if len(sharding.spec) else None
        axes = () if first is None else (first,) if isinstance(first, str) else first
        found[path or "the array"] = Spread(_left_to_compiler(sharding.mesh), axes)
    if len(set(found.values())) > 1:
        ways = ", ".join(f"{path} over {way.axes}" for path, way in found.items())
        raise ValueError(f"data: arrays are sharded in different ways: {ways}")
    spread = next(iter(found.values()), None)
    return spread if spread and spread.size > 1 else None


def leave_to_compiler(tree: Any) -> Any:
    """Move arrays from meshes with explicit axes to the same with automatic ones.

    In explicit mode every operation must name the sharding of its result; the
    functions of this package, and most loss functions, leave that to the compiler.
    """

    def move(x: Any) -> Any:
        sharding = getattr(x, "sharding", None)
        if isinstance(x, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
            return x
        mesh = _left_to_compiler(sharding.mesh)
        if mesh == sharding.mesh:
            return x
        return jax.device_put(x, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(move, tree)


def is_explicit(tree: Any) -> bool:
    """Tell whether arrays, or shapes of some, lie on a mesh with explicit axes."""
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(tree))
    meshes = (s.mesh for s in shardings if isinstance(s, NamedSharding))
    return any(AxisType.Explicit in mesh.axis_types for mesh in meshes)


def anywhere(tree: Any) -> Any:
    """Take the shapes and dtypes of arrays alone, not where they lie; numbers stay."""

    def take(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x

    return jax.tree.map(take, tree)


def by_compiler(function: Callable, like: Sequence[Any]) -> Callable:
    """Let the compiler place what a function makes of arrays on a mesh.

    As `leave_to_compiler` does, but of arrays that may be traced.

    Args:
        function: that returns a tuple of arrays.
        like: arrays whose shardings the results have, one each.
    """
    shardings = tuple(jax.typeof(x).sharding for x in like)
    if not any(AxisType.Explicit in s.mesh.axis_types for s in shardings):
        return function
    return jax.sharding.auto_axes(function, out_sharding=shardings)


def on_all_devices(x: jax.Array) -> jax.Array:
    """Give all of a small array to every device of a mesh with explicit axes.

    Elsewhere, where the compiler places arrays, it stays as it is.
    """
    spec = jax.typeof(x).sharding.spec
    if all(axes is None for axes in spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def put_like(tree: Any, reference: Any) -> Any:
    """Give every array the sharding of the one that it stands for.

    Args:
        tree: arrays.
        reference: a tree of the same structure; scalars of tree that stand for arrays,
            as in masks, stay.
    """

    def move(x: Any, like: Any) -> Any:
        sharding = getattr(like, "sharding", None)
        if not isinstance(sharding, NamedSharding) or x.shape != like.shape:
            return x
        return jax.device_put(x, sharding)

    return jax.tree.map(move, tree, reference)


def put_beside(tree: Any, reference: Any) -> Any:
    """Replicate arrays without a sharding of their own over the mesh of others.

    There ``jax.jit`` leaves them, so that a step that takes and returns them compiles
    once.
    """
    meshes = [
        x.sharding.mesh
        for x in jax.tree.leaves(reference)
        if not isinstance(x, jax.core.Tracer)
        and isinstance(getattr(x, "sharding", None), NamedSharding)
    ]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())

    def move(x: Any) -> Any:
        loose = not isinstance(x, jax.core.Tracer) and not getattr(x, "committed", True)
        return jax.device_put(x, everywhere) if loose else x

    return jax.tree.map(move, tree)


def require_same_devices(**named: Any) -> None:
    """Raise if arrays are bound to different devices.

    Args:
        named: trees by the names of the arguments they came in.

    Raises:
        ValueError: naming two arguments and their devices.
    """
    first: tuple[str, set] | None = None
    for name, tree in named.items():
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, jax.Array) or not leaf.committed:
                continue
            here = leaf.sharding.device_set
            if first is None:
                first = name, here
            elif here != first[1]:
                raise ValueError(
                    f"{name}: lies on {_list(here)}, but {first[0]} on "
                    f"{_list(first[1])}; put both on the same devices by jax.device_put"
                )


def _left_to_compiler(mesh: Mesh | AbstractMesh) -> Mesh:
    assert isinstance(mesh, Mesh)  # arrays that exist lie on devices
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _list(devices: set) -> str:
    names = sorted(str(device) for device in devices)
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
