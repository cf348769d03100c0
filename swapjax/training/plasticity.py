"""Pruning plasticity: how well a network recovers from being pruned at some epoch."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.checks import require_fraction
from swapjax.core.types import Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.magnitude import largest
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planning import plan as plan_globally
from swapjax.sparsity.segments import Segments
from swapjax.training.drop_and_grow import exchange_all
from swapjax.training.train_function import Train, call, require_tree


@dataclasses.dataclass(frozen=True)
class Recovery:
    """One checkpoint, pruned once and trained on.

    Attributes:
        epoch: of the checkpoint.
        rate: the sparsity it was pruned to, as asked for.
        regrown: whether some of what was left was dropped and regrown.
        kept: the prunable entries that were left.
        before: the accuracy of the checkpoint, before it was pruned.
        after: the accuracy after it was pruned and trained on.
        seconds: wall time, compilation included.
    """

    epoch: float
    rate: float
    regrown: bool
    kept: int
    before: float
    after: float
    seconds: float

    @property
    def plasticity(self) -> float:
        """``after - before``: at 0 and above the network has recovered."""
        return self.after - self.before

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON takes, with the plasticity beside both accuracies."""
        return {**dataclasses.asdict(self), "plasticity": self.plasticity}


class _Cell(NamedTuple):
    rate: float
    regrown: bool


def pruning_plasticity(
    train: Train,
    checkpoints: Mapping[float, Params],
    *,
    evaluate: Callable[[Params], float],
    rates: Sequence[float],
    regrow: Sequence[bool] = (False, True),
    gradient: Callable[[Params], Params] | None = None,
    regeneration: float = 0.5,
    plan: Callable[[Params, float], Plan] = plan_globally,
    key: jax.Array,
    callback: Callable[[Recovery], None] | None = None,
) -> tuple[Recovery, ...]:
    """Measure how well checkpoints of a dense run recover from being pruned.

    Each checkpoint is evaluated, pruned once by magnitude, trained on for some epochs,
    and evaluated again; plasticity is the difference, positive where the network is
    better than before (Liu et al., NeurIPS 2021, arXiv:2106.10404). With regeneration
    a fraction of what pruning left is dropped in every layer, the smallest weights, and
    as many entries grow where the gradient is largest, from zero: the density stays as
    it is.

    Args:
        train: ``train(params, masks, key) -> params``, the epochs that follow, the
            zeros of masks staying zero; `Trainer` makes one. Its learning rate decides
            much: to go on with the one that the run had at each epoch, make a call a
            checkpoint and join the results. It gets the same key each time, for the
            same order of the data.
        checkpoints: the params of a run by epoch.
        evaluate: ``params -> accuracy``, on examples that train has not seen.
        rates: the sparsities to prune to, in [0, 1); 0 trains on without pruning.
        regrow: whether to regenerate: one of the two, or both.
        gradient: ``params -> gradient`` of the loss, a tree like params; needed to
            regrow. It is taken of the checkpoint as it is before pruning, as GraNet
            takes that of the step before, and costs no pass of its own there.
        regeneration: the fraction of every layer to drop and regrow, in [0, 1],
            rounded up.
        plan: ``plan(params, rate) -> Plan``: what to prune. By default one magnitude
            ranks the weights of all layers; ``functools.partial(swapjax.plan,
            allocation="uniform")`` prunes each layer at the same rate.
        key: a JAX PRNG key, handed to train as it is.
        callback: called with each result.

    Returns:
        One result for every checkpoint, rate and entry of regrow, in that order.

    Raises:
        ValueError: for rates out of range, nothing to measure, regrowth without a
            gradient, params or gradients that are not finite, and what train returns
            if it is of another tree, not finite, or not zero where masks are.

    Example:
        >>> import optax, swapjax
        >>> from swapjax.training import Trainer, pruning_plasticity
        >>> x = jax.random.normal(jax.random.key(0), (32, 4))
        >>> def loss_fn(params, x):
        ...     return jnp.mean((x @ params["kernel"] - 2 * x[:, :2]) ** 2)
        >>> train = Trainer(loss_fn, x, swapjax.FineTune(optax.sgd(0.1), 50, batch=8))
        >>> (result,) = pruning_plasticity(
        ...     train, {1: {"kernel": jnp.eye(4, 2)}}, rates=[0.5], regrow=[True],
        ...     evaluate=lambda p: -float(loss_fn(p, x)),
        ...     gradient=lambda p: jax.grad(loss_fn)(p, x), key=jax.random.key(1))
        >>> result.kept, result.plasticity > 0.5
        (4, True)
    """
    cells = _cells(rates, regrow)
    if not checkpoints:
        raise ValueError("checkpoints: must hold one at least, by its epoch")
    if any(cell.regrown for cell in cells) and gradient is None:
        raise ValueError("gradient: is needed to regrow, or take regrow=[False]")
    require_fraction("regeneration", regeneration, one=True)
    results = []
    for epoch, brought in checkpoints.items():
        params = jax.tree.map(jnp.asarray, brought)
        names = trees.paths(params)
        trees.require_finite(names, jax.tree.leaves(params), f"the params of {epoch}")
        before = float(evaluate(params))
        slope = None
        if gradient is not None and any(cell.regrown for cell in cells):
            slope = gradient(params)
            require_tree(slope, params, "gradient: must return")
            trees.require_finite(names, jax.tree.leaves(slope), "gradient")
        for rate, regrown in cells:
            started = time.perf_counter()
            target = plan(params, rate)
            masks = largest(target, params)
            pruned = masking.apply_masks(params, masks)
            if regrown:
                masks = _regenerate(target, pruned, slope, masks, regeneration)
                # What is new grows from the zero that pruning left there.
                pruned = masking.apply_masks(pruned, masks)
            trained = call(train, pruned, masks, key, "train")
            result = Recovery(
                epoch=epoch,
                rate=rate,
                regrown=regrown,
                kept=masking.count(masks)[0],
                before=before,
                after=float(evaluate(trained)),
                seconds=time.perf_counter() - started,
            )
            results.append(result)
            if callback is not None:
                callback(result)
    return tuple(results)


