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

    @property
    def reads(self) -> jax.Array:
        """The mean square of each input, [groups, inputs, 1]."""
        return jnp.diagonal(self.moment, axis1=1, axis2=2)[:, :, None]

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

    def split(self, shape: tuple[int, ...], stack: tuple[int, ...]) -> "Layer":
        """Take layers apart that one product runs, as ``vmap`` of one input makes it.

        They are outputs of the same group there, and are groups of their own here.

        Args:
            shape: of the leaf.
            stack: its axes that number layers.
        """
        count = math.prod(shape[axis] for axis in stack)
        groups, inputs, outputs = self.index.shape
        if self.layers > 1 or self.filled or count == 1 or outputs % count:
            return self
        places = jnp.unravel_index(self.index[:, 0], shape)
        owners = jnp.zeros((groups, outputs), jnp.int32)
        for axis in stack:
            owners = owners * shape[axis] + places[axis]
        order = jnp.argsort(owners, axis=1, stable=True)
        index = jnp.take_along_axis(self.index, order[:, None], axis=2)
        index = index.reshape(groups, inputs, count, -1).transpose(2, 0, 1, 3)
        moment = jnp.broadcast_to(self.moment, (count, *self.moment.shape))
        return Layer(
            moment.reshape(-1, inputs, inputs),
            index.reshape(-1, *index.shape[2:]),
            count,
        )
