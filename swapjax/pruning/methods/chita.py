"""CHITA: the regression of linear_regression, made for speed, with a search."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.gradients.stored import StoredRows
from swapjax.pruning.damping import check_ridge
from swapjax.pruning.method import Method, Problem, Solution, rows_of
from swapjax.pruning.solvers import natural_step, targets
from swapjax.pruning.solvers.backsolve import backsolve, sweep
from swapjax.pruning.solvers.candidates import best_of, conclude, count_new
from swapjax.pruning.solvers.conjugate_gradients import prefers_cg
from swapjax.pruning.solvers.coordinate_descent import descend
from swapjax.pruning.solvers.hard_thresholding import iht
from swapjax.pruning.solvers.settings import (
    Held,
    Ridge,
    Setting,
    every,
    hold_by,
    on_support,
)
from swapjax.pruning.solvers.shrink import Shrunk, shrink
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks

Search = Literal["shrink", "iht", "magnitude"]
Polish = Literal["backsolve", "descent", "none"]

DAMPINGS = (1e-5, 1e-4, 1e-3)


def chita(
    *,
    ridge: Ridge = "identity",
    damping: float | tuple[float, ...] | None = None,
    kappa: float | tuple[float, ...] | None = None,
    search: Search | None = None,
    step: float = 0.7,
    iterations: int = 4,
    polish: Polish = "backsolve",
    block: int | None = None,
    sweeps: int | None = None,
    first_order: bool = False,
) -> Method:
    """Keep ``G w`` close to ``G wbar`` with k non-zeros: L0 regression (CHITA).

    Minimises ``1/2 |G w - G wbar|^2 + n lambda/2 |w - wbar|^2`` with at most k
    non-zeros (Benbaki et al., ICML 2023, arXiv:2302.14623). Three ways to search for
    the support:

    - ``"shrink"`` thresholds a little at a time, with a back-solve in between. What is
      off the support stands for the value that minimises the objective in that weight
      alone, so that it may come back. It is not in the authors' code; from one set of
      gradients it finds far better supports.
    - ``"iht"`` is iterative hard thresholding with exact steps on the support and a
      line search beyond it (`swapjax.pruning.solvers.hard_thresholding`), after the
      authors' code. Started from magnitude it rarely changes the support.
    - ``"magnitude"`` takes the largest weights, as the authors' heuristics do.

    None takes new gradients. With stages this is CHITA++.

    Args:
        ridge: what holds the weights beside lambda, as in `linear_regression`.
        damping: lambda, in units of the mean squared norm of the gradient rows. Of
            several the one with the lowest loss is taken, each having searched for
            itself. By default (1e-5, 1e-4, 1e-3); with ``"kfac"`` as in
            `linear_regression`.
        kappa: of ``"kfac"``, one value or several, tried with every damping.
        search: see above; by default shrink, or magnitude with block.
        step: the share of entries that shrink keeps at a time, in [0, 1); 0 goes to the
            stage's density at once. A pattern N:M is reached at once.
        iterations: thresholdings of shrink at the final density, by magnitude and by
            `obd` in turn, of which the one with the lowest loss counts; the most steps
            of iht.
        polish: how weights on the support are found at last: ``"backsolve"`` in closed
            form; ``"descent"`` by cyclic coordinate descent, O(n k) a sweep, needs
            stored rows; ``"none"`` leaves those of the search.
        block: back-solve for this many weights of the support at a time, each block
            given the others, in O(n k block) a sweep; by default for all at once, in
            O(n^2 k), or O(n k^2) for k < n. The authors' blocks ignore one another,
            which calls for another damping and does worse at high sparsity.
        sweeps: of coordinate descent, 20 by default, or over the blocks, by default 3.
        first_order: follow the mean gradient too, in full: targets shift by ``-1/c``,
            c Fishers of the rows being the Hessian, as the loss of the thresholded
            weights tells. With few rows that is mostly noise.

    Returns:
        The method, for `swapjax.prune`. Its details are ``damping``, the lambda used,
        in the units of the argument; ``support_swaps``, the entries kept that are not
        among the largest weights; of several settings ``loss``, the mean loss of
        the stage's examples with the weights returned, or what else judges them; and
        with ``ridge="kfac"`` ``kappa``, ``unfollowed_leaves`` and ``noise_columns``, as
        in `linear_regression`.

    Raises:
        ValueError: for values out of range, naming the argument; when called, for
            coordinate descent on matrix-free rows.
    """
    if search is None:
        search = "shrink" if block is None else "magnitude"
    if search not in ("shrink", "iht", "magnitude"):
        raise ValueError(
            f"search must be 'shrink', 'iht' or 'magnitude', got {search!r}"
        )
    if polish not in ("backsolve", "descent", "none"):
        raise ValueError(
            f"polish must be 'backsolve', 'descent' or 'none', got {polish!r}"
        )
    if block is not None:
        require_count("block", block)
    if block is not None and (polish == "descent" or search == "shrink"):
        raise ValueError(
            "block: coordinate descent and shrink take all weights at once"
        )
    dampings, kappas = check_ridge(ridge, damping, kappa, DAMPINGS)
    if kappas is not None and (polish != "backsolve" or block is not None):
        raise ValueError("ridge: 'kfac' needs polish='backsolve', and no block")
    if not 0 <= step < 1:
        raise ValueError(f"step must be in [0, 1), got {step}")
    if sweeps is None:
        sweeps = 20 if polish == "descent" else 3
    for name, value in (("iterations", iterations), ("sweeps", sweeps)):
        require_count(name, value)
    settings: dict[str, Any] = {
        "damping": dampings,
        **({} if kappas is None else {"kappa": kappas}),
        "search": search,
        "step": step,
        "iterations": iterations,
        "polish": polish,
        "block": block,
        "sweeps": sweeps,
        "first_order": first_order,
    }
    return Method(
        name="chita",
        settings=tuple(settings.items()),
        solve=functools.partial(_solve, **settings),
        needs_layers="some" if kappas is not None else False,
        criterion="harm" if kappas is not None and not first_order else "loss",
        needs_shapes=False,
    )


class _Fit(NamedTuple):
    """Weights on a support, and what there is to tell of them."""

    weights: Leaves
    objective: jax.Array
    damping: jax.Array
    raised: jax.Array
    told: dict[str, jax.Array]


def _solve(
    problem: Problem,
    budget: Budget,
    *,
    damping: tuple[float, ...] | None,
    search: Search,
    step: float,
    iterations: int,
    polish: Polish,
    block: int | None,
    sweeps: int,
    first_order: bool,
    kappa: tuple[float, ...] | None = None,
) -> Solution:
    rows, wbar, within = rows_of(problem), problem.weights, problem.within
    if polish == "descent" and not isinstance(rows, StoredRows):
        raise ValueError("polish: coordinate descent needs storage='stored'")
    first = select(scores.magnitude(wbar), budget, within)
    # The first-order term is a shift of the targets, whatever solves for them.
    shift: jax.Array | float = 0.0
    if first_order:
        shift = 1 / natural_step.bend_of(problem, apply_masks(wbar, first))
    target = rows.project(wbar) - shift
    held = None if kappa is None else hold_by(problem, rows, target.dtype)

    def held_by(setting: Setting) -> jax.Array:
        lam = setting.damping if held is None else held.damping(setting)
        assert lam is not None
        return lam

    def refit(support: Leaves, setting: Setting) -> _Fit:
        if held is not None:
            return _refit_held(rows, support, wbar, target, held, setting)
        lam = held_by(setting)
        return _refit(rows, support, wbar, shift, lam, block=block, sweeps=sweeps)

    def search_for(setting: Setting, lam: jax.Array) -> Shrunk:
        if search == "shrink":
            hold, stiffness = _ridge(rows, wbar, held, setting, lam)
            return shrink(
                rows, wbar, target, budget, lambda mask: refit(mask, setting).weights,
                problem.loss, hold=hold, stiffness=stiffness, step=step,
                iterations=iterations, within=within,
            )  # fmt: skip
        if search == "iht":
            path = iht(
                rows, first, wbar, wbar, target, identity, identity.prepare(target),
                budget, damping=lam, iterations=iterations, tolerance=1e-7,
                within=within,
            )  # fmt: skip
            return Shrunk(path.support, path.weights, path.iterations)
        return Shrunk(first, apply_masks(wbar, first), jnp.zeros((), jnp.int32))

    def make(setting: Setting) -> Solution:
        lam = held_by(setting)
        support, weights, rounds = search_for(setting, lam)
        if polish == "backsolve":
            fit = refit(support, setting)
        else:
            fit = _Fit(*_polish(
                rows, support, weights, wbar, target, lam,
                sweeps=sweeps if polish == "descent" else 0,
            ), lam, jnp.asarray(False), {})  # fmt: skip
        details = {"damping": fit.damping, "support_swaps": count_new(support, first)}
        return conclude(
            problem,
            fit.weights,
            support,
            objective=fit.objective,
            iterations=rounds,
            raised=fit.raised,
            details={**details, **fit.told},
        )

    identity = targets.none()
    return best_of(make, every(damping, kappa, target.dtype), problem.loss)


def _refit(
    rows: GradientOperator,
    support: Leaves,
    wbar: Leaves,
    shift: jax.Array | float,
    lam: jax.Array,
    *,
    block: int | None,
    sweeps: int,
) -> _Fit:
    """Re-fit on a support by back-solves."""
    kept = apply_masks(wbar, support)
    lost = rows.project(optax.tree.sub(wbar, kept)) - shift
    ridge = rows.n * lam
    if block is None:
        fit = backsolve(rows, support, lost, ridge)
    else:
        fit = sweep(rows, support, lost, ridge, block=block, sweeps=sweeps)
    new = optax.tree.add(kept, trees.cast_like(fit.change, wbar))
    values = jnp.stack([0.5 * jnp.vdot(lost, lost), fit.value])
    return _Fit(new, values, fit.ridge / rows.n, fit.raised, {})


def _refit_held(
    rows: GradientOperator,
    support: Leaves,
    wbar: Leaves,
    target: jax.Array,
    held: Held,
    setting: Setting,
) -> _Fit:
    """Re-fit on a support with a Kronecker-factored ridge."""
    identity = targets.none()
    state = identity.prepare(target)
    one = jax.tree.map(lambda x: x[None], setting)
    fit = on_support(
        rows, support, wbar, target, identity, state, one,
        held=held, with_products=prefers_cg(rows, wbar, 1), first_order=False,
        least=None, rounds=1, tolerance=0.0,
    )(setting._replace(number=jnp.zeros((), jnp.int32)), None)  # fmt: skip
    told = {"kappa": fit.couplings["kappa"], **held.told()}
    return _Fit(fit.weights, fit.objective, fit.damping, fit.raised, told)


def _ridge(
    rows: GradientOperator,
    wbar: Leaves,
    held: Held | None,
    setting: Setting,
    lam: jax.Array,
) -> tuple[Callable[[Leaves], Leaves], Leaves]:
    """Make ``v -> n R v``, and ``n R_qq``."""
    if held is None:
        even = rows.n * lam
        return lambda v: tuple(even * x for x in v), (even,) * len(wbar)
    there = jax.tree.map(lambda w: w != 0, wbar)
    ridge = held.ridge(there, setting, in_blocks=False)
    hold = lambda v: tuple(rows.n * x for x in ridge.multiply(v))  # noqa: E731
    return hold, tuple(rows.n * d for d in ridge.diagonal())


def _polish(
    rows: GradientOperator,
    support: Leaves,
    weights: Leaves,
    reference: Leaves,
    target: jax.Array,
    lam: jax.Array,
    *,
    sweeps: int,
) -> tuple[Leaves, jax.Array]:
    """Improve weights on a support by coordinate descent; 0 sweeps leave them alone.

    Returns:
        The weights, and the values of the objective: at the thresholded reference,
        then after each sweep, or at the weights.
    """
    kept = apply_masks(reference, support)
    values = _objective(rows, kept, kept, target, lam)[None]
    if sweeps:
        assert isinstance(rows, StoredRows)
        weights, later = descend(
            rows, support, weights, reference, target, damping=lam, sweeps=sweeps
        )
    else:
        later = _objective(rows, weights, kept, target, lam)[None]
    return weights, jnp.concatenate([values, later])


def _objective(
    rows: GradientOperator,
    weights: Leaves,
    kept: Leaves,
    target: jax.Array,
    lam: jax.Array,
) -> jax.Array:
    """Evaluate what a back-solve minimises, at weights on the support."""
    left = target - rows.project(weights)
    offset = optax.tree.sub(weights, kept)
    held = rows.n * lam * optax.tree.norm(offset, squared=True)
    return 0.5 * (jnp.vdot(left, left) + held)
