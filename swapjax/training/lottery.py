"""Iterative magnitude pruning with rewinding: train, prune a little, start again."""

import dataclasses
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import sharding, trees
from swapjax.core.checks import require_fraction
from swapjax.core.given_masks import take_masks
from swapjax.core.types import Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.magnitude import largest
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned
from swapjax.training.train_function import Train, call, describe

_KIND = "levels"


@dataclasses.dataclass(frozen=True)
class Level:
    """The record of one level.

    Attributes:
        level: its number; 0 trains the dense network.
        sparsity: the fraction of prunable entries that are zero while it trains.
        kept: the prunable entries that are left.
        accuracy: what `evaluate` returned for the trained params, None without one.
        seconds: wall time, pruning, compilation and evaluation included.
    """

    level: int
    sparsity: float
    kept: int
    accuracy: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON takes."""
        return dataclasses.asdict(self)


class Ticket(NamedTuple):
    """A sparse network, and where its training started.

    Attributes:
        params: trained at the last level, zero where masks are False.
        start: the weights that every level starts from, dense. The ticket itself is
            ``apply_masks(start, masks)``.
        masks: with the tree of params; the scalar True for a leaf never pruned.
        history: the record of each level.
    """

    params: Params
    start: Params
    masks: Masks
    history: tuple[Level, ...]


def lottery(
    train: Train,
    params: Params,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    rate: float = 0.2,
    rewind: Train | None = None,
    evaluate: Callable[[Params], float] | None = None,
    key: jax.Array,
    checkpoint: str | Path | None = None,
    callback: Callable[[Level], None] | None = None,
) -> Ticket:
    """Find a sparse network that trains from its early weights: a lottery ticket.

    Every level trains for the full schedule, prunes the smallest of the weights that
    are left, and resets the others to where they were at the start. A weight once
    pruned never returns. Level 0 trains the dense network; the last level trains at
    the sparsity that was asked for. In all there are
    ``1 + ceil(log(1 - sparsity) / log(1 - rate))`` levels, fewer where one would prune
    nothing.

    The lottery ticket hypothesis (Frankle and Carbin, ICLR 2019, arXiv:1803.03635),
    with rewinding (Frankle et al., ICML 2020, arXiv:1912.05671).

    Args:
        train: ``train(params, masks, key) -> params``, the full schedule from the
            params it is given, the zeros of masks staying zero; `Trainer` makes one.
            Every level calls it with the same key, for the same order of the data. Its
            optimizer must start afresh, or from its state at the step rewound to.
        params: the initial weights, any pytree of arrays.
        sparsity: the fraction of prunable entries to remove in the end, in [0, 1), by
            magnitude among all layers.
        plan: instead of a sparsity, made by `swapjax.plan` with rules and an allocation
            of its own.
        rate: the fraction of the remaining weights to prune after each level, in
            (0, 1); less after the last but one, so that the end is exact.
        rewind: as train, for the first steps only: levels start from what it returns
            instead of params. It gets the same key, so that train may go on in the
            order of the data where it stopped.
        evaluate: ``params -> accuracy`` of a trained network, for the history.
        key: a JAX PRNG key, handed to train and rewind as it is.
        checkpoint: a file to keep the state in after each level. If it exists, the run
            goes on from there, and ends bit for bit as if it had never stopped,
            provided that train does the same each time. It cannot tell the code of one
            train from that of another, but for what a method ``describe()`` says.
        callback: called with each finished level.

    Returns:
        The trained params, the weights that levels start from, masks and history.

    Raises:
        ValueError: for arguments out of range, params that are not finite, what train
            or rewind return if it is of another tree, not finite, or not zero where
            masks are; and a checkpoint of another run, in no folder, or of a run of
            several processes.

    Example:
        >>> import optax, swapjax
        >>> from swapjax.training import Trainer, lottery
        >>> x = jax.random.normal(jax.random.key(0), (32, 4))
        >>> def loss_fn(params, x):
        ...     return jnp.mean((x @ params["kernel"] - 2 * x[:, :2]) ** 2)
        >>> train = Trainer(loss_fn, x, swapjax.FineTune(optax.sgd(0.1), 20, batch=8))
        >>> params = {"kernel": jnp.full((4, 2), 0.5)}
        >>> ticket = lottery(train, params, sparsity=0.75, rate=0.5,
        ...                  key=jax.random.key(1))
        >>> [level.kept for level in ticket.history]
        [8, 4, 2]
        >>> ticket.masks["kernel"].nonzero()[0].tolist()
        [0, 1]
    """
    _require_functions(train=train, rewind=rewind, evaluate=evaluate)
    require_fraction("rate", rate, zero=False)
    trees.require_arrays(params, "params")
    params = jax.tree.map(jnp.asarray, params)
    target = planned(params, sparsity, plan)
    target.layout.split(params)  # raises for another tree
    trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    budgets = _budgets(target, rate)
    dense = target.layout.masks(target.layout.everything())

    found, run = None, {}
    if checkpoint is not None:
        # Imported here so that the core does without safetensors.
        from swapjax.io import resume

        resume.require_room(checkpoint)
        run = resume.fingerprint(
            params, key, sparsity=float(target.sparsity), rate=rate, plan=target,
            train=describe(train), rewind=describe(rewind),
            evaluate=describe(evaluate),
        )  # fmt: skip
        found = _load(checkpoint, params, dense, run, len(budgets))
    if found is None:
        # Of a run that is stopped before its first level ends, nothing is kept.
        start = params if rewind is None else call(rewind, params, dense, key, "rewind")
        found = Ticket(params, start, dense, ())

    for number in range(len(found.history), len(budgets) + 1):
        started = time.perf_counter()
        masks = found.masks
        if number > 0:
            budget, left = budgets[number - 1], target.layout.leaf_masks(masks)
            masks = largest(target, found.params, budget, left)
        # From the start, not from what the level before has trained.
        reset = masking.apply_masks(found.start, masks)
        trained = call(train, reset, masks, key, "train")
        accuracy = None if evaluate is None else float(evaluate(trained))
        kept, total = masking.count(masks)
        seconds = time.perf_counter() - started
        level = Level(number, 1 - kept / total, kept, accuracy, seconds)
        history = (*found.history, level)
        found = Ticket(trained, found.start, masks, history)
        if checkpoint is not None:
            _save(checkpoint, found, run)
        if callback is not None:
            callback(level)
    return found


def reinit(
    ticket: Ticket, initialise: Callable[[jax.Array], Params], *, key: jax.Array
) -> Params:
    """Make a control with the masks of a ticket and new initial weights.

    Train it as ``train(reinit(...), ticket.masks, key)`` with the key of the ticket,
    which should end better than this control (Frankle and Carbin, ICLR 2019,
    arXiv:1803.03635).

    Args:
        ticket: from `lottery`.
        initialise: ``key -> params``, new initial weights.
        key: for the new weights; not that of the ticket.

    Raises:
        ValueError: for params of another tree or other shapes.
    """
    params = initialise(key)
    masks = take_masks(ticket.masks, params, "the masks of the ticket")
    return masking.apply_masks(params, masks)


def shuffle(
    ticket: Ticket, *, plan: Plan | None = None, key: jax.Array
) -> tuple[Params, Masks]:
    """Make a control with the initial weights of a ticket and shuffled masks.

    Every layer keeps its number of entries, at random places; a pattern is not kept.

    Args:
        ticket: from `lottery`.
        plan: that `lottery` was given; without one, names tell which leaves are stacks
            of layers, as they do there.
        key: for the random places.

    Returns:
        Params to start from, and the shuffled masks, for ``train(params, masks, key)``
        with the key of the ticket.

    Raises:
        ValueError: for a plan of other params.
    """
    named = zip(trees.paths(ticket.masks), jax.tree.leaves(ticket.masks), strict=True)
    masked = {path for path, mask in named if np.ndim(mask)}
    if plan is None:
        layout = Layout.of(ticket.start, include=lambda path, leaf: path in masked)
    else:
        layout = plan.onto(ticket.start).layout
    stacking = layout.stacking

    def one(of: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, mask = of
        own = jax.random.fold_in(key, number)
        return jax.random.permutation(own, mask.ravel()).reshape(mask.shape)

    shuffled = []
    for i, mask in enumerate(layout.leaf_masks(ticket.masks)):
        numbers = np.asarray(stacking.numbers[i], np.int32)
        layers = jax.lax.map(one, (numbers, stacking.slices(i, mask)))
        shuffled.append(stacking.whole(i, layers, mask.shape))
    masks = layout.masks(tuple(shuffled))
    return masking.apply_masks(ticket.start, masks), masks


def _budgets(target: Plan, rate: float) -> list[Budget]:
    """List the counts after each pruning, exact; the last are those of the target."""
    stays = 1 - Fraction(repr(float(rate)))
    left, plans = stays, []
    while left > 1 - target.sparsity:
        plans.append(target.at(1 - left))
        left *= stays
    if target.sparsity:
        plans.append(target)
    # Shares that are rounded leaf by leaf can rise by one from level to level, where
    # no weight returns: a level keeps at least what the next one will.
    keep, budgets = target.keep, []
    for step in reversed(plans):
        keep = tuple(max(k, least) for k, least in zip(step.keep, keep, strict=True))
        budget = step.budget  # raises for more than an int32 counts
        counts = jnp.asarray(keep, jnp.int32)
        budgets.append((keep, dataclasses.replace(budget, keep=counts)))
    previous, result = _dense(target), []
    for keep, budget in reversed(budgets):
        if keep != previous:
            result.append(budget)
        previous = keep
    return result


def _dense(target: Plan) -> tuple[int, ...]:
    """Count all entries of each group of layers."""
    sizes = [0] * len(target.keep)
    for group, size in zip(target.groups, target.sizes, strict=True):
        sizes[group] += size
    return tuple(sizes)


def _require_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "train"):
            raise ValueError(f"{name} must be a function, got {function!r}")


def _save(path: str | Path, found: Ticket, run: dict[str, str]) -> None:
    from swapjax.io import resume

    kept = {"params": found.params, "start": found.start, "masks": found.masks}
    notes = {"history": [level.to_dict() for level in found.history]}
    resume.save(path, resume.State(kept, notes), run, _KIND)


def _load(
    path: str | Path, params: Params, dense: Masks, run: dict[str, str], last: int
) -> Ticket | None:
    from swapjax.io import records, resume

    like = {"params": params, "start": params, "masks": dense}
    state = resume.load(path, like, run, _KIND)
    if state is None:
        return None
    trained, start = (
        sharding.put_like(state.trees[name], params) for name in ("params", "start")
    )
    history = records.read(
        path, state.notes, Level, lambda level: Level(**level), range(last + 1)
    )
    masks = state.trees["masks"]
    records.require_finite(path, start)
    records.require_masked(path, trained, masks, history[-1].kept)
    return Ticket(trained, start, masks, history)
