"""A search space: which operations may be on which edges, and networks of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import checks
from swapjax.search.draw import Deviation, Draw, draw_all, he
from swapjax.search.genotype import Edge, Genotype
from swapjax.search.genotypes import Genotypes
from swapjax.search.layers import Run
from swapjax.search.network import Network

Choices = Mapping[str, Mapping[Edge, tuple[str, ...]]]
Alpha = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Space(Genotypes):
    """Architectures, and how their networks are made.

    All of them together are the supernet, in which each edge has the sum of what all
    operations make of its input, each times its own number: no softmax. Rows of alpha
    are edges, its columns operations.

    Attributes:
        draw: ``(draw, choices, shape, classes, stacked) -> weights`` of a network with
            those operations on those edges, by kind and edge; stacked along a first
            axis where the supernet scans.
        forward: ``(run, choices, weights, alpha, x) -> logits``; alpha is None for a
            network with one operation an edge, whose weights are not stacked.
        halvings: how often the network halves the sides of an image.
    """

    draw: Callable[[Draw, Choices, tuple[int, ...], int, bool], Any]
    forward: Callable[[Run, Choices, Any, Alpha | None, jax.Array], jax.Array]
    halvings: int = 0

    def init(
        self,
        key: jax.Array,
        shape: tuple[int, int, int] = (32, 32, 3),
        classes: int = 10,
        *,
        deviation: Deviation = he,
        dtype: Any = jnp.float32,
    ) -> Any:
        """Draw the weights theta of the supernet.

        Args:
            key: a PRNG key.
            shape: of one image: height, width, channels.
            classes: how many logits.
            deviation: standard deviation of a convolution's weights, from its shape.
            dtype: of the weights.

        Raises:
            ValueError: for a shape that the space cannot take, and for no classes.
        """
        self._check(shape, classes)
        checks.take_key(key, traced=True)
        dtype = checks.require_float("dtype", dtype)

        def build(draw: Draw) -> Any:
            return self.draw(draw, self._all, tuple(shape), classes, True)

        return draw_all(key, build, deviation, False, dtype)

    def alpha(self, value: float = 1.0, dtype: Any = jnp.float32) -> dict[str, Any]:
        """Return the same number for each operation on each edge, by kind."""
        ops = len(self.ops)
        return {k: jnp.full((len(e), ops), value, dtype) for k, e in self.edges.items()}

    def apply(
        self,
        theta: Any,
        alpha: Alpha,
        x: jax.Array,
        *,
        norm: str = "none",
        lazy: bool = False,
    ) -> jax.Array:
        """Run the supernet.

        Gradients of convolutions in loops are slow on a CPU: wrap what differentiates
        in `swapjax.canonical_convolutions`.

        Args:
            theta: its weights.
            alpha: for each kind of cell float[edges, ops].
            x: images [n, height, width, channels].
            norm: ``"none"``: batch norm is left out; ``"train"``: it takes the
                statistics of the batch; ``"eval"``: the running ones, 0 and 1 at first.
            lazy: do not compute operations whose alpha is zero, by `jax.lax.cond`. Then
                no slope by these alpha is told, and `jax.vmap` computes them all.

        Returns:
            Logits [n, classes].

        Raises:
            ValueError: for alpha of other shapes, what are no images, and another norm.
        """
        self.check_rows("alpha", alpha)
        if jnp.ndim(x) != 4:
            raise ValueError(
                f"x must be images [n, height, width, channels], got {jnp.shape(x)}"
            )
        return self.forward(Run(norm, lazy=lazy), self._all, theta, alpha, x)

    def network(
        self,
        genotype: Genotype | str,
        shape: tuple[int, int, int] = (32, 32, 3),
        classes: int = 10,
        *,
        deviation: Deviation = he,
        affine: bool = True,
    ) -> Network:
        """Make the network of a genotype.

        Args:
            genotype: or its text.
            shape: of one image.
            classes: how many logits.
            deviation: standard deviation of a convolution's weights, from its shape.
            affine: whether batch norm within operations has a scale and a bias; False
                for operations as the supernet has them.

        Raises:
            ValueError: for other than genotypes of this space, a shape that it cannot
                take, and no classes.
        """
        genotype = self.check(genotype)
        self._check(shape, classes)
        shape = (shape[0], shape[1], shape[2])
        choices = {
            kind: {(a, b): (op,) for a, b, op in genotype.of(kind)}
            for kind in self.kinds
        }

        def init(key: jax.Array) -> Any:
            return draw_all(key, build, deviation, affine, jnp.dtype(jnp.float32))

        def build(draw: Draw) -> Any:
            return self.draw(draw, choices, shape, classes, False)

        def forward(run: Run, params: Any, x: jax.Array) -> jax.Array:
            return self.forward(run, choices, params, None, x)

        return Network(genotype, shape, classes, init, forward)

    @property
    def _all(self) -> Choices:
        return {kind: dict.fromkeys(e, self.ops) for kind, e in self.edges.items()}

    def _check(self, shape: Any, classes: int) -> None:
        sides = 2**self.halvings
        sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        for size in sizes:
            checks.require_count("shape", size)
        if len(sizes) != 3 or sizes[0] % sides or sizes[1] % sides:
            raise ValueError(
                f"shape must be (height, width, channels) with sides divisible by "
                f"{sides} for {self.name}, got {sizes}"
            )
        checks.require_count("classes", classes)
