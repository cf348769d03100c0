"""Fast adversarial training by one step, and an end to runs that collapse."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax

from swapjax.core.compiled import Compiled
from swapjax.core.objective import Objective
from swapjax.core.types import Params
from swapjax.robust.adversarial import pgd_at
from swapjax.robust.inner import FrameworkOptions, Inner, accuracy, take_inner
from swapjax.robust.inputs import Apply

Evaluate = Callable[[Params], float | Mapping[str, float]]
ROBUST_BATCH = "robust_batch"  # the name of what `watch_robustness` tells
DROP = 0.2  # of it, from one epoch to the next, that the authors end training by
LENGTH = 1.25  # of the step, in radii, as the authors have it


def fast_at(
    apply: Apply,
    *,
    epsilon: float,
    step: float | None = None,
    **options: Unpack[FrameworkOptions],
) -> Objective:
    """Train on images attacked by one step from anywhere in the ball.

    FastAT (Wong, Rice and Kolter, ICLR 2020, arXiv:2001.03994): `pgd_at` with one step
    of 1.25 epsilon from a start that is drawn uniformly. It can collapse within an
    epoch, to a network that resists its own step and no other attack: see
    `stop_at_collapse`.

    Args:
        apply: as for `pgd_at`.
        epsilon: radius of the ball.
        step: length of the step, 1.25 epsilon by default.
        options: as `FrameworkOptions` lists them; the start is uniform by default.

    Returns:
        An objective as `pgd_at` returns.

    Raises:
        ValueError: as `pgd_at` does.
    """
    size = LENGTH * epsilon if step is None else step
    given: FrameworkOptions = {"start": "uniform", **options}
    return pgd_at(apply, epsilon=epsilon, step=size, steps=1, **given)


def watch_robustness(
    apply: Apply,
    batch: tuple[jax.Array, jax.Array],
    *,
    epsilon: float,
    key: jax.Array,
    step: float | None = None,
    steps: int = 5,
    evaluate: Evaluate | None = None,
    **options: Unpack[FrameworkOptions],
) -> Callable[[Params], dict[str, float]]:
    """Make an ``evaluate`` for `swapjax.training.fit` that attacks one batch by PGD.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``, in inference mode.
        batch: images and labels, best of a validation set.
        epsilon: radius of the ball.
        key: a JAX PRNG key, of the starts, the same each time.
        step: length of a step, a quarter of epsilon by default.
        steps: how many.
        evaluate: ``params -> accuracy`` or a mapping, to add to; by default the
            fraction of the batch that is classified right.
        options: as `FrameworkOptions` lists them; the start is uniform by default.

    Returns:
        ``params -> mapping`` with ``"accuracy"`` and ``"robust_batch"``, the fraction
        of the batch that stands. The history of a run tells it by that name.

    Raises:
        ValueError: as `pgd_at` does.
    """
    size = epsilon / 4 if step is None else step
    given: FrameworkOptions = {"start": "uniform", **options}
    inner = take_inner(apply, epsilon, size, steps, given)

    def watch(params: Params) -> dict[str, float]:
        inner.look(params, batch)
        clean, robust = _both((inner,), key, params, *batch)
        found: Any = float(clean) if evaluate is None else evaluate(params)
        told = dict(found) if isinstance(found, Mapping) else {"accuracy": found}
        return {**told, ROBUST_BATCH: float(robust)}

    return watch


def stop_at_collapse(drop: float = DROP) -> Callable[[Any], None]:
    """Make a ``callback`` for `swapjax.training.fit` that ends a run that collapses.

    Of `watch_robustness` it takes the fraction that stands, and ends training after an
    epoch in which it has dropped by more than allowed. `fit` warns of it, keeps the
    reason in the status of that epoch, and does not go on from the file of that run. A
    run that goes on from a file is compared with the epochs since then.

    Args:
        drop: from one epoch to the next, that is still allowed.

    Returns:
        ``epoch -> None``, which raises StopIteration to end training.

    Raises:
        ValueError: for a drop that is not between 0 and 1; and within training for an
            ``evaluate`` that does not tell ``"robust_batch"``.
    """
    if not 0 < drop < 1:
        raise ValueError(f"drop must be above 0 and below 1, got {drop}")
    before = 0.0

    def callback(epoch: Any) -> None:
        nonlocal before
        if ROBUST_BATCH not in epoch.told:
            raise ValueError(
                f"evaluate must tell {ROBUST_BATCH!r} for stop_at_collapse, as that of "
                f"watch_robustness does, got {sorted(epoch.told)}"
            )
        was = before if epoch.epoch > 1 else 0.0  # of an earlier run
        before = epoch.told[ROBUST_BATCH]
        if was - before > drop:
            raise StopIteration(
                f"robust accuracy fell from {was:.2f} to {before:.2f} in epoch "
                f"{epoch.epoch}"
            )

    return callback


@Compiled
def _both(
    inner: Inner, key: jax.Array, params: Params, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    seen = inner.attacked(params, images)
    moved = inner.attack(key, seen, images, labels)
    clean, after = (inner.apply(seen, x) for x in (images, moved))
    return accuracy(clean, labels), accuracy(after, labels)
