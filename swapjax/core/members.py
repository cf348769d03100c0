"""Members of an ensemble: what ``jax.vmap`` and ``jax.shard_map`` should know of them.

Under ``vmap`` a branch becomes both of its sides, and a key that all members share
draws the same for all. `jax.custom_batching` lets a function know that it is batched.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


@custom_vmap
def any_member(flag: jax.Array) -> jax.Array:
    """Tell whether a flag holds for one member of a ``vmap`` at least.

    Outside of ``vmap`` it is the flag. As the predicate of ``lax.cond`` it keeps the
    branch a branch; inside, members whose own flag is False must keep what they have.
    """
    return flag


@any_member.def_vmap
def _(size: int, batched: list[bool], flags: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched  # since a rule is called for a batch only
    return any_member(jnp.any(flags, axis=0)), False


def own_seed(kind: str, seed: jax.Array, tree: Any) -> jax.Array:
    """Give each member a seed of its own, unless they have it already.

    Args:
        kind: of the PRNG key.
        seed: its numbers.
        tree: arrays, by which the members differ.

    Returns:
        The seed as it is for a network that is no member. Under ``vmap`` over the
        arrays, and with one seed for all, that of member i comes of the key folded with
        i; under ``shard_map`` with different arrays a device, of that folded with the
        device's index along each axis of the mesh.
    """

    def fold(seed: jax.Array, i: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl=kind)
        return jax.random.key_data(jax.random.fold_in(key, i))

    @custom_vmap
    def own(seed: jax.Array, arrays: list[jax.Array]) -> jax.Array:
        return seed

    @own.def_vmap
    def _(size: int, batched: Any, seed: jax.Array, arrays: list) -> tuple:
        if batched[0]:
            return seed, True
        first = [x[0] if b else x for x, b in zip(arrays, batched[1], strict=True)]
        # Members of members: those around come first.
        seed = own(seed, first)
        return jax.vmap(fold, (None, 0))(seed, jnp.arange(size)), True

    arrays = jax.tree.leaves(tree)
    for axis in sorted(device_axes(arrays) - device_axes([seed])):
        seed = fold(seed, jax.lax.axis_index(axis))
    return own(seed, arrays)


def device_axes(tree: Any) -> frozenset[str]:
    """List the axes of a mesh along which arrays differ from device to device.

    Only ``shard_map`` knows of such; elsewhere there are none.
    """
    found: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(tree):
        kind: Any = jax.typeof(leaf)
        # Versions of JAX differ in what they call it.
        if hasattr(kind, "vma"):
            found |= kind.vma
        elif hasattr(kind, "manual_axis_type"):
            found |= kind.manual_axis_type.varying
    return found


def differ_like(tree: Any, reference: Any) -> Any:
    """Let arrays differ between the devices of a ``shard_map`` where others do.

    A loop takes its state only with the type that the body gives back.
    """
    wanted = device_axes(reference)

    def cast(x: Any) -> Any:
        missing = tuple(sorted(wanted - device_axes([x])))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if wanted else tree
