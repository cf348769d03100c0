"""The table of scores of architectures, and one program for many architectures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import checks
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.search import architecture_scores as scores
from swapjax.search import kernels
from swapjax.search.draw import Deviation, he
from swapjax.search.freeflow import cast
from swapjax.search.genotype import Genotype
from swapjax.search.labelled import require_classes, take_batch
from swapjax.search.sizes import count_sizes
from swapjax.search.space import Space

NEEDS = ("counts", "weights", "images", "labels")


class Proxy(NamedTuple):
    """A score of architectures before training, the more the better.

    Attributes:
        score: a function, of other arguments by what it needs.
        needs: ``"counts"``: ``score(space, genotypes, shape, classes) -> [genotypes]``;
            ``"weights"``: ``score(apply, params, shape)`` looks at no data;
            ``"images"``: ``score(apply, params, images)``, for which random images will
            do; ``"labels"``: ``score(apply, params, images, labels)``.
        dtype: of the computation.
    """

    score: Callable[..., Any]
    needs: str
    dtype: str = "float32"


def _params(space: Space, genotypes: Sequence[Genotype], *sizes: Any) -> np.ndarray:
    return count_sizes(space, genotypes, *sizes)["params"]


def _flops(space: Space, genotypes: Sequence[Genotype], *sizes: Any) -> np.ndarray:
    return count_sizes(space, genotypes, *sizes)["flops"]


def _layers(space: Space, genotypes: Sequence[Genotype], *sizes: Any) -> np.ndarray:
    """Count convolutions and dense layers."""
    networks = (space.network(genotype, *sizes) for genotype in genotypes)
    key = jax.random.key(0)
    shapes = (jax.eval_shape(network.init, key) for network in networks)
    return np.array([len(kernels.kernels(params)) for params in shapes])


PROXIES: dict[str, Proxy] = {
    "params": Proxy(_params, "counts"),
    "flops": Proxy(_flops, "counts"),
    "layers": Proxy(_layers, "counts"),
    "l2_norm": Proxy(scores.l2_norm, "weights"),
    "synflow": Proxy(scores.synflow, "weights", "float64"),
    "decorrelation": Proxy(scores.decorrelation, "images"),
    "naswot": Proxy(scores.naswot, "images"),
    "jacob_cov": Proxy(scores.jacob_cov, "images"),
    "snip": Proxy(scores.snip, "labels"),
    "plain": Proxy(scores.plain, "labels"),
    "grad_norm": Proxy(scores.grad_norm, "labels"),
    "fisher": Proxy(scores.fisher, "labels"),
    "grasp": Proxy(scores.grasp, "labels"),
}
"""Scores of architectures by name; `Proxy` says what each needs."""


def score_architectures(
    space: Space,
    genotypes: Sequence[Genotype | str],
    proxy: str | Proxy,
    key: jax.Array,
    *,
    shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    images: Any = None,
    labels: Any = None,
    examples: int = 16,
    together: int = 1,
    deviation: Deviation = he,
) -> np.ndarray:
    """Score architectures of a space, all by one compiled program.

    An architecture is run as the supernet whose alpha has ones for its operations and
    zeros for the others, so that all have the same shapes, and share the weights of one
    draw. One at a time, operations with zeros are not computed; together, they are.

    Args:
        space: of the architectures.
        genotypes: or their texts.
        proxy: a name of `PROXIES`, or a `Proxy` of one's own.
        key: of the weights, and of random images.
        shape: of one image.
        classes: how many logits.
        images: [n, *shape]; by default random ones, each number normal, which proxies
            that need images of any kind take.
        labels: int[n], for proxies that need them.
        examples: how many random images.
        together: how many architectures to run at once, by `jax.vmap`. Worth it
            where one does not fill the device by far.
        deviation: standard deviation of a convolution's weights, from its shape.

    Returns:
        float64[genotypes], NumPy.

    Raises:
        ValueError: for no genotypes, or those of another space; an unknown proxy;
            images or labels that a proxy needs and does not get; other shapes; labels
            of no class; scores
            that are not finite.
    """
    chosen = [space.check(genotype) for genotype in genotypes]
    if not chosen:
        raise ValueError("genotypes must be one architecture or more, got none")
    name, row = _row(proxy)
    for argument, value in ("examples", examples), ("together", together):
        checks.require_count(argument, value)
    if row.needs == "counts":
        return np.asarray(row.score(space, chosen, shape, classes), np.float64)
    data = _data(name, row.needs, key, shape, classes, images, labels, examples)
    theta = space.init(key, shape, classes, deviation=deviation)

    @jax.jit
    @canonical_convolutions
    def score(alphas: Any, theta: Any, data: Any) -> jax.Array:
        def one(alpha: Any, lazy: bool = False) -> jax.Array:
            def apply(params: Any, x: jax.Array, *, norm: str) -> jax.Array:
                return space.apply(params, alpha, x, norm=norm, lazy=lazy)

            told = shape if row.needs == "weights" else data[0]
            return row.score(apply, theta, told, *data[1:])

        if together > 1:
            return jax.vmap(one)(alphas)
        return one(jax.tree.map(lambda rows: rows[0], alphas), True)[None]

    found: list[np.ndarray] = []
    with jax.enable_x64(row.dtype == "float64"):
        theta, data = cast((theta, data), row.dtype)
        for first in range(0, len(chosen), together):
            some = chosen[first : first + together]
            some = [*some, *some[:1] * (together - len(some))]  # all of one shape
            alphas = [space.one_hot(g, row.dtype) for g in some]
            stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *alphas)
            found += list(np.asarray(score(stacked, theta, data), np.float64))
    result = np.asarray(found[: len(chosen)])
    bad = int(np.sum(~np.isfinite(result)))
    if bad:
        raise ValueError(
            f"{name} is NaN or infinite for {bad} of {len(chosen)} genotypes"
        )
    return result


def _row(proxy: str | Proxy) -> tuple[str, Proxy]:
    if isinstance(proxy, Proxy):
        if proxy.needs not in NEEDS:
            raise ValueError(
                f"proxy: needs must be one of {', '.join(NEEDS)}, got {proxy.needs!r}"
            )
        return "proxy", proxy
    if proxy not in PROXIES:
        raise ValueError(f"proxy must be one of {', '.join(PROXIES)}, got {proxy!r}")
    return proxy, PROXIES[proxy]


def _data(
    name: str,
    needs: str,
    key: jax.Array,
    shape: tuple[int, ...],
    classes: int,
    images: Any,
    labels: Any,
    examples: int,
) -> tuple:
    """Return what a proxy gets: nothing, images, or images and labels."""
    if needs == "weights":
        return ()
    if needs == "labels" and (images is None or labels is None):
        raise ValueError(f"{name} needs images and labels, got none")
    if images is None:
        drawn = jax.random.fold_in(key, 1)
        images = jax.random.normal(drawn, (examples, *shape))
    images = jnp.asarray(images)
    if images.ndim != len(shape) + 1 or images.shape[1:] != tuple(shape):
        raise ValueError(
            f"images must have the shape (n, {', '.join(map(str, shape))}), got "
            f"{images.shape}"
        )
    if needs == "images":
        return (images,)
    images, labels = take_batch((images, labels))
    require_classes(labels, classes)
    return images, labels
