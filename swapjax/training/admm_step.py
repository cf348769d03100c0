"""What ADMM does at an update: pull weights, project them, sum up residuals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core import sharding
from swapjax.core.checks import require_count, take_amount
from swapjax.core.members import any_member, differ_like
from swapjax.core.trees import wide
from swapjax.core.types import Leaves, Params, Status
from swapjax.sparsity import masks as masking
from swapjax.sparsity.budget import select
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned, require_one
from swapjax.training.admm_state import AdmmState
from swapjax.training.inputs import (
    check_gradients,
    check_mask_step,
    require_optimizer,
    take_arrays,
)
from swapjax.training.passed_over import pass_over_constants
from swapjax.training.second_moment import second_moment
from swapjax.training.update import alone

Penalty = float | Callable[[jax.Array], Any]
# Steps times the penalty: 1e-3 in the 78,200 steps of SAFE's ResNet-20.
PULL = 78.0


def transformation(
    optimizer: optax.GradientTransformation,
    sparsity: float | None,
    plan: Plan | None,
    steps: int,
    penalty: Penalty | None,
    every: int,
    weighs: bool,
) -> optax.GradientTransformationExtraArgs:
    """Make `swapjax.admm` or `swapjax.elsa`.

    Args:
        optimizer: as they take it, like all that follows.
        sparsity: or None.
        plan: or None.
        steps: updates in all.
        penalty: of `elsa` at all updates, of `admm` at the last; a schedule, or None.
        every: updates from one projection to the next.
        weighs: whether projections go by the second moment.

    Raises:
        ValueError: as `swapjax.admm` does.
    """
    require_optimizer(optimizer)
    require_one(sparsity, plan)
    require_count("steps", steps)
    require_count("every", every)
    own = Admm(
        pass_over_constants(optimizer), sparsity, plan, steps,
        _schedule(penalty, steps, ramp=not weighs), every, weighs,
    )  # fmt: skip

    def init(params: Params) -> AdmmState:
        return own.start(take_arrays(params))

    def update(
        gradients: Params,
        state: AdmmState,
        params: Params | None = None,
        *,
        mask_step: bool | None = None,
        **extra: Any,
    ) -> tuple[Params, AdmmState]:
        return own.update(gradients, state, params, mask_step, extra)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class Admm:
    """The arguments of `admm`, and what its transformation does.

    Attributes:
        optimizer: that moves the weights, and passes over what has no gradient.
        sparsity: or None.
        plan: or None.
        steps: updates in all.
        penalty: a schedule.
        every: updates from one projection to the next.
        weighs: whether projections go by the second moment.
    """

    optimizer: optax.GradientTransformationExtraArgs
    sparsity: float | None
    plan: Plan | None
    steps: int
    penalty: Callable[[jax.Array], Any]
    every: int
    weighs: bool

    def start(self, params: Params) -> AdmmState:
        """Make the state before the first update: z is what a cut would leave now."""
        inner = self.optimizer.init(params)
        count, some = jnp.zeros((), jnp.int32), jax.tree.leaves(params)
        # So that the last of the changes is that of the last update.
        first = (self.steps - 1) % self.every + 1
        extras: dict[str, Any] = {
            "last": jnp.asarray(self.steps, jnp.int32),
            "first": jnp.asarray(first, jnp.int32),
            "every": jnp.asarray(self.every, jnp.int32),
            "waits": jnp.zeros((), bool),
        }
        if not some:  # Optax finds out by such a tree what of a state is of params
            extras["status"] = jnp.zeros(0, jnp.int32)
            return AdmmState(count, params, params, inner, extras)
        laid = planned(params, self.sparsity, self.plan)
        laid.require_countable()
        weights = laid.layout.split(params)
        extras["status"] = jnp.zeros(len(weights), jnp.int32)
        if self.weighs:
            second_moment(inner, params)  # raises where there is none
        kind = wide(weights)
        sums = tuple(x.astype(kind) for x in weights)
        kept = _largest(tuple(map(jnp.abs, sums)), laid)
        # There is no residual yet.
        sums = tuple(jnp.where(m, v, 0) for m, v in zip(kept, sums, strict=True))
        trees = laid.layout.masks(kept), alone(laid, sums, params)
        masks, held = (sharding.put_like(tree, params) for tree in trees)
        made = AdmmState(count, masks, held, inner, extras)
        return differ_like(sharding.put_beside(made, params), params)

    def update(
        self,
        gradients: Params,
        state: AdmmState,
        params: Params | None,
        mask_step: bool | None,
        extra: dict[str, Any],
    ) -> tuple[Params, AdmmState]:
        """Move weights along gradient and penalty, then change z and u if it is due."""
        if params is None:
            raise ValueError("params: admm needs them; call tx.update with params")
        if not isinstance(state, AdmmState):
            raise ValueError(
                f"state: must be what tx.init gave, got a {type(state).__name__}"
            )
        if extra.get("value_fn") is not None:
            raise ValueError(
                "value_fn: a line search would measure the loss without the penalty "
                "that its direction has; take another optimizer, such as optax.adam"
            )
        check_mask_step(mask_step)
        params = take_arrays(params)
        t = optax.safe_increment(state.count)
        if not jax.tree.leaves(params):
            return gradients, state._replace(count=t)
        check_gradients(gradients, params)
        laid = planned(params, self.sparsity, self.plan)
        layout = laid.layout
        masking.check(state.masks, params, "state.masks")
        masks, sums = layout.leaf_masks(state.masks), layout.split(state.sums)
        weights, slopes = layout.split(params), layout.split(gradients)
        strength = self.penalty(state.count)
        # z - u is the sum where masks keep it, and minus the sum elsewhere.
        pulled = tuple(
            g + (strength * (x.astype(v.dtype) - jnp.where(m, v, -v))).astype(g.dtype)
            for g, x, m, v in zip(slopes, weights, masks, sums, strict=True)
        )
        seen = layout.merge(pulled, gradients)
        updates, inner = self.optimizer.update(seen, state.inner, params, **extra)
        given = masks, sums, state.extras["status"]
        due = ((self.steps - t) % self.every == 0) & (t <= self.steps)
        due |= state.extras["waits"]
        if mask_step is not False:
            moves = layout.split(updates)
            moved = tuple(
                (x + u).astype(x.dtype) for x, u in zip(weights, moves, strict=True)
            )
            moments: Leaves | None = None
            if self.weighs:
                moments = layout.split(second_moment(inner, params))
            given = self._change(laid, t, due, given, moved, moments)
        masks, sums, status = given
        return updates, AdmmState(
            count=t,
            masks=layout.merge(masks, state.masks),
            sums=layout.merge(sums, state.sums),
            inner=inner,
            extras=state.extras
            | {"status": status, "waits": due & jnp.asarray(mask_step is False)},
        )

    def _change(
        self,
        laid: Plan,
        t: jax.Array,
        due: jax.Array,
        given: tuple[Leaves, Leaves, jax.Array],
        weights: Leaves,
        moments: Leaves | None,
    ) -> tuple[Leaves, Leaves, jax.Array]:
        """Project, and sum up the residuals, if that is due.

        Args:
            laid: what to keep of params.
            t: the number of the update, from 1.
            due: whether it is, or has been in a program that leaves it out.
            given: masks, sums and status until now.
            weights: after the update.
            moments: to weigh by, or None.
        """
        last = t >= self.steps

        def project() -> tuple[Leaves, Leaves, jax.Array]:
            masks, sums, status = given
            sums = tuple(
                x.astype(v.dtype) + jnp.where(m | last, 0, v)
                for x, m, v in zip(weights, masks, sums, strict=True)
            )
            scores = tuple(map(jnp.abs, sums))
            if moments is not None:
                scores = tuple(
                    s * jnp.sqrt(v.astype(s.dtype))
                    for s, v in zip(scores, moments, strict=True)
                )
            broken = jnp.stack([~jnp.all(jnp.isfinite(s)) for s in scores])
            met = jnp.where(broken, Status.NOT_FINITE, Status.CONVERGED)
            new = _largest(scores, laid), sums, jnp.maximum(met, status)
            # Members of an ensemble may differ.
            return jax.tree.map(lambda a, b: jnp.where(due, a, b), new, given)

        return jax.lax.cond(any_member(due), project, lambda: given)


def _largest(scores: Leaves, laid: Plan) -> Leaves:
    """Choose what a plan keeps, on a mesh with explicit axes as well."""
    return sharding.by_compiler(lambda s: select(s, laid.budget), scores)(scores)


def _schedule(
    penalty: Penalty | None, steps: int, ramp: bool
) -> Callable[[jax.Array], Any]:
    """Make the schedule of the penalty, which rises from zero or stays.

    Raises:
        ValueError: for a penalty that is neither 0 or more nor a schedule.
    """
    if callable(penalty):
        return penalty
    if penalty is None:
        penalty = PULL / steps
    top = take_amount("penalty", penalty, "or a schedule of Optax's")
    if not ramp:
        return optax.constant_schedule(top)

    def at(count: jax.Array) -> jax.Array:
        done = jnp.minimum(count, steps).astype(jnp.result_type(float)) / steps
        return top * (1 - jnp.cos(jnp.pi * done)) / 2

    return at
