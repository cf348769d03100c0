"""Hypersphere embedding: outputs that are cosines of features and class weights."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Params
from swapjax.robust.inputs import Apply
from swapjax.robust.objectives import cross_entropy

Weights = Literal["project", "reparam"]
_TINY = 1e-12  # of a squared norm: features after ReLU can be all zero


def cosines(
    features: jax.Array, kernel: jax.Array, *, weights: Weights = "project"
) -> jax.Array:
    """Compute the cosine of each image's features with each class.

    The output of hypersphere embedding (Pang et al., NeurIPS 2020, arXiv:2002.08619):
    ``cos_k = <w_k / |w_k|, z / |z|>``. The gradient by z is orthogonal to z, and an
    attack goes the same way whatever the norm of the features.

    Args:
        features: z, what the last layer reads, floats [n, D].
        kernel: of a last layer without bias, a column a class, floats [D, K].
        weights: ``"project"`` takes the norms of columns as constants: with `on_sphere`
            in the optimizer, which keeps them at 1, that is the gradient by the weights
            as they are, as in the authors' code. ``"reparam"`` differentiates through
            the norms, so that gradients are orthogonal to columns.

    Returns:
        Floats [n, K] in [-1, 1], up to rounding.

    Raises:
        ValueError: for features and a kernel that do not fit each other.
    """
    if features.ndim != 2 or kernel.ndim != 2 or features.shape[1] != kernel.shape[0]:
        raise ValueError(
            "head: features [n, D] and a kernel [D, K] wanted, got "
            f"{list(features.shape)} and {list(kernel.shape)}"
        )
    if weights not in ("project", "reparam"):
        raise ValueError(f"weights must be 'project' or 'reparam', got {weights!r}")
    scale = jax.lax.rsqrt(jnp.sum(kernel**2, axis=0) + _TINY)
    if weights == "project":
        scale = jax.lax.stop_gradient(scale)
    length = jax.lax.rsqrt(jnp.sum(features**2, axis=1, keepdims=True) + _TINY)
    return (features * length) @ (kernel * scale)


def cosine_apply(features: Apply, layer: str, *, weights: Weights = "project") -> Apply:
    """Put the head of hypersphere embedding on a network without its last layer.

    Args:
        features: ``(params, images) -> floats [n, D]``, what the last layer reads.
        layer: path among params of what the last layer has, as ``"fc2"``: a dict with a
            ``kernel`` [D, K] and nothing else.
        weights: as for `cosines`.

    Returns:
        ``(params, images) -> cosines [n, K]``. Called with other params it raises
        ValueError: for no such layer, one with a bias, and one that does not fit.
    """

    def apply(params: Params, images: jax.Array) -> jax.Array:
        prefix = f"{layer}/"
        leaves = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))
        below = [path for path in leaves if path.startswith(prefix)]
        own = {path.removeprefix(prefix): leaves[path] for path in below}
        if set(own) != {"kernel"}:
            raise ValueError(
                f"head: a last layer {layer!r} with a kernel and no bias wanted, got "
                f"{', '.join(own) or 'nothing'} there"
            )
        return cosines(features(params, images), own["kernel"], weights=weights)

    return apply


def he_loss(
    outputs: jax.Array, labels: jax.Array, *, scale: float, margin: float = 0.0
) -> jax.Array:
    """Compute the loss of hypersphere embedding for each image.

    The cross-entropy of ``s (cos - m onehot(y))``. With K classes it can be no less
    than ``log(1 + (K - 1) exp(-s K / (K - 1)))`` at m = 0.

    Args:
        outputs: cosines, floats [n, K].
        labels: integers [n].
        scale: s, the inverse temperature.
        margin: m, taken from the cosine of the label.

    Returns:
        Floats [n].
    """
    return cross_entropy(Hypersphere(scale, margin).pushed(outputs, labels), labels)


@dataclasses.dataclass(frozen=True)
class Hypersphere:
    """How losses see the cosines of hypersphere embedding; a ``head`` of frameworks.

    Attacks during training climb ``s cos``; the margin is for updates alone, and
    predictions need neither.

    Attributes:
        scale: s, the inverse temperature. The authors take 10 in adversarial training,
            15 in TRADES, 20 in ALP.
        margin: m, taken from the cosine of the label; 0.2, 0.2 and 0.3 there.

    Raises:
        ValueError: for a scale that is not above 0, and a margin that is not 0 or more.
    """

    scale: float = 10.0
    margin: float = 0.2

    def __post_init__(self) -> None:
        for name, value, fits, wanted in (
            ("scale", self.scale, 0 < self.scale < math.inf, "above 0"),
            ("margin", self.margin, 0 <= self.margin < math.inf, "0 or more"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {wanted}, got {value}")

    def logits(self, outputs: jax.Array) -> jax.Array:
        """Return what attacks and predictions see, ``s cos``."""
        return self.scale * outputs

    def pushed(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return what updates see, ``s (cos - m onehot(y))``."""
        own = jax.nn.one_hot(labels, outputs.shape[1], dtype=outputs.dtype)
        return self.scale * (outputs - self.margin * own)

    def require_fits(self, outputs: jax.Array) -> None:
        """Raise unless outputs can be cosines.

        Raises:
            ValueError: for those outside of [-1, 1].
        """
        largest = float(jnp.max(jnp.abs(outputs)))
        if not largest <= 1 + 1e-3:
            raise ValueError(
                "head: Hypersphere needs a network that returns cosines, in [-1, 1], "
                f"got outputs up to {largest:.3g}; end it with swapjax.robust.cosines"
            )


