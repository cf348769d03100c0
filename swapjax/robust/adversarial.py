"""Adversarial training: PGD-AT, ALP, TRADES and MART as objectives."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from swapjax.core.checks import take_amount
from swapjax.core.objective import Objective
from swapjax.core.types import Params
from swapjax.robust.inner import FrameworkOptions, Inner, accuracy, take_inner
from swapjax.robust.inputs import Apply

# ``(params, clean images, attacked images, labels) -> (loss, aux)`` of an update.
_Update = Callable[[Params, jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict]]


def pgd_at(
    apply: Apply,
    *,
    epsilon: float,
    step: float,
    steps: int,
    **options: Unpack[FrameworkOptions],
) -> Objective:
    """Train on images attacked by PGD.

    The mean of ``loss(f(x'), y)``, x' climbing the same loss from x within epsilon
    (Madry et al., ICLR 2018, arXiv:1706.06083), the network in inference mode in the
    attack and in training mode in the update.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``, in inference mode.
        epsilon: radius of the ball, in the unit of the images.
        step: length of a step of the attack.
        steps: how many the attack has; 0 trains on its start.
        options: as `FrameworkOptions` lists them: loss, head, training_apply,
            statistics, norm, start, box.

    Returns:
        An objective of batches ``(images, labels)`` for `swapjax.training.fit`. It
        tells ``robust_accuracy``, that of the attacked images in training mode.

    Raises:
        ValueError: for settings out of range; and when training begins for images
            outside of the box, labels that are no classes, and a head that the network
            does not fit.
    """
    inner = take_inner(apply, epsilon, step, steps, options)

    def update(
        params: Params, clean: jax.Array, moved: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, dict]:
        del clean
        outputs = inner.outputs(params, moved)
        told = {"robust_accuracy": accuracy(outputs, labels)}
        return inner.mean_loss(outputs, labels), told

    return _climbing_the_loss(inner, update)


def alp(
    apply: Apply,
    *,
    epsilon: float,
    step: float,
    steps: int,
    beta: float = 0.5,
    **options: Unpack[FrameworkOptions],
) -> Objective:
    """Train on clean and on attacked images, whose outputs are to agree.

    Adversarial logit pairing (Kannan et al., 2018, arXiv:1803.06373): half the mean
    loss of clean images and half that of attacked ones, attacked as in `pgd_at`, and
    beta times the mean square of the differences of their outputs, over images and
    classes. Those of hypersphere embedding are the cosines, without their scale.

    Args:
        apply: as for `pgd_at`, like all but beta.
        epsilon: radius of the ball.
        step: length of a step of the attack.
        steps: how many.
        beta: weight of the pairing.
        options: as `FrameworkOptions` lists them.

    Returns:
        An objective that tells ``accuracy``, ``robust_accuracy`` and ``pairing``.

    Raises:
        ValueError: as `pgd_at` does.
    """
    inner = take_inner(apply, epsilon, step, steps, options)
    take_amount("beta", beta)

    def update(
        params: Params, clean: jax.Array, moved: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, dict]:
        before, after = inner.outputs(params, clean), inner.outputs(params, moved)
        pairing = jnp.mean(jnp.square(before - after))
        both = inner.mean_loss(before, labels) + inner.mean_loss(after, labels)
        told = _accuracies(before, after, labels) | {"pairing": pairing}
        return both / 2 + beta * pairing, told

    return _climbing_the_loss(inner, update)


def trades(
    apply: Apply,
    *,
    epsilon: float,
    step: float,
    steps: int,
    beta: float = 6.0,
    **options: Unpack[FrameworkOptions],
) -> Objective:
    """Train on clean images, with predictions that attacks do not change.

    TRADES (Zhang et al., ICML 2019, arXiv:1901.08573): the mean loss of clean images
    and beta times the mean of ``KL(softmax f(x) || softmax f(x'))``, the clean
    prediction being the target. The attack climbs the divergence from a fixed clean
    prediction; in the update both sides carry gradient. A head's margin is for clean
    images alone.

    Args:
        apply: as for `pgd_at`, like all but beta.
        epsilon: radius of the ball.
        step: length of a step of the attack.
        steps: how many. A start at the images themselves has no gradient.
        beta: weight of the divergence.
        options: as `FrameworkOptions` lists them.

    Returns:
        An objective that tells ``accuracy``, ``robust_accuracy`` and ``divergence``.

    Raises:
        ValueError: as `pgd_at` does, and for ``start=None``.
    """
    inner = take_inner(apply, epsilon, step, steps, options)
    take_amount("beta", beta)
    if inner.start is None:
        raise ValueError(
            "start must be 'gaussian' or 'uniform': at the images the divergence has "
            "no gradient"
        )

    def moved(
        key: jax.Array, params: Params, images: jax.Array, labels: jax.Array
    ) -> jax.Array:
        del labels
        target = inner.logits(inner.apply(params, images))
        return inner.attack(key, params, images, target, objective=divergence)

    def update(
        params: Params, clean: jax.Array, moved: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, dict]:
        before, after = inner.outputs(params, clean), inner.outputs(params, moved)
        apart = jnp.mean(divergence(inner.logits(after), inner.logits(before)))
        told = _accuracies(before, after, labels) | {"divergence": apart}
        return inner.mean_loss(before, labels) + beta * apart, told

    return _framework(inner, moved, update)


def mart(
    apply: Apply,
    *,
    epsilon: float,
    step: float,
    steps: int,
    beta: float = 5.0,
    **options: Unpack[FrameworkOptions],
) -> Objective:
    """Train on attacked images, more on those that are wrong without attack.

    MART (Wang et al., ICLR 2020): the mean of ``loss(f(x'), y) - log(1 - max_{k != y}
    p_k(x'))`` and beta times that of ``KL(p(x) || p(x')) (1 - p_y(x))``, p the softmax
    of outputs and x' as in `pgd_at`. A head's margin is in the first term.

    Args:
        apply: as for `pgd_at`, like all but beta.
        epsilon: radius of the ball.
        step: length of a step of the attack.
        steps: how many.
        beta: weight of the divergence.
        options: as `FrameworkOptions` lists them.

    Returns:
        An objective that tells ``accuracy``, ``robust_accuracy`` and ``divergence``.

    Raises:
        ValueError: as `pgd_at` does.
    """
    inner = take_inner(apply, epsilon, step, steps, options)
    take_amount("beta", beta)

    def update(
        params: Params, clean: jax.Array, moved: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, dict]:
        before, after = inner.outputs(params, clean), inner.outputs(params, moved)
        pushed = inner.pushed(after, labels)
        boosted = inner.mean_loss(after, labels) + jnp.mean(_against(pushed, labels))
        right = jnp.exp(-_cross_entropy(inner.logits(before), labels))
        each = divergence(inner.logits(after), inner.logits(before))
        apart = jnp.mean(each * (1 - right))
        told = _accuracies(before, after, labels) | {"divergence": apart}
        return boosted + beta * apart, told

    return _climbing_the_loss(inner, update)


def divergence(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Compute ``KL(softmax(target) || softmax(logits))`` of each image, float [n]."""
    logs, wanted = jax.nn.log_softmax(logits), jax.nn.log_softmax(target)
    return optax.losses.kl_divergence_with_log_targets(logs, wanted)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def _against(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute ``-log(1 - p_k)`` of the likeliest class other than the label."""
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    other = jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=1)
    taken = jax.nn.one_hot(other, logits.shape[1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(taken, -jnp.inf, logits), axis=1)
    return jax.nn.logsumexp(logits, axis=1) - rest


def _accuracies(
    before: jax.Array, after: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    return {
        "accuracy": accuracy(before, labels),
        "robust_accuracy": accuracy(after, labels),
    }


def _climbing_the_loss(inner: Inner, update: _Update) -> Objective:
    """Make a framework whose attack climbs the loss."""
    return _framework(inner, inner.attack, update)


def _framework(inner: Inner, attack: Callable, update: _Update) -> Objective:
    """Make a framework of an attack and an update on what it returns."""

    def loss(
        params: Params, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, dict]:
        images, labels = batch
        moved = attack(key, inner.attacked(params, images), images, labels)
        value, told = update(params, images, jax.lax.stop_gradient(moved), labels)
        return value, state, told

    return Objective(loss, init=inner.look, check=inner.check)
