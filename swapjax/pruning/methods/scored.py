"""Methods that rank entries and keep the best as they are."""

import jax
import jax.numpy as jnp

from swapjax.core.checks import take_key
from swapjax.core.types import Leaves
from swapjax.pruning.by_score import by_score
from swapjax.pruning.method import Method, Problem, rows_of
from swapjax.sparsity import scores


def magnitude() -> Method:
    """Keep the largest weights as they are: the control of every comparison.

    Takes O(p) time and no gradients. As all methods here it reports no details.
    """
    return by_score("magnitude", _size, needs_rows=False, needs_shapes=False)


def _size(problem: Problem) -> Leaves:
    """Score by ``|w|``."""
    return scores.magnitude(problem.weights)


def saliency() -> Method:
    """Keep the entries with the largest ``|w g|``, g the gradient of the mean loss.

    The first-order term of the loss (Mozer and Smolensky, NIPS 1988; SNIP,
    arXiv:1810.02340, scores untrained networks so). In a trained network g is mostly
    the noise of the examples drawn. Takes one reverse pass, and O(p) memory with
    matrix-free rows.
    """
    return by_score("saliency", _first_order, needs_shapes=False)


def snip() -> Method:
    """Prune before training by the score of `saliency` (SNIP).

    From Lee, Ajanthan and Torr, ICLR 2019, arXiv:1810.02340. For params as initialised
    and ``stages=1``. The absolute value is that of the mean gradient of all examples
    drawn, not the mean of absolute values.
    """
    return by_score("snip", _first_order, needs_shapes=False)


def _first_order(problem: Problem) -> Leaves:
    """Score by ``|w g|``, g the mean gradient."""
    rows = rows_of(problem)
    return scores.saliency(
        problem.weights, rows.pull_back(jnp.full(rows.n, 1 / rows.n))
    )


def grasp() -> Method:
    """Prune before training, and keep the entries that the gradient flow needs most.

    Removing entry q changes ``g^T g`` by ``-2 w_q (H g)_q`` to first order, g the
    gradient and H the Hessian of the mean loss, both of the prunable entries alone. The
    entries with the largest ``w (H g)`` are kept; those whose removal raises ``g^T g``
    most go first (GraSP, Wang, Zhang and Grosse, ICLR 2020, arXiv:2002.07376). Signs
    count: nothing is kept for its size. Noise corrupts g, and leaves H alone. Beside
    the pass of `saliency` takes one that is differentiated, and O(p) memory with
    matrix-free rows. For ``stages=1``.
    """
    return by_score("grasp", _gradient_flow, needs_shapes=False)


def _gradient_flow(problem: Problem) -> Leaves:
    """Score by ``w (H g)``, g the mean gradient and H the Hessian of the mean loss."""
    rows = rows_of(problem)
    gradient = rows.pull_back(jnp.full(rows.n, 1 / rows.n))
    return scores.gradient_flow(problem.weights, rows.curve(gradient))


def random(key: jax.Array) -> Method:
    """Keep entries drawn at random: the control of pruning before training.

    The plan's counts are kept exactly: with ``allocation="erk"`` masks are of the kind
    that sparse training starts from. Every stage draws the same scores, so that masks
    of more stages lie in each other. Takes O(p) time and no gradients.

    Args:
        key: a JAX PRNG key; the same key gives the same masks.

    Raises:
        ValueError: for other than one key.
    """
    kind, data = take_key(key)

    def score(problem: Problem) -> Leaves:
        whole = jax.random.wrap_key_data(jnp.asarray(data), impl=kind)
        stacking = problem.stacking
        keys = jax.random.split(whole, stacking.count)
        return tuple(
            stacking.draw(
                i,
                w.shape,
                lambda n, shape: jax.random.uniform(keys[n], shape, jnp.float32),
            )
            for i, w in enumerate(problem.weights)
        )

    settings = (("key", tuple(data.tolist())), ("kind", kind))
    return by_score("random", score, settings=settings, needs_rows=False)


def obd() -> Method:
    """Keep the entries with the largest ``w^2 F_qq``, F the empirical Fisher.

    Optimal Brain Damage (LeCun et al., NIPS 1989) with the diagonal of the Fisher for
    that of the Hessian. Weights are kept as they are. Takes O(n p) time, and O(p)
    memory with matrix-free rows.
    """
    return by_score("obd", _fisher_diagonal, needs_shapes=False)


def _fisher_diagonal(problem: Problem) -> Leaves:
    """Score by ``w^2 F_qq``."""
    squares = rows_of(problem).mean_squares()
    return scores.fisher_diagonal(problem.weights, squares)
