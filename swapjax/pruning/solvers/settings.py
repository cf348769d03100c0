"""The re-fit on a support as a function of what holds the weights, in any algebra."""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.method import Problem, some_layers_of
from swapjax.pruning.solvers import conjugate_gradients
from swapjax.pruning.solvers.judges import Judge
from swapjax.pruning.solvers.kfac import Kronecker, estimate
from swapjax.pruning.solvers.refit import Refit, prepare, refit
from swapjax.pruning.solvers.targets import State, Target
from swapjax.pruning.solvers.unit_blocks import SupportRidge, Units, units_of

Ridge = Literal["identity", "kfac"]

TIED = 2e-5  # the damping that goes with kappa = 1, unless one is given


class Setting(NamedTuple):
    """What holds the weights near the reference; arrays [m] for m settings.

    Attributes:
        damping: lambda of the identity; None where it follows kappa.
        kappa: of the Kronecker-factored ridge; None without.
    """

    damping: jax.Array | None
    kappa: jax.Array | None


def every(
    damping: tuple[float, ...] | None,
    kappa: tuple[float, ...] | None,
    dtype: jnp.dtype,
) -> Setting:
    """Pair every damping with every kappa, kappas first."""
    if kappa is None or damping is None:
        return Setting(
            None if damping is None else jnp.asarray(damping, dtype),
            None if kappa is None else jnp.asarray(kappa, dtype),
        )
    pairs = list(itertools.product(kappa, damping))
    kappas, dampings = zip(*pairs, strict=True)
    return Setting(jnp.asarray(dampings, dtype), jnp.asarray(kappas, dtype))


class Held(NamedTuple):
    """A Kronecker-factored matrix and its blocks."""

    kronecker: Kronecker
    units: Units

    @property
    def unfollowed(self) -> jax.Array:
        """The number of leaves that T knows the diagonal of alone."""
        alone = sum(layer is None for layer in self.kronecker.layers)
        return jnp.asarray(alone, jnp.int32)

    def damping(self, setting: "Setting") -> jax.Array:
        """Tell the damping of a setting."""
        if setting.damping is not None:
            return setting.damping
        assert setting.kappa is not None
        return setting.kappa * TIED

    @classmethod
    def by(cls, kronecker: Kronecker | None, dtype: jnp.dtype) -> "Held | None":
        """Take a matrix with its blocks, once for all supports and settings."""
        if kronecker is None:
            return None
        return cls(kronecker, units_of(kronecker, dtype))


def follow(problem: Problem, rows: GradientOperator) -> Kronecker:
    """Estimate the Kronecker-factored Fisher of a problem."""
    layers, squares = some_layers_of(problem), rows.mean_squares()
    if problem.layout is None:
        return estimate(layers, problem.weights, squares)
    ends = problem.layout.unpack, problem.layout.pack
    return estimate(layers, problem.weights, squares, *ends)


def on_support(
    rows: GradientOperator,
    support: Leaves,
    reference: Leaves,
    y: jax.Array,
    target: Target,
    state: State,
    *,
    held: Held | None,
    with_products: bool,
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
        held: T, or None for the identity alone.
        with_products: whether to solve by conjugate gradients, and not in n x n.
        least: the smallest damping there will be, or the smallest kappa; None where
            kappas do not share a system, since each has dampings of its own.
        rounds: the most alternations.
        tolerance: the relative change of Q at which they stop.
        judge: who chooses among re-fits.
    """
    limits: dict[str, Any] = {"rounds": rounds, "tolerance": tolerance}
    judged = limits | {"judge": judge}
    problem = rows, support, reference, y, target, state

    def ridge_of(setting: Setting) -> SupportRidge | None:
        if held is None:
            return None
        assert setting.kappa is not None
        of = held.kronecker, held.units, support
        return SupportRidge.of(*of, setting.kappa, held.damping(setting))

    def by_products(setting: Setting, bend: jax.Array | None) -> Refit:
        ridge = ridge_of(setting)
        damping = jnp.ones((), y.dtype) if ridge is not None else setting.damping
        assert damping is not None
        fit = conjugate_gradients.refit(
            *problem, damping=damping, bend=bend, ridge=ridge, **limits
        )
        return fit if ridge is None else _tell(fit, ridge)

    def by_ridge(setting: Setting, bend: jax.Array | None) -> Refit:
        ridge = ridge_of(setting)
        assert ridge is not None
        ground = prepare(*problem, 1.0, ridge)
        fit = refit(rows, ground, y, target, damping=1.0, bend=bend, **judged)
        return _tell(fit, ridge)

    if with_products:
        return by_products
    tied = None
    if held is not None:
        if least is None:
            return by_ridge
        tied = ridge_of(Setting(None, jnp.ones((), y.dtype)))
    # One Gram matrix serves all dampings, and all kappas that they are tied to.
    ground = prepare(*problem, 0.0 if least is None else least, tied)

    def shared(setting: Setting, bend: jax.Array | None) -> Refit:
        times = setting.damping if tied is None else setting.kappa
        assert times is not None
        fit = refit(rows, ground, y, target, damping=times, bend=bend, **judged)
        return fit if tied is None else _tell(fit, tied)

    return shared


def _tell(fit: Refit, ridge: SupportRidge) -> Refit:
    """Report lambda and kappa of a ridge that was taken a number of times."""
    return fit._replace(
        damping=ridge.damping * fit.damping,
        raised=fit.raised | ridge.raised,
        couplings={**fit.couplings, "kappa": ridge.kappa * fit.damping},
    )
