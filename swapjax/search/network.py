"""The network of one architecture, on its own."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.core import programs
from swapjax.search.genotype import Genotype
from swapjax.search.layers import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network with one operation an edge, as pure functions of its params.

    Params are a dict of arrays. Batch norm has its running statistics in there, under
    ``mean`` and ``var``, which no gradient reaches, as in the networks of
    `swapjax.experiments.models`.

    Attributes:
        genotype: the architecture.
        shape: of one image: height, width, channels.
        classes: how many logits.
        init: ``key -> params``.
        forward: ``(run, params, images) -> logits``.
    """

    genotype: Genotype
    shape: tuple[int, int, int]
    classes: int
    init: Callable[[jax.Array], Any]
    forward: Callable[[Run, Any, jax.Array], jax.Array]

    def apply(self, params: Any, x: jax.Array, *, norm: str = "eval") -> jax.Array:
        """Run the network.

        Args:
            params: its weights and running statistics.
            x: images [n, height, width, channels].
            norm: ``"eval"``: batch norm takes the running statistics; ``"train"``:
                those of the batch; ``"none"``: it is left out.

        Returns:
            Logits [n, classes].

        Raises:
            ValueError: for images of another shape, and another norm.
        """
        self._check(x)
        return self.forward(Run(norm), params, x)

    def statistics(self, params: Any, x: jax.Array) -> Any:
        """Return params with the statistics of images in place of running ones.

        For `swapjax.recalibrate_batchnorm`.

        Raises:
            ValueError: for images of another shape.
        """
        self._check(x)
        run = Run("train")
        params = jax.tree.map(jnp.asarray, params)
        self.forward(run, params, x)
        return run.with_statistics(params)

    @property
    def weights(self) -> int:
        """How many weights there are, running statistics of batch norm left out."""
        leaves = jax.tree.leaves_with_path(self._shapes)
        running = (jax.tree_util.DictKey("mean"), jax.tree_util.DictKey("var"))
        return sum(math.prod(x.shape) for path, x in leaves if path[-1] not in running)

    @property
    def macs(self) -> int:
        """How many multiplications a convolution or a matrix takes part in, an image.

        Exact from shapes; those with the zeros around an image count.
        """
        image = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        program = jax.make_jaxpr(self.apply)(self._shapes, image)
        return sum(map(_products, program.jaxpr.eqns))

    @property
    def _shapes(self) -> Any:
        return jax.eval_shape(self.init, jax.random.key(0))

    def _check(self, x: jax.Array) -> None:
        if jnp.shape(x)[1:] != self.shape or jnp.ndim(x) != 4:
            raise ValueError(
                f"images must have the shape (n, {', '.join(map(str, self.shape))}), "
                f"got {jnp.shape(x)}"
            )


def _products(equation: core.JaxprEqn) -> int:
    """Count multiplications of an equation, those within its programs included."""
    if equation.primitive.name in ("conv_general_dilated", "dot_general"):
        return programs.multiplications(equation)
    inner = (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)
    within = [value for value in equation.params.values() if isinstance(value, inner)]
    return sum(_products(e) for p in within for e in getattr(p, "jaxpr", p).eqns)
