"""What a list of attacks leaves of a network's accuracy, the worst for each image."""

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swapjax.core import identity
from swapjax.core.types import Params
from swapjax.corruptions.ball import Norm
from swapjax.corruptions.box import Box
from swapjax.robust import suite, trials
from swapjax.robust.evaluation import (
    FELL,
    RESISTED,
    UNTRIED,
    Evaluation,
    summary,
)
from swapjax.robust.inputs import Apply
from swapjax.robust.suite import Attack

_KIND = "attacks"


def evaluate(
    apply: Apply,
    params: Params,
    data: tuple[Any, Any],
    *,
    epsilon: float,
    key: jax.Array,
    attacks: str | Attack | Iterable[str | Attack] = suite.DEFAULT,
    norm: Norm = "linf",
    batch: int = 250,
    scale: float | None = None,
    restarts: int = 1,
    alone: bool = False,
    box: Box = (0.0, 1.0),
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure accuracy under attack, the minimum over attacks for each image.

    Attacks come one after the other, each on the images that still stand, in batches of
    one shape. What an attack hands back is classified anew, and has to lie in the ball
    and the box. An image without finite outputs is misclassified.

    Args:
        apply: ``(params, images [n, ...]) -> outputs [n, K]``, in inference mode.
        params: of the network, any pytree of arrays.
        data: images, floats [n, ...] in the box, and labels, integers [n].
        epsilon: radius of the ball, 0 or more, in the unit of the images.
        key: a JAX PRNG key, of all draws.
        attacks: one or several names, ``NAME`` or ``NAME:STEPS``, or `Attack`. Names:
            ``"fgsm"``; ``"pgd-ce"``, ``"pgd-margin"``, ``"pgd-dlr"`` of 20 steps, which
            go 2.5 epsilon together; ``"apgd-ce"``, ``"apgd-margin"``, ``"apgd-dlr"`` of
            100, ``"apgd-t"`` of 100 to each of nine classes; ``"square"`` of 5000
            queries. By default two climb cross-entropy, then PGD the margin, APGD the
            ratio. Those of cross-entropy come first for gaps to be seen.
        norm: of the ball, ``"linf"`` or ``"l2"``.
        batch: images at once.
        scale: s of a network that returns cosines and was trained on s times those:
            attacks that climb the cross-entropy are run on s times the outputs and on
            the outputs.
        restarts: random starts of each attack by gradients, each on what still stands.
        alone: whether to run each attack on all images that were classified right, for
            what each alone leaves; the minimum is the same but for other draws.
        box: the least and the largest value of an image.
        checkpoint: a file to keep the state in after each batch. If it exists, the
            evaluation goes on from there, and ends as if it had never stopped.
        progress: called after each batch with the batches done and those in all; what
            has no images left counts as done.

    Returns:
        Accuracies, what each attack did, and what became of each image. The same for
        the same key.

    Raises:
        ValueError: naming the argument, for an epsilon that is negative or not finite,
            images that are not floats in the box, labels out of range, a network of one
            class, unknown attacks, one that leaves the ball; and a checkpoint of
            another evaluation or in no folder.

    Warns:
        UserWarning: where gradients are masked, so that the accuracy is higher than
            better attacks would leave it: more than 1 % of the input gradient is zero;
            attacks by differences of logits take more than 3 % of the images from those
            by cross-entropy; Square takes more than 1 % from all, both by two standard
            errors. Where outputs lie in [-1, 1] and no scale is given, and where too
            few classes change an attack. The result keeps them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from swapjax import robust
        >>> apply = lambda params, images: 20 * images @ params
        >>> images = jnp.array([[0.9, 0.5], [0.5, 0.6], [0.55, 0.5]])
        >>> found = robust.evaluate(apply, jnp.eye(2), (images, jnp.array([0, 1, 1])),
        ...                         epsilon=0.1, key=jax.random.key(0),
        ...                         attacks=["pgd-ce", "apgd-margin"])
        >>> round(found.clean, 2), round(found.robust, 2), found.standing.tolist()
        (0.67, 0.33, [True, False, False])
    """
    inputs = trials.take(
        apply, params, data, epsilon, norm, box, batch, scale, restarts, key
    )
    chosen, notes = suite.attacks_of(
        attacks, classes=inputs.classes, scale=scale, restarts=restarts
    )
    correct, zeros, largest = trials.look(inputs, scale)
    if scale is None and largest <= 1:
        notes.append(
            "outputs lie in [-1, 1], where cross-entropy is nearly flat: for cosines "
            "give the scale= they are trained with"
        )
    run: dict[str, str] = {}
    if checkpoint is not None:
        # Imported here so that the core does without safetensors.
        from swapjax.io import resume

        resume.require_room(checkpoint)
        run = resume.fingerprint(
            params, key, data=identity.digest((inputs.images, inputs.labels)),
            epsilon=float(epsilon), norm=norm, box=inputs.box, attacks=chosen,
            batch=batch, alone=alone, clean=identity.digest(correct),
        )  # fmt: skip
    outcomes = _attack(inputs, chosen, correct, alone, checkpoint, run, progress)
    found = summary(
        chosen, correct, outcomes, epsilon=float(epsilon), norm=norm, zeros=zeros,
        notes=notes,
    )  # fmt: skip
    for text in found.warnings:
        warnings.warn(f"evaluate: {text}", stacklevel=2)
    return found


def _attack(
    inputs: trials.Inputs,
    attacks: tuple[Attack, ...],
    correct: np.ndarray,
    alone: bool,
    checkpoint: str | Path | None,
    run: dict[str, str],
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Run all attacks, from where a file tells that they were stopped."""
    outcomes = np.full((len(attacks), len(correct)), UNTRIED, np.int8)
    # The images of a run are those that stood when it began.
    todo, begun, done = np.zeros(len(correct), bool), -1, 0
    if checkpoint is not None:
        outcomes, todo, begun, done = _load(checkpoint, run, outcomes, todo)
    runs = [(a, r) for a, attack in enumerate(attacks) for r in attack.runs]
    most = math.ceil(len(correct) / inputs.batch)
    for number, (a, method) in enumerate(runs):
        if number < begun:
            continue
        if number > begun:
            fell = outcomes[a] if alone else outcomes
            todo = correct & ~(np.atleast_2d(fell) == FELL).any(axis=0)
            done = 0
        key = jax.random.fold_in(inputs.key, number)
        for i, index in enumerate(inputs.batches(np.flatnonzero(todo))):
            if i < done:
                continue
            fallen = trials.attack_batch(inputs, attacks[a].name, method, key, i, index)
            outcomes[a, index] = np.where(fallen, FELL, RESISTED)
            if checkpoint is not None:
                _save(checkpoint, run, outcomes, todo, number, i + 1)
            if progress is not None:
                progress(number * most + i + 1, len(runs) * most)
    if progress is not None:
        progress(len(runs) * most, len(runs) * most)
    return outcomes


def _save(
    path: str | Path,
    run: dict[str, str],
    outcomes: np.ndarray,
    todo: np.ndarray,
    number: int,
    done: int,
) -> None:
    from swapjax.io import resume

    kept = {"outcomes": outcomes, "todo": todo}
    notes = {"run_number": number, "batches": done}
    resume.save(path, resume.State(kept, notes), run, _KIND)


def _load(
    path: str | Path, run: dict[str, str], outcomes: np.ndarray, todo: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int, int]:
    from swapjax.io import resume

    state = resume.load(path, {"outcomes": outcomes, "todo": todo}, run, _KIND)
    if state is None:
        return outcomes, todo, -1, 0
    begun, done = (state.notes.get(name) for name in ("run_number", "batches"))
    if not (isinstance(begun, int) and isinstance(done, int)):
        resume.refuse(path, "does not tell how far it is")
    outcomes, todo = (np.array(state.trees[name]) for name in ("outcomes", "todo"))
    return outcomes, todo, begun, done
