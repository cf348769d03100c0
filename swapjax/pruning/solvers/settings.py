"""The re-fit on a support as a function of what holds the weights, in any algebra."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.method import Problem, some_layers_of
from swapjax.pruning.solvers import conjugate_gradients
from swapjax.pruning.solvers.candidates import pick
from swapjax.pruning.solvers.judges import Judge
from swapjax.pruning.solvers.kfac import Kronecker, estimate
from swapjax.pruning.solvers.natural_step import Trust
from swapjax.pruning.solvers.refit import Dual, Ground, Refit, prepare, refit, solve
from swapjax.pruning.solvers.targets import State, Target
from swapjax.pruning.solvers.unit_blocks import SupportRidge
from swapjax.pruning.solvers.units import Units, units_of

Ridge = Literal["identity", "kfac"]

_Problem = tuple[GradientOperator, Leaves, Leaves, jax.Array, Target, State]

# The damping that goes with kappa = 1, unless one is given: in units of the mean of the
# diagonal of T, in each output by itself, as in `layerwise_obs`. Noise on gradients
# raises the norm of rows, and not T, but where a leaf could not be followed.
_TIED = 0.01
_LEAST = 1e-3  # of the mean of those: what an output has that reads nothing


class Setting(NamedTuple):
    """What holds the weights near the reference; arrays [m] for m settings.

    Attributes:
        damping: lambda of the identity; None where it follows kappa.
        kappa: of the Kronecker-factored ridge; None without.
        number: which of the settings it is.
    """

    damping: jax.Array | None
    kappa: jax.Array | None
    number: jax.Array


def every(
    damping: tuple[float, ...] | None,
    kappa: tuple[float, ...] | None,
    dtype: jnp.dtype,
) -> Setting:
    """Pair every damping with every kappa, kappas first."""
    if kappa is not None and damping is not None:
        pairs = list(itertools.product(kappa, damping))
        kappa, damping = zip(*pairs, strict=True)
    one, other = (
        None if v is None else jnp.asarray(v, dtype) for v in (damping, kappa)
    )
    count = len(damping or kappa or ())
    return Setting(one, other, jnp.arange(count, dtype=jnp.int32))


class Held(NamedTuple):
    """A Kronecker-factored matrix T and its blocks.

    Attributes:
        kronecker: T.
        units: its blocks, output by output.
        tied: the damping that goes with kappa = 1 on average, unless one is given.
        least: what each output has of it, if next to nothing of its own.
    """

    kronecker: Kronecker
    units: Units
    tied: jax.Array
    least: jax.Array

    def told(self) -> dict[str, jax.Array]:
        """Say how many leaves T knows the diagonal of alone, and how much is noise."""
        alone = sum(layer is None for layer in self.kronecker.layers)
        return {
            "unfollowed_leaves": jnp.asarray(alone, jnp.int32),
            "noise_columns": self.kronecker.noise,
        }

    def damping(self, setting: Setting) -> jax.Array:
        """Tell the damping of a setting, on average."""
        if setting.damping is not None:
            return setting.damping
        assert setting.kappa is not None
        return setting.kappa * self.tied

    def ridge(
        self, support: Leaves, setting: Setting, *, in_blocks: bool
    ) -> SupportRidge:
        """Make the ridge of a setting on a support."""
        kappa, damping, share = setting.kappa, setting.damping, 0.0
        assert kappa is not None
        if damping is None:
            damping, share = kappa * self.least, _TIED
        of = self.kronecker, self.units, support, kappa, damping
        return SupportRidge.of(*of, share=share, in_blocks=in_blocks)

    def tell(self, fit: Refit, ridge: SupportRidge) -> Refit:
        """Report lambda and kappa of a ridge that was taken a number of times."""
        one = ridge.damping if ridge.share == 0 else ridge.kappa * self.tied
        return fit._replace(
            damping=one * fit.damping,
            raised=fit.raised | ridge.raised,
            couplings={**fit.couplings, "kappa": ridge.kappa * fit.damping},
        )


def hold_by(problem: Problem, rows: GradientOperator, dtype: jnp.dtype) -> Held:
    """Estimate T of a problem, and list its blocks, for all supports and settings."""
    layers, layout = some_layers_of(problem), problem.layout
    ends = () if layout is None else (layout.unpack, layout.pack)
    kronecker = estimate(layers, problem.weights, rows.mean_squares(), *ends)
    there = tuple(w != 0 for w in problem.weights)
    trace = optax.tree.sum(
        tuple(
            jnp.sum(jnp.where(m, t, 0), dtype=dtype)
            for m, t in zip(there, kronecker.diagonal(), strict=True)
        )
    )
    count = optax.tree.sum(tuple(jnp.sum(m, dtype=dtype) for m in there))
    # Without a column above the floor T is zero; that of rows has a trace of 1.
    tied = _TIED * jnp.where(trace > 0, trace, 1) / jnp.maximum(count, 1)
    least = jnp.where(trace > 0, _LEAST * tied, tied)
    return Held(kronecker, units_of(kronecker, dtype), tied, least)


def on_support(
    rows: GradientOperator,
    support: Leaves,
    reference: Leaves,
    y: jax.Array,
    target: Target,
    state: State,
    settings: Setting,
    *,
    held: Held | None,
    with_products: bool,
    first_order: bool,
    least: float | None,
    rounds: int,
    tolerance: float,
    judge: Judge = "loss",
) -> Callable[[Setting, jax.Array | None], Refit]:
    """Make the re-fit on a support, a function of a setting and a bend.

    Args:
        rows: the operator G.
        support: bool leaves.
        reference: the weights wbar.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        state: as the target prepared it for y.
        settings: all that it will be asked for.
        held: T, or None for the identity alone.
        with_products: whether to solve by conjugate gradients, and not in n x n.
        first_order: whether there is to be a first-order step.
        least: the smallest damping there will be, or the smallest kappa; None where
            kappas do not share a system, since each has dampings of its own.
        rounds: the most alternations.
        tolerance: the relative change of Q at which they stop.
        judge: who chooses among re-fits.
    """
    limits: dict[str, Any] = {"rounds": rounds, "tolerance": tolerance}
    problem = rows, support, reference, y, target, state

    if with_products:

        def by_products(setting: Setting, bend: jax.Array | None) -> Refit:
            ridge, damping = None, setting.damping
            if held is not None:
                ridge = held.ridge(support, setting, in_blocks=False)
                damping = jnp.ones((), y.dtype)
            assert damping is not None
            fit = conjugate_gradients.refit(
                *problem, damping=damping, bend=bend, ridge=ridge, **limits
            )
            return fit if held is None or ridge is None else held.tell(fit, ridge)

        return by_products

    limits["judge"] = judge
    if held is None:
        # One Gram matrix serves all dampings.
        ground = prepare(*problem, 0.0 if least is None else least)

        def by_damping(setting: Setting, bend: jax.Array | None) -> Refit:
            assert setting.damping is not None
            return refit(
                rows, ground, y, target, damping=setting.damping, bend=bend, **limits
            )

        return by_damping
    limits["first_order"] = first_order
    if least is None:
        found = jax.lax.map(
            functools.partial(_one_ridge, problem, held, limits), settings
        )
    else:
        found = _tied(problem, held, least, settings, limits)

    def looked_up(setting: Setting, bend: jax.Array | None) -> Refit:
        ahead: _Ahead = pick(setting.number, found)
        if bend is None:
            return ahead.fit
        assert isinstance(ahead.trust, Trust)
        return ahead.fit._replace(length=ahead.trust.length(bend))

    return looked_up


class _Ahead(NamedTuple):
    """A re-fit whose blocks were solved in advance, with those of other settings."""

    fit: Refit
    trust: Trust | tuple[()]


def _one_ridge(
    problem: _Problem, held: Held, limits: dict[str, Any], setting: Setting
) -> _Ahead:
    """Re-fit with a ridge of its own."""
    ridge = held.ridge(problem[1], setting, in_blocks=True)
    ground = prepare(*problem, 1.0, ridge)
    once = jnp.ones(1, ground.start.dtype)
    found: _Ahead = pick(0, _together(problem, held, ground, once, limits))
    return found


def _tied(
    problem: _Problem,
    held: Held,
    least: float,
    settings: Setting,
    limits: dict[str, Any],
) -> _Ahead:
    """Re-fit with all kappas that dampings are tied to: one system, one sweep."""
    assert settings.kappa is not None
    one = Setting(None, jnp.ones((), settings.kappa.dtype), settings.number)
    ridge = held.ridge(problem[1], one, in_blocks=True)
    ground = prepare(*problem, least, ridge)
    return _together(problem, held, ground, settings.kappa, limits)


def _together(
    problem: _Problem,
    held: Held,
    ground: Ground,
    times: jax.Array,
    limits: dict[str, Any],
) -> _Ahead:
    """Re-fit with a ridge taken several times, [m], in one sweep over its blocks."""
    rows, _, _, y, target, _ = problem
    ridge = ground.ridge
    assert ridge is not None
    duals: Dual = jax.lax.map(
        lambda lam: solve(ground, y, target, damping=lam, **limits), times
    )
    residuals = [duals.change]
    if not isinstance(duals.step, tuple):
        residuals.append(duals.step)
    pulled = jax.lax.map(rows.pull_back, jnp.concatenate(residuals))
    # Zero off the support already.
    solved = trees.cast_like(ridge.solve_several(pulled), ground.kept)
    count = len(times)
    fit = duals.fit._replace(
        weights=tuple(w + v[:count] for w, v in zip(ground.kept, solved, strict=True)),
        step=tuple(v[count:] for v in solved) if len(residuals) > 1 else (),
    )
    return _Ahead(held.tell(fit, ridge), duals.trust)
