"""Scores of whole networks before training.

All are functions of ``apply(params, x, norm=...)``, as `Network` and supernets have it,
of params, and of what they look at. Of a supernet whose alpha is that of one
architecture they are the scores of that architecture: what its alpha shuts has
gradients of zero, and weights and activations that reach no output do not count.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.search import kernels
from swapjax.search.labelled import mean_cross_entropy
from swapjax.search.watch import gates_of, watch

Apply = Callable[..., jax.Array]

_SHIFT = 1e-5  # of eigenvalues in jacob_cov
_TINY = 1e-300  # of sums whose logarithm is taken in float64
_FLAT = 1e-12  # of variances that are none


def synflow(apply: Apply, params: Any, shape: tuple[int, ...]) -> jax.Array:
    """Sum up ``|w dR/dw|`` over kernels, and take the logarithm (arXiv 2006.05467).

    R is the sum of the logits of the network of absolute weights, without batch norm,
    on an image of ones. In float64, as deep networks leave float32.
    """
    params = jax.tree.map(jnp.abs, params)
    slopes = _slopes(_flow(apply, shape), params)
    found = _sum(jnp.sum(jnp.abs(w * g)) for w, g in _pairs(params, slopes))
    return jnp.log(jnp.maximum(found, _TINY))


def l2_norm(apply: Apply, params: Any, shape: tuple[int, ...]) -> jax.Array:
    """Sum up the Euclidean norms of the kernels of layers that reach the output."""
    params = jax.tree.map(jnp.abs, params)
    slopes = _slopes(_flow(apply, shape), kernels.even(params))
    return _sum(
        jnp.sum(kernels.norms(w) * _positive(kernels.norms(w * g)))
        for w, g in _pairs(params, slopes)
    )


def snip(apply: Apply, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum up ``|w dL/dw|`` over kernels (arXiv 1810.02340)."""
    slopes = _slopes(_loss(apply, x, y), params)
    return _sum(jnp.sum(jnp.abs(w * g)) for w, g in _pairs(params, slopes))


