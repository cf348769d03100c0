"""A prunable leaf as matrices of linear maps, and second moments of their inputs."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["moment", "index"],
    meta_fields=["layers", "filled"],
)
@dataclasses.dataclass(frozen=True)
class Layer:
    """A prunable leaf as matrices, and the second moments of their inputs.

    The groups are maps side by side: those of one layer after those of another, layers
    in the order of the leaf's stack axes. A grouped convolution is several maps, and so
    is what a network cuts into parts that read different things.

    Attributes:
        moment: [groups, inputs, inputs], the sum of ``a a^T`` over the positions
            (pixels, tokens, steps) of an example, averaged over examples.
        index: ``int32[groups, inputs, outputs]``, the flat index into the leaf of each
            entry of the matrices; -1 where a group has fewer inputs or outputs.
        layers: how many layers the leaf holds, each of as many groups.
        filled: whether any of index is -1.
    """

    moment: jax.Array
    index: jax.Array
    layers: int = 1
    filled: bool = False

    def matrix(self, leaf: jax.Array) -> jax.Array:
        """Rearrange the leaf to [groups, inputs, outputs], zero where index is -1."""
        found = jnp.ravel(leaf)[self.index]
        if self.filled:
            found = jnp.where(self.index < 0, jnp.zeros((), leaf.dtype), found)
        return found

    def leaf(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Undo `matrix`."""
        size, index = math.prod(shape), self.index.ravel()
        flat = jnp.zeros(size, matrix.dtype)
        if self.filled:
            index = jnp.where(index < 0, size, index)
            flat = flat.at[index].set(matrix.ravel(), mode="drop")
        else:
            flat = flat.at[index].set(matrix.ravel(), unique_indices=True)
        return flat.reshape(shape)

    def by_layer(self, x: jax.Array) -> jax.Array:
        """Split the groups of an array by layer: [layers, groups of one, ...]."""
        return x.reshape(self.layers, -1, *x.shape[1:])