def _cells(rates: Sequence[float], regrow: Sequence[bool]) -> list[_Cell]:
    numbers, switches = np.asarray(rates), np.asarray(regrow)
    for name, values in (("rates", numbers), ("regrow", switches)):
        if values.ndim != 1 or not values.size:
            raise ValueError(f"{name}: must be a sequence that holds one at least")
    for rate in numbers.tolist():
        require_fraction("each of rates", rate)
    return [_Cell(float(r), bool(on)) for r in numbers for on in switches]


def _regenerate(
    target: Plan, params: Params, gradient: Params, masks: Masks, fraction: float
) -> Masks:
    """Drop a fraction of what every layer has left, and regrow it by gradient."""
    share, layout = Fraction(repr(float(fraction))), target.layout
    leaves = layout.leaf_masks(masks)
    strength, wanted = (
        tuple(map(jnp.abs, layout.split(tree))) for tree in (params, gradient)
    )
    units, patterns = target.units, target.patterns
    if units is not None:
        strength, wanted = units.means(strength), units.means(wanted)
        leaves, patterns = units.touched(leaves), (None,) * len(strength)
    (active,) = Segments.of_layers(target.stacking).count([[m] for m in leaves])
    drop = [math.ceil(share * n) for n in active.tolist()]
    new = _exchange(
        strength, wanted, leaves, jnp.asarray(drop, jnp.int32), None,
        stacking=target.stacking, patterns=patterns,
    )  # fmt: skip
    return layout.masks(new if units is None else units.expand(new))


_exchange = jax.jit(exchange_all, static_argnames=("stacking", "patterns"))