def plain(apply: Apply, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum up ``w dL/dw`` over kernels."""
    slopes = _slopes(_loss(apply, x, y), params)
    return _sum(jnp.sum(w * g) for w, g in _pairs(params, slopes))


def grad_norm(apply: Apply, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum up the Euclidean norms of the gradients of the layers' kernels."""
    slopes = _slopes(_loss(apply, x, y), params)
    return _sum(jnp.sum(kernels.norms(g)) for g in kernels.kernels(slopes))


def grasp(apply: Apply, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum up ``-w (H g)`` over kernels, of the sign of zero-cost proxies.

    H is the Hessian of the loss and g its gradient (arXiv 2002.07376), by all kernels;
    arXiv 2101.08134 has turned the sign, so that more is better.
    """

    def product(params: Any) -> Any:
        gradient = jax.grad(_loss(apply, x, y))
        slopes = kernels.only(gradient(params))
        return jax.jvp(gradient, (params,), (slopes,))[1]

    products = product(params)
    return -_sum(jnp.sum(w * h) for w, h in _pairs(params, products))


def fisher(apply: Apply, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum up ``(a dL/da)^2 / 2`` over the channels that ReLUs hand on (BlockSwap).

    ``a dL/da`` is summed up over pixels first, and its square averaged over examples
    (arXiv 1906.04113). Proxies in the literature take the outputs of convolutions.
    """

    def run(x: jax.Array) -> jax.Array:
        return apply(params, x, norm="train")

    def loss(gates: list[jax.Array]) -> jax.Array:
        return mean_cross_entropy(watch(run, x, gates=gates)[0], y)

    slopes = jax.grad(loss)(gates_of(run, x, channels=True))
    return _sum(jnp.sum(g**2) for g in slopes) / (2 * len(x))


def jacob_cov(apply: Apply, params: Any, x: jax.Array) -> jax.Array:
    """Tell how little the gradients by the images correlate (arXiv 2006.04647 v1).

    ``-sum(log(v + k) + 1 / (v + k))`` over the eigenvalues v of the matrix of
    correlations between the gradients of each image's summed logits, k = 1e-5.
    """

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(apply(params, x, norm="train"))

    slopes = jax.grad(total)(x).reshape(len(x), -1)
    v = jnp.maximum(jnp.linalg.eigvalsh(_correlations(slopes)), 0) + _SHIFT
    return -jnp.sum(jnp.log(v) + 1 / v)


def naswot(apply: Apply, params: Any, x: jax.Array) -> jax.Array:
    """Tell how differently images switch ReLUs: a log-determinant (arXiv 2006.04647).

    Entry (i, j) of the matrix counts the ReLUs that images i and j both let through or
    both shut, of those that reach the output, over the number of these. The paper does
    not divide: for n images and N ReLUs its score is larger by ``n log N``, so that
    networks of more ReLUs rank higher there than here.
    """

    def agree(v: jax.Array) -> jax.Array:
        on = (v > 0).reshape(len(v), -1).astype(v.dtype)
        return on @ on.T + (1 - on) @ (1 - on).T

    parts = _over_relus(apply, params, x, agree)
    matrix = _sum(jnp.sum(p.reshape(-1, len(x), len(x)), 0) for p in parts)
    matrix = matrix / jnp.maximum(matrix[0, 0], 1)  # the number of ReLUs
    return jnp.linalg.slogdet(matrix + _SHIFT * jnp.eye(len(x)))[1]


def decorrelation(apply: Apply, params: Any, x: jax.Array) -> jax.Array:
    """Sum up how independent the channels are that enter ReLUs. Ours, after MeCo.

    For each ReLU that reaches the output, the least eigenvalue of the matrix of
    correlations between the channels that enter it, over pixels and images: 1 where
    channels do not correlate, 0 where one is a combination of others. Every convolution
    has a ReLU before it in the spaces here, so that it counts layers, each by how much
    new it gets to see. MeCo (Jiang, Wang, Bie, NeurIPS 2023) sums up the least
    eigenvalues of all feature maps of one image.
    """

    def least(v: jax.Array) -> jax.Array:
        return jnp.linalg.eigvalsh(_correlations(v.reshape(-1, v.shape[-1]).T))[0]

    parts = _over_relus(apply, params, x, least)
    return _sum(jnp.sum(jnp.maximum(p, 0)) for p in parts)


def _over_relus(
    apply: Apply, params: Any, x: jax.Array, measure: Callable
) -> list[jax.Array]:
    """Measure what enters each ReLU; zeros for those that reach no output."""
    even = kernels.even(jax.tree.map(jnp.abs, params))
    ones = jnp.ones_like(x[:1])

    def flow(gates: list[jax.Array]) -> jax.Array:
        run = lambda x: apply(even, x, norm="none")  # noqa: E731
        return jnp.sum(watch(run, ones, gates=gates)[0])

    gates = gates_of(lambda x: apply(params, x, norm="train"), x)
    through = jax.grad(flow)(gates)
    _, seen = watch(lambda x: apply(params, x, norm="train"), x, measure)
    return [
        s * jnp.reshape(_positive(g), g.shape + (1,) * (s.ndim - g.ndim))
        for s, g in zip(seen, through, strict=True)
    ]


def _positive(flow: jax.Array) -> jax.Array:
    """Return ones where something flows; NaN, which is no answer, stays."""
    return jnp.where(jnp.isnan(flow), flow, flow > 0)


def _sum(parts: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts)


def _correlations(rows: jax.Array) -> jax.Array:
    """Return the matrix of correlations between rows; a constant row has none."""
    rows = rows - jnp.mean(rows, 1, keepdims=True)
    length = jnp.sqrt(jnp.sum(rows**2, 1, keepdims=True))
    rows = rows / jnp.where(length > _FLAT, length, 1)
    return rows @ rows.T


def _flow(apply: Apply, shape: tuple[int, ...]) -> Callable[[Any], jax.Array]:
    return lambda params: jnp.sum(apply(params, jnp.ones((1, *shape)), norm="none"))


def _loss(apply: Apply, x: jax.Array, y: jax.Array) -> Callable[[Any], jax.Array]:
    return lambda params: mean_cross_entropy(apply(params, x, norm="train"), y)


def _slopes(fn: Callable[[Any], jax.Array], params: Any) -> Any:
    return jax.grad(fn)(params)


def _pairs(params: Any, other: Any) -> list[tuple[jax.Array, jax.Array]]:
    return list(zip(kernels.kernels(params), kernels.kernels(other), strict=True))