HEADS: Mapping[str, Hypersphere] = MappingProxyType(
    {
        **dict.fromkeys(("pgd_at", "mart", "free_at"), Hypersphere(10.0, 0.2)),
        **dict.fromkeys(("trades", "fast_at"), Hypersphere(15.0, 0.2)),
        "alp": Hypersphere(20.0, 0.3),
    }
)
"""The head for each framework, by the name of its function.

Of the authors of hypersphere embedding, but for MART, which has that of PGD-AT, and for
FastAT, which has the defaults of a later study (Bag of Tricks), as no script of theirs
was found.
"""


def project_columns(params: Params, kernels: Sequence[str]) -> Params:
    """Divide the columns of some kernels by their norms; of zeros nothing is made.

    Args:
        params: any pytree of arrays.
        kernels: paths of leaves [..., K], as ``"fc2/kernel"``.

    Raises:
        ValueError: for a path that params do not have.
    """
    paths, (leaves, treedef) = trees.paths(params), jax.tree.flatten(params)
    missing = [path for path in kernels if path not in paths]
    if missing or not kernels:
        raise ValueError(
            f"kernels must be paths of params, {', '.join(paths)}, got {list(kernels)}"
        )
    new = [_unit(x) if p in kernels else x for p, x in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(treedef, new)


def on_sphere(*kernels: str) -> optax.GradientTransformation:
    """Bring the columns of kernels back to norm 1 in each update.

    The last of a chain: ``optax.chain(optax.sgd(0.1), on_sphere("fc2/kernel"))``.
    Steps, momentum and weight decay are Euclidean, and what they lead to is projected.
    Around `swapjax.sparse` its zeros stay zero.

    Args:
        kernels: paths of leaves [..., K], a column a class.

    Returns:
        A transformation without state that needs params. Its ``init`` raises ValueError
        for paths that params do not have.
    """

    def init(params: Params) -> optax.EmptyState:
        project_columns(params, kernels)
        return optax.EmptyState()

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple:
        if params is None:
            raise ValueError("params: on_sphere projects them, update needs them")
        new = project_columns(optax.apply_updates(params, updates), kernels)
        paths, treedef = trees.paths(params), jax.tree.structure(params)
        leaves = zip(paths, *map(jax.tree.leaves, (updates, new, params)), strict=True)
        # p + (-p) is exactly zero, and so masked entries stay so.
        moved = [n - p if path in kernels else u for path, u, n, p in leaves]
        return jax.tree.unflatten(treedef, moved), state

    return optax.GradientTransformation(init, update)


def _unit(kernel: jax.Array) -> jax.Array:
    axes = tuple(range(kernel.ndim - 1))
    norm: Callable[..., jax.Array] = jnp.linalg.norm
    if len(axes) > 1:
        flat = kernel.reshape(-1, kernel.shape[-1])
        return _unit(flat).reshape(kernel.shape)
    return kernel / jnp.maximum(norm(kernel, axis=0), _TINY)
