"""Square, an attack that sees outputs only: random squares, kept where they help."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count, require_fraction, take_key
from swapjax.core.compiled import Compiled
from swapjax.core.types import Params
from swapjax.corruptions.ball import Norm, cast
from swapjax.corruptions.box import Box, take_layout
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.robust import square_proposals
from swapjax.robust.inputs import Apply, judged, take_batch
from swapjax.robust.objectives import margin
from swapjax.robust.worst import choose

# Of 10,000 queries, those after which the area of squares is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_QUERIES = 10_000


def square(
    key: jax.Array,
    apply: Apply,
    params: Params,
    images: jax.Array,
    labels: jax.Array,
    *,
    epsilon: Any,
    queries: int = 5000,
    norm: Norm = "linf",
    share: float = 0.8,
    box: Box = (0.0, 1.0),
) -> jax.Array:
    """Try squares of new values at random places, and keep those that help.

    The Square attack (Andriushchenko et al., ECCV 2020, arXiv:1912.00049): no gradient,
    and so nothing that hides gradients helps against it. In the largest norm each
    square is epsilon away from the image in every channel (algorithm 2), from stripes
    on; in l2 it takes over what other squares have of the radius (algorithm 3). A
    change is kept where the margin falls. Squares shrink on the way, by the schedule of
    the paper for 10,000 queries stretched over those there are. Radius and queries are
    traced; it ends early when all images are misclassified.

    Args:
        key: a JAX PRNG key, of all draws.
        apply: ``(params, images [n, h, w, ...]) -> outputs [n, K]``, in inference mode.
        params: of the network that is attacked.
        images: floats [n, h, w] or [n, h, w, channels] in the box.
        labels: integers [n].
        epsilon: radius of the ball, 0 or more, in the unit of the images.
        queries: how often the network is asked about each image, 1 or more.
        norm: of the ball, ``"linf"`` or ``"l2"``.
        share: of the image that the first squares cover, in (0, 1].
        box: the least and the largest value of an image.

    Returns:
        Of each image the point of largest margin, or the first that was misclassified.

    Raises:
        ValueError: naming the argument, as `pgd` does, and for queries, shares and
            shapes of images that do not fit.
    """
    images, labels, box = take_batch(
        apply, params, images, labels, epsilon=epsilon, norm=norm, box=box
    )
    take_key(key, traced=True)
    take_layout(images)
    require_count("queries", queries)
    require_fraction("share", share, zero=False, one=True)
    sizes = epsilon, int(queries), float(share)
    return _square((apply, norm), key, params, images, labels, sizes, box)


@Compiled
def _square(
    apply: Apply,
    norm: Norm,
    key: jax.Array,
    params: Params,
    images: jax.Array,
    labels: jax.Array,
    sizes: Any,
    box: Any,
) -> jax.Array:
    params, images, labels = jax.lax.stop_gradient((params, images, labels))
    epsilon, *ends = cast((sizes[0], *box), images)
    _, queries, share = sizes
    shape, ball = images.shape, (epsilon, tuple(ends))
    images = images.reshape(*shape[:3], -1)

    def look(x: jax.Array, params: Params, labels: jax.Array) -> tuple:
        return judged(apply, margin, params, x.reshape(shape), labels)

    judge = canonical_convolutions(look)
    begin, change = square_proposals.BY_NORM[norm]

    def ask(state: tuple) -> tuple:
        i, x, wrong, value = state
        size = jnp.sqrt(area(i, queries, share) * math.prod(shape[1:3]))
        new = change(jax.random.fold_in(key, i), images, x, size, *ball)
        wrong_now, value_now = judge(new, params, labels)
        # What is misclassified needs no more.
        kept = ~wrong & ((value_now > value) | wrong_now)
        return (
            i + 1,
            choose(kept, new, x),
            wrong | wrong_now,
            jnp.where(kept, value_now, value),
        )

    def goes_on(state: tuple) -> jax.Array:
        return (state[0] < queries) & jnp.any(~state[2])

    first = begin(jax.random.fold_in(key, 0), images, *ball)
    begun = jnp.ones((), jnp.int32), first, *judge(first, params, labels)
    return jax.lax.while_loop(goes_on, ask, begun)[1].reshape(shape)


def area(i: jax.Array, queries: jax.Array, share: jax.Array) -> jax.Array:
    """Compute the part of an image that a square covers at a query."""
    done = i * (_QUERIES / queries)
    halved = jnp.sum(done > jnp.asarray(_HALVINGS))
    return share * 0.5 ** halved.astype(jnp.float32)
