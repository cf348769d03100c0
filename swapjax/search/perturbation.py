"""Zero-Cost-PT: what a proxy of the supernet loses when an operation goes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import checks
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.search.architecture_scores import naswot
from swapjax.search.draw import Deviation, he
from swapjax.search.genotype import Genotype
from swapjax.search.space import Space

Value = Callable[[dict[str, np.ndarray]], float]


def perturb(
    space: Space,
    key: jax.Array,
    *,
    images: Any = None,
    shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    proposals: int = 10,
    rounds: int = 10,
    examples: int = 16,
    deviation: Deviation = he,
) -> Genotype:
    """Choose operations by what `naswot` of the supernet loses without them.

    Zero-Cost-PT (Xiang et al., arXiv 2106.06799), after a description of its code,
    which compares proposals by 100 rounds of 256 images; the defaults here are less. A
    proposal takes the edges in random order; on each it shuts one operation at a time,
    and keeps the one without which the score of the supernet is lowest. Where genotypes
    have some of the edges into a node only, each edge is then shut by itself, all
    others open, and those without which the score is lowest are kept. The proposal of
    the best mean score is the choice. Needs no labels.

    Each proposal scores the supernet once for every operation of every edge; all are
    one compiled program.

    Args:
        space: of the supernet.
        key: of the weights, random images and orders.
        images: [n, *shape], n being at least `examples`, of which each round takes
            some; random ones by default.
        shape: of one image.
        classes: how many logits.
        proposals: how many, each with another order of edges.
        rounds: weights and images by which proposals are compared.
        examples: images of a round.
        deviation: standard deviation of a convolution's weights, from its shape.

    Raises:
        ValueError: for images of another shape or fewer than examples, and numbers
            below 1; scores that are not finite, or do not tell operations apart.
    """
    counts = {"proposals": proposals, "rounds": rounds, "examples": examples}
    for name, count in counts.items():
        checks.require_count(name, count)
    if images is not None:
        images = np.asarray(images, np.float32)
        if images.shape[1:] != tuple(shape) or len(images) < examples:
            raise ValueError(
                f"images must be {examples} or more of shape {tuple(shape)}, got shape "
                f"{images.shape}"
            )

    @jax.jit
    @canonical_convolutions
    def score(theta: Any, alpha: Any, x: jax.Array) -> jax.Array:
        def apply(params: Any, x: jax.Array, *, norm: str) -> jax.Array:
            return space.apply(params, alpha, x, norm=norm)

        return naswot(apply, theta, x)

    def value(number: int) -> Value:
        """Return the score of supernets by weights and images of their own."""
        drawn = jax.random.fold_in(key, number)
        theta = space.init(drawn, shape, classes, deviation=deviation)
        rows = jax.random.fold_in(drawn, 1)
        if images is None:
            x = jax.random.normal(rows, (examples, *shape))
        else:
            chosen = jax.random.choice(rows, len(images), (examples,), replace=False)
            x = jnp.asarray(images[np.asarray(chosen)])
        return lambda alpha: float(score(theta, jax.tree.map(jnp.asarray, alpha), x))

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    first = value(0)
    found = [propose(space, first, rng) for _ in range(proposals)]
    distinct = list(dict.fromkeys(found))
    if len(distinct) == 1:
        return distinct[0]
    totals = np.zeros(len(distinct))
    for number in range(1, rounds + 1):
        again = value(number)
        totals += [again(space.one_hot(genotype)) for genotype in distinct]
    return distinct[int(totals.argmax())]


def propose(space: Space, value: Value, rng: np.random.Generator) -> Genotype:
    """Choose one operation an edge, edges in random order.

    Args:
        space: of the supernet.
        value: of a supernet by alpha.
        rng: of the order.

    Raises:
        ValueError: for values that are not finite, and equal ones for all operations of
            an edge, so that none of them is best.
    """
    out = [op in (*space.never, "none") for op in space.ops]
    ops = np.flatnonzero(np.logical_not(out))
    alpha = {
        kind: np.where(out, 0, np.ones((len(edges), 1), np.float32))
        for kind, edges in space.edges.items()
    }
    places = [
        (kind, i) for kind, edges in space.edges.items() for i in range(len(edges))
    ]
    for kind, edge in (places[i] for i in rng.permutation(len(places))):
        values = [_without(value, alpha, kind, (edge, op)) for op in ops]
        _check(values, f"operations on edge {space.edges[kind][edge]} of {kind}")
        kept = ops[int(np.argmin(values))]
        alpha[kind][edge] = np.arange(len(space.ops)) == kept
    strengths = {kind: table.copy() for kind, table in alpha.items()}
    if space.kept is not None:
        for kind, edge in places:
            left = _without(value, alpha, kind, (edge, slice(None)))
            _check([left], f"edge {space.edges[kind][edge]} of {kind}")
            lost = -left
            strengths[kind][edge] = np.where(alpha[kind][edge] > 0, lost, -np.inf)
    return space.genotype(strengths)


def _check(values: list[float], what: str) -> None:
    """Raise where values of supernets without some of it choose nothing."""
    if not np.isfinite(values).all():
        raise ValueError(f"value: without {what} it must be finite, got {values}")
    if len(values) > 1 and min(values) == max(values):
        raise ValueError(f"value: without any of the {what} it is {values[0]}: a tie")


def _without(value: Value, alpha: dict, kind: str, place: tuple) -> float:
    """Return the value of a supernet when some of it is shut."""
    table = alpha[kind].copy()
    table[place] = 0
    return value({**alpha, kind: table})
