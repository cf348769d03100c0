"""Losses of logits that wrong labels harm less, one number an example.

Below ``u`` is the softmax of the logits [n, K], ``y`` the label, and ``q`` and the
like are settings. Each factory returns ``(logits [n, K], labels [n]) -> float [n]``,
which raises a ValueError for logits of other than two axes, for fewer than two classes
and for labels that are not integers, and for labels outside [0, K) where their values
are known; within a compiled function the loss of such an example is NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import require_fraction, take_amount

LabelLoss = Callable[[jax.Array, jax.Array], jax.Array]


def log_softmax(logits: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Return log u, [n, K], and that of the labels, [n], both in float32 or wider.

    Args:
        logits: floats [n, K].
        labels: integers [n].

    Raises:
        ValueError: for other shapes and dtypes, fewer than two classes, and labels
            outside [0, K) where their values are known.
    """
    logits = jnp.asarray(logits)
    place = places(logits, labels)[:, None]
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    logs = jax.nn.log_softmax(logits.astype(wide))
    own = jnp.take_along_axis(logs, place, axis=1, mode="fill", fill_value=jnp.nan)
    return logs, own[:, 0]


def places(logits: jax.Array, labels: Any) -> jax.Array:
    """Return where labels are in logits, int32 [n], past the end where they are none.

    Args:
        logits: floats [n, K].
        labels: integers [n].

    Raises:
        ValueError: as `log_softmax` does.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be [n, classes] with 2 classes or more, got {logits.shape}"
        )
    shape, classes = jnp.shape(labels), logits.shape[1]
    if shape != logits.shape[:1] or not jnp.issubdtype(
        jnp.result_type(labels), jnp.integer
    ):
        raise ValueError(
            f"labels must be integers of shape {logits.shape[:1]}, as logits have it, "
            f"got {jnp.result_type(labels)} of shape {shape}"
        )
    if shape[0] and not isinstance(labels, jax.core.Tracer):
        known = np.asarray(labels)
        if known.min() < 0 or known.max() >= classes:
            raise ValueError(
                f"labels must be in [0, {classes}), as logits have {classes} classes, "
                f"got {known.min()} to {known.max()}"
            )
    labels = jnp.asarray(labels).astype(jnp.int32)
    # Negative labels would count from the last class.
    return jnp.where(labels < 0, classes, labels)


def ce() -> LabelLoss:
    """Cross-entropy, ``-log u_y``."""
    return lambda logits, labels: -log_softmax(logits, labels)[1]


def focal(gamma: float = 0.5) -> LabelLoss:
    """Focal loss, ``-(1 - u_y)^gamma log u_y``, the first factor a constant.

    No derivative is taken of the factor (Lin et al., ICCV 2017, arXiv:1708.02002, take
    one), as in the code of the papers on noisy labels below.

    Args:
        gamma: 0 or more; 0 is cross-entropy.
    """
    take_amount("gamma", gamma)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        own = log_softmax(logits, labels)[1]
        return -_modulate(own, gamma) * own

    return loss


def gce(q: float = 0.7) -> LabelLoss:
    """Generalised cross-entropy, ``(1 - u_y^q) / q``.

    From cross-entropy at q near 0 to ``1 - u_y`` at 1 (Zhang and Sabuncu, NeurIPS 2018,
    arXiv:1805.07836).

    Args:
        q: above 0.
    """
    take_amount("q", q, zero=False)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return -jnp.expm1(q * log_softmax(logits, labels)[1]) / q

    return loss


def rce(floor: float = 1e-4) -> LabelLoss:
    """Reverse cross-entropy, ``-sum_k u_k log max(e_k, floor)`` with e the one-hot y.

    Which is ``-log(floor) (1 - u_y)``, 9.21 times an absolute error (Wang et al., ICCV
    2019, arXiv:1908.06112).

    Args:
        floor: in place of the zeros of e, between 0 and 1.
    """
    require_fraction("floor", floor, zero=False)
    return mae(-math.log(floor))


def mae(scale: float = 2.0) -> LabelLoss:
    """Mean absolute error, ``scale (1 - u_y)``.

    With 2 the sum over classes of ``|u_k - e_k|`` (Ghosh et al., AAAI 2017,
    arXiv:1712.09482).

    Args:
        scale: above 0.
    """
    take_amount("scale", scale, zero=False)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return -scale * jnp.expm1(log_softmax(logits, labels)[1])

    return loss


def nce() -> LabelLoss:
    """Normalised cross-entropy, ``log u_y / sum_k log u_k``.

    The sum over all labels is 1 for any logits (Ma et al., ICML 2020,
    arXiv:2006.13554).
    """

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logs, own = log_softmax(logits, labels)
        return own / jnp.sum(logs, axis=1)

    return loss


def nfl(gamma: float = 0.5) -> LabelLoss:
    """Normalised focal loss: `focal` over its sum over all labels (Ma et al., 2020).

    Args:
        gamma: 0 or more.
    """
    take_amount("gamma", gamma)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logs, own = log_softmax(logits, labels)
        total = jnp.sum(_modulate(logs, gamma) * logs, axis=1)
        return _modulate(own, gamma) * own / total

    return loss


def ngce(q: float = 0.7) -> LabelLoss:
    """Normalised generalised cross-entropy, ``(1 - u_y^q) / (K - sum_k u_k^q)``.

    Args:
        q: above 0.
    """
    take_amount("q", q, zero=False)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logs, own = log_softmax(logits, labels)
        return jnp.expm1(q * own) / jnp.sum(jnp.expm1(q * logs), axis=1)

    return loss


def aul(a: float = 5.5, q: float = 3.0) -> LabelLoss:
    """Asymmetric unhinged loss, ``((a - u_y)^q - (a - 1)^q) / q``.

    Zhou et al., ICML 2021, arXiv:2106.03110.

    Args:
        a: above 1.
        q: above 0.
    """
    take_amount("q", q, zero=False)
    if take_amount("a", a) <= 1:
        raise ValueError(f"a must be above 1, got {a}")

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        own = jnp.exp(log_softmax(logits, labels)[1])
        return ((a - own) ** q - (a - 1) ** q) / q

    return loss


def agce(a: float = 0.6, q: float = 0.6) -> LabelLoss:
    """Asymmetric generalised cross-entropy, ``((a + 1)^q - (a + u_y)^q) / q``.

    Zhou et al., ICML 2021, arXiv:2106.03110.

    Args:
        a: above 0.
        q: above 0.
    """
    take_amount("a", a, zero=False)
    take_amount("q", q, zero=False)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        own = jnp.exp(log_softmax(logits, labels)[1])
        return ((a + 1) ** q - (a + own) ** q) / q

    return loss


def epsilon_softmax(
    m: float = 1e5, gamma: float = 0.0, floor: float = 1e-8
) -> LabelLoss:
    """Cross-entropy or focal loss of an ε-softmax, ``-(1 - v_y)^gamma log v_y``.

    ``v = (u + m h) / (1 + m)`` with h one-hot at the largest u: nearly one-hot, so that
    examples whose label is the prediction have a loss near 0 (Wang et al., NeurIPS
    2024, arXiv:2508.02387).

    Args:
        m: 0 or more; 0 leaves the softmax as it is.
        gamma: of the factor, a constant as in `focal`; 0 for cross-entropy.
        floor: v is taken as no less. With the authors' 1e-8 and 1e5 an example has no
            gradient where its label is not the prediction and u_y is below 1e-3; 0
            for none.
    """
    take_amount("m", m)
    take_amount("gamma", gamma)
    require_fraction("floor", floor)
    least = math.log(floor) if floor else -math.inf

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logs, own = log_softmax(logits, labels)
        top = jnp.argmax(logs, axis=1)
        # At least 1/K, so that neither branch has an infinite derivative.
        largest = jnp.take_along_axis(logs, top[:, None], axis=1)[:, 0]
        raised = jnp.where(top == labels, jnp.log(jnp.exp(largest) + m), own)
        # Where a label is none, NaN stays: maximum hands it on.
        found = jnp.maximum(raised - math.log1p(m), least)
        return -_modulate(found, gamma) * found

    return loss


def weighted_sum(
    first: LabelLoss, second: LabelLoss, alpha: float = 1.0, beta: float = 1.0
) -> LabelLoss:
    """Add two losses, ``alpha first + beta second``.

    An active loss, which raises u_y alone, and a passive one, which lowers the others,
    make up for each other (Ma et al., ICML 2020, arXiv:2006.13554).

    Args:
        first: a loss of logits and labels.
        second: another.
        alpha: 0 or more.
        beta: 0 or more.
    """
    take_amount("alpha", alpha)
    take_amount("beta", beta)
    return lambda logits, labels: (
        alpha * first(logits, labels) + beta * second(logits, labels)
    )


def _modulate(logs: jax.Array, gamma: float) -> jax.Array:
    """``(1 - u)^gamma``, a constant."""
    return jax.lax.stop_gradient(jnp.maximum(-jnp.expm1(logs), 0.0) ** gamma)
