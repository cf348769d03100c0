"""APGD, the attack of AutoAttack: steps that halve by themselves, for each image."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import require_count, take_key
from swapjax.core.compiled import Compiled
from swapjax.core.types import Params
from swapjax.corruptions.ball import Norm, cast, draw, project, steepest
from swapjax.corruptions.box import Box
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.robust.inputs import Apply, are_classes, classes_of, judged, take_batch
from swapjax.robust.objectives import (
    OBJECTIVES,
    RANKED_CLASSES,
    ExampleObjective,
    dlr_targeted,
    margin_targeted,
)
from swapjax.robust.worst import choose, nothing, worse

TARGETED = {"dlr-targeted": dlr_targeted, "margin-targeted": margin_targeted}
_MOMENTUM = 0.75  # alpha: of the new step; the rest goes on as before
_RISES = 0.75  # rho: the share of steps that must have risen
_CHECKPOINTS = 8  # fewer than there are steps, however many these are


def apgd(
    key: jax.Array,
    apply: Apply,
    params: Params,
    images: jax.Array,
    labels: Any,
    *,
    epsilon: Any,
    steps: int = 100,
    objective: str | ExampleObjective = "ce",
    norm: Norm = "linf",
    restarts: int = 1,
    targets: int | range = 9,
    box: Box = (0.0, 1.0),
) -> jax.Array:
    """Climb the objective with a step that each image halves when it gets no further.

    Auto-PGD (Croce and Hein, ICML 2020, arXiv:2003.01690, algorithm 1). Steps begin at
    twice epsilon, with a momentum of 0.75; at checkpoints, which come closer and
    closer, an image whose objective rose in fewer than 0.75 of the steps since the last
    one, or whose best has stayed while its step did, halves its step and goes on from
    its best. Every step takes one gradient. Radius, steps, restarts and targets are
    traced: a program serves all of them.

    Args:
        key: a JAX PRNG key, of the starts, which are uniform in the ball.
        apply: ``(params, images [n, ...]) -> outputs [n, K]``, in inference mode.
        params: of the network that is attacked.
        images: floats [n, ...] in the box; all are in one pass.
        labels: integers [n], or whatever else the objective takes.
        epsilon: radius of the ball, 0 or more, in the unit of the images.
        steps: how many there are; 0 returns the start.
        objective: ``"ce"``, ``"margin"``, ``"dlr"``, or ``(outputs, labels) -> [n]``;
            ``"dlr-targeted"`` and ``"margin-targeted"`` climb towards one wrong class
            after the other (APGD-T).
            The ratios need 4 classes; with fewer the margin is climbed in their place,
            with a warning.
        norm: of the ball and the steps, ``"linf"`` or ``"l2"``.
        restarts: how many starts, for each target if there are any.
        targets: the wrong classes to climb to, by the rank of their output for the
            image: so many from the first, or a range of ranks from 0. There are K - 1.
        box: the least and the largest value of an image.

    Returns:
        Of each image the worst point of all runs, of its shape and dtype, without
        gradient: the one of largest objective, unless that is classified right and a
        point on the way is not.

    Raises:
        ValueError: naming the argument, as `pgd` does, and for an unknown objective and
            targets that are no ranks.

    Warns:
        UserWarning: where there are too few classes for the objective.
    """
    images, labels, box = take_batch(
        apply, params, images, labels, epsilon=epsilon, norm=norm, box=box
    )
    take_key(key, traced=True)
    require_count("steps", steps, least=0)
    require_count("restarts", restarts)
    classes = classes_of(apply, params, images)
    climbed = _take_objective(objective, classes)
    ranks = range(1)
    is_targeted = isinstance(objective, str) and objective in TARGETED
    if is_targeted:
        if not are_classes(labels):
            raise ValueError(
                f"labels must be class indices, integers [n], for {objective!r}, got "
                f"{jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', labels)}"
            )
        ranks = _take_ranks(targets, classes)
    static = apply, climbed, norm, is_targeted
    sizes = epsilon, int(steps), int(restarts), ranks.start, len(ranks)
    return _apgd(static, key, params, images, labels, sizes, checkpoints(steps), box)


def checkpoints(steps: int) -> np.ndarray:
    """Compute the steps after which images may halve their step.

    ``ceil(p_j steps)`` with p = 0, 0.22, and gaps that shrink by 0.03 to 0.06.

    Returns:
        Integers [8], one more than once where there are few steps.
    """
    before, now, found = 0.0, 0.22, []
    for _ in range(_CHECKPOINTS):
        # Sums of such decimals are off by roundings, which must not become a step.
        found.append(math.ceil(round(now * steps, 6)))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return np.asarray(found, np.int32)


def _take_objective(name: Any, classes: int) -> ExampleObjective:
    """Find an objective by its name, and one for few classes where it needs more."""
    if callable(name):
        return name
    known = OBJECTIVES | TARGETED
    if name not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"objective must be one of {names} or callable, got {name!r}")
    if name.startswith("dlr") and classes < RANKED_CLASSES:
        warnings.warn(
            f"objective {name!r} needs {RANKED_CLASSES} classes, got {classes}: the "
            "margin is climbed instead",
            stacklevel=3,
        )
        name = name.replace("dlr", "margin")
    return known[name]


def _take_ranks(targets: Any, classes: int) -> range:
    if not isinstance(targets, range):
        require_count("targets", targets)
        targets = range(targets)
    if targets.step != 1 or not 0 <= targets.start < min(targets.stop, classes - 1):
        raise ValueError(
            f"targets must be ranks from 0 to {classes - 2}, of the wrong classes, got "
            f"{targets}"
        )
    return range(targets.start, min(targets.stop, classes - 1))


class _Climb(NamedTuple):
    """Where the search stands, of each image.

    Attributes:
        x: where it is now, not looked at yet.
        before: where it was one step ago.
        value: the objective there.
        step: its length.
        best: of all points so far that of the largest objective.
        best_wrong: whether it is misclassified.
        best_value: its objective.
        best_slope: the gradient there.
        found: the last point that was misclassified.
        found_any: whether there was one.
        rises: steps since the checkpoint that rose.
        best_then: the best objective at the checkpoint.
        halved: whether the step was halved there.
        checked: when that was, one number for all.
    """

    x: jax.Array
    before: jax.Array
    value: jax.Array
    step: jax.Array
    best: jax.Array
    best_wrong: jax.Array
    best_value: jax.Array
    best_slope: jax.Array
    found: jax.Array
    found_any: jax.Array
    rises: jax.Array
    best_then: jax.Array
    halved: jax.Array
    checked: jax.Array


@Compiled
def _apgd(
    apply: Apply,
    objective: ExampleObjective,
    norm: Norm,
    targeted: bool,
    key: jax.Array,
    params: Params,
    images: jax.Array,
    labels: Any,
    sizes: Any,
    checks: jax.Array,
    box: Any,
) -> jax.Array:
    params, images, labels = jax.lax.stop_gradient((params, images, labels))
    epsilon, *ends = cast((sizes[0], *box), images)
    _, steps, restarts, first, count = sizes
    ball = epsilon, norm, tuple(ends)

    def look(x: jax.Array, params: Params, aim: Any) -> tuple:
        wrong, values = judged(apply, objective, params, x, aim)
        return jnp.sum(values), (wrong, values)

    slope = canonical_convolutions(jax.grad(look, has_aux=True))
    judge = canonical_convolutions(lambda *a: look(*a)[1])
    ranked = _wrong_classes(apply, params, images, labels) if targeted else None

    def run(i: jax.Array, best: tuple) -> tuple:
        aim = labels
        if ranked is not None:
            aim = labels, jnp.take(ranked, first + i // restarts, axis=1)
        # Each rank has keys of its own, whichever of them are asked for.
        chosen = jax.random.fold_in(key, first * restarts + i)
        x = draw(chosen, images, epsilon, norm, ball[2])
        with_slope = lambda x: slope(x, params, aim)  # noqa: E731
        end = _search(with_slope, images, x, ball, steps, checks)
        wrong, value = judge(end.x, params, aim)
        end = _update_best(end, wrong, value, end.best_slope)
        of_best = end.best_wrong | ~end.found_any
        x = choose(of_best, end.best, end.found)
        return worse(best, (x, end.found_any, end.best_value))

    return jax.lax.fori_loop(0, restarts * count, run, nothing(images))[0]


def _search(
    slope: Callable[[jax.Array], tuple],
    images: jax.Array,
    start: jax.Array,
    ball: tuple,
    steps: jax.Array,
    checks: jax.Array,
) -> _Climb:
    """Take the steps; the last point is not looked at."""
    epsilon, norm, box = ball
    count = images.shape[0]
    no, low = jnp.zeros(count, bool), jnp.full(count, -jnp.inf, _wide(images))

    def once(k: jax.Array, now: _Climb) -> _Climb:
        gradient, (wrong, value) = slope(now.x)
        rose = (k > 0) & (value > now.value)
        now = now._replace(value=value, rises=now.rises + rose)
        now = _update_best(now, wrong, value, gradient)
        now, gradient = _check(now, gradient, k, jnp.any(k == checks) & (k > 0))
        length = now.step.astype(images.dtype).reshape(-1, *(1,) * (images.ndim - 1))
        ahead = now.x + length * steepest(gradient, norm)
        ahead = project(ahead, images, epsilon, norm, box)
        # The first step goes all the way.
        share = jnp.where(k > 0, _MOMENTUM, 1).astype(images.dtype)
        x = now.x + share * (ahead - now.x) + (1 - share) * (now.x - now.before)
        x = project(x, images, epsilon, norm, box)
        return now._replace(x=x, before=now.x)

    begun = _Climb(
        x=start, before=start, value=low,
        step=jnp.full(count, 2 * epsilon, _wide(images)),
        best=start, best_wrong=no, best_value=low, best_slope=jnp.zeros_like(start),
        found=start, found_any=no, rises=jnp.zeros(count, jnp.int32),
        best_then=low, halved=no, checked=jnp.zeros((), jnp.int32),
    )  # fmt: skip
    return jax.lax.fori_loop(0, steps, once, begun)


def _update_best(
    now: _Climb, wrong: jax.Array, value: jax.Array, gradient: jax.Array
) -> _Climb:
    better = value > now.best_value
    return now._replace(
        best=choose(better, now.x, now.best),
        best_wrong=jnp.where(better, wrong, now.best_wrong),
        best_value=jnp.where(better, value, now.best_value),
        best_slope=choose(better, gradient, now.best_slope),
        found=choose(wrong, now.x, now.found),
        found_any=now.found_any | wrong,
    )


def _check(
    now: _Climb, gradient: jax.Array, k: jax.Array, is_time: jax.Array
) -> tuple[_Climb, jax.Array]:
    """Halve steps at a checkpoint, and go back to the best where they are."""
    few = now.rises < _RISES * (k - now.checked)
    stuck = ~now.halved & (now.best_value <= now.best_then)
    halve = is_time & (few | stuck)
    x = choose(halve, now.best, now.x)
    gradient = choose(halve, now.best_slope, gradient)
    return now._replace(
        x=x,
        value=jnp.where(halve, now.best_value, now.value),
        step=jnp.where(halve, now.step / 2, now.step),
        rises=jnp.where(is_time, 0, now.rises),
        best_then=jnp.where(is_time, now.best_value, now.best_then),
        halved=jnp.where(is_time, halve, now.halved),
        checked=jnp.where(is_time, jnp.asarray(k, jnp.int32), now.checked),
    ), gradient


def _wrong_classes(
    apply: Apply, params: Params, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Sort the wrong classes of each image by their output, [n, K - 1]."""
    outputs = canonical_convolutions(apply)(params, images)
    own = jax.nn.one_hot(labels, outputs.shape[1], dtype=bool)
    return jnp.argsort(jnp.where(own, -jnp.inf, outputs), axis=1, descending=True)[
        :, :-1
    ]


def _wide(images: jax.Array) -> Any:
    return jnp.promote_types(images.dtype, jnp.float32)
