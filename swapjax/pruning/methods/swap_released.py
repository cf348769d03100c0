"""What the released SWAP code does, kept apart from what its equations say.

For comparisons. Four things differ from `swap`. The direction is ``G^T Pi^T (x - y)``
and not the gradient at a fixed plan; for the plan it is scaled by 1/n, the damping is
not. The step is found by Adam on a scalar and then by growing it as long as the
objective falls *before* thresholding. The stepped weights choose the mask and are then
thrown away: the old values stay, times the mask. The reference is the network before
the first stage.

Reimplemented from a description of the behaviour (commit ce54d7d, which has no
licence), not from its text. Its constants (damping, epsilon, the start and the rate of
Adam, the largest step) are absolute, chosen for the loss of certain networks. Here they
are meant of a loss scaled so that gradients have the size that they had in one of
these: at MLPNet on MNIST as it was released all is as in the code, elsewhere it does
what the code would do if the loss were so scaled.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from swapjax.core.checks import require_count
from swapjax.core.types import Leaves, Status
from swapjax.pruning.method import Method, Problem, Solution, rows_of
from swapjax.pruning.solvers import sinkhorn, transport
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks

_ROWS = 13.6  # root mean square norm of single examples' gradients, MLPNet on MNIST
_DAMPING = 0.01
_BISECTIONS = 50
_ADAM_STEPS = 1000
_ADAM_RATE = 0.01
_GROWTH = 1.05
_GROWTH_LIMIT = 2000


def swap_released(
    *, epsilon: float = 1.0, max_sinkhorn: int = sinkhorn.DEFAULT_ITERATIONS
) -> Method:
    """Choose a mask as the released code of SWAP does, and keep the old values.

    For comparisons with `swap` (You and Cheng, ICLR 2024, arXiv:2310.04918).

    Args:
        epsilon: entropic regularisation in units of the squared projections, of rows
            whose norms are 13.6 over the root of their examples in the root mean
            square, as they are in MLPNet on MNIST; 0 sorts, infinity averages over
            everything.
        max_sinkhorn: the most iterations of Sinkhorn.

    Returns:
        The method, for `swapjax.prune`. Its details are ``tau``, the length of the
        step, and ``tau_limit``, the largest that leaves the support as it is, both in
        units of the direction, of rows of that size; ``perplexity``, the points of y
        that a point of x is matched with on average; ``sinkhorn_iterations``; and
        ``marginal_error``, the L1 distance of the plan's sums from what they should be.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be 0 or more, got {epsilon}")
    require_count("max_sinkhorn", max_sinkhorn)
    return Method(
        "swap-released",
        (("epsilon", epsilon), ("max_sinkhorn", max_sinkhorn)),
        functools.partial(
            _solve, paired=False, epsilon=epsilon, max_sinkhorn=max_sinkhorn
        ),
        needs_shapes=False,
    )


def linear_regression_released() -> Method:
    """Choose a mask as the released code does without transport.

    The linear regression that the released code of SWAP (arXiv:2310.04918) compares
    itself with; for comparisons with `linear_regression`.

    Returns:
        The method, for `swapjax.prune`. Its details are those of `swap_released`.
    """
    return Method(
        "linear-regression-released",
        (("damping", _DAMPING),),
        functools.partial(_solve, paired=True, epsilon=0.0, max_sinkhorn=1),
        needs_shapes=False,
    )


def _solve(
    problem: Problem,
    budget: Budget,
    *,
    paired: bool,
    epsilon: float,
    max_sinkhorn: int,
) -> Solution:
    """Choose a mask by one step of the released code, and keep the old values.

    Args:
        problem: with rows.
        budget: the counts.
        paired: linear regression if True, the transport plan otherwise.
        epsilon: of the plan, in units of the cost.
        max_sinkhorn: its iterations at most.
    """
    rows, w, start = rows_of(problem), problem.weights, problem.initial
    n, size = rows.n, _ROWS / math.sqrt(rows.batch)

    def project(leaves: Leaves) -> jax.Array:
        return size * rows.project(leaves)

    def pull_back(residual: jax.Array) -> Leaves:
        return rows.pull_back(size * residual)

    x, y = project(w), project(start)
    offset = optax.tree.sub(w, start)
    if paired:
        coupling = transport.identity(x, y)
        pulled, held = pull_back(x - y), n * _DAMPING
    else:
        coupling = _couple(x, y, epsilon, max_sinkhorn)
        assert coupling.plan is not None
        pulled, held = pull_back(coupling.plan.T @ (x - y)), _DAMPING
    d = tuple(
        (g + held * o).astype(o.dtype) for g, o in zip(pulled, offset, strict=True)
    )

    def along(direction: Leaves) -> tuple[jax.Array, jax.Array]:
        """Slope at 0 and curvature of the objective along ``w - tau d``."""
        z = project(direction)
        if paired:
            rise, bend = jnp.vdot(z, x - y), jnp.vdot(z, z)
        else:
            rise = jnp.vdot(z, x - coupling.targets) / n
            bend = jnp.vdot(z, z) / n
        rise += held * optax.tree.vdot(direction, offset)
        return rise, bend + held * optax.tree.norm(direction, squared=True)

    support = select(scores.magnitude(w), budget, problem.within)
    limit = _support_limit(w, d, support, budget, problem.within).astype(x.dtype)
    on_support = tuple(jnp.where(s, v, 0) for s, v in zip(support, d, strict=True))
    tau = _adam(*along(on_support), limit)
    tau = jnp.where(tau < limit, tau, _grow(*along(d), limit))

    stepped = optax.tree.add_scale(w, -tau, d)
    mask = select(scores.magnitude(stepped), budget, problem.within)
    weights = apply_masks(w, mask)
    scale = 0.5 * n if paired else 0.5
    value = scale * coupling.cost + 0.5 * held * optax.tree.norm(offset, squared=True)
    status = jnp.where(
        coupling.converged, Status.CONVERGED, Status.TRANSPORT_NOT_CONVERGED
    )
    return Solution(
        weights=weights,
        masks=mask,
        objective=jnp.full(1, value),
        iterations=jnp.ones((), jnp.int32),
        status=jnp.where(jnp.isfinite(value), status, Status.NOT_FINITE),
        details={
            "tau": tau,
            "tau_limit": limit,
            "perplexity": coupling.perplexity,
            "sinkhorn_iterations": coupling.iterations,
            "marginal_error": coupling.marginal_error,
        },
    )


def _couple(
    x: jax.Array, y: jax.Array, epsilon: float, max_iterations: int
) -> transport.Coupling:
    if epsilon <= 1e-10:
        return transport.in_order(x, y, return_plan=True)
    if math.isinf(epsilon):
        return transport.uniform(x, y, return_plan=True)
    return sinkhorn.entropic(
        x, y, epsilon, max_iterations=max_iterations, return_plan=True
    )


def _support_limit(
    w: Leaves, d: Leaves, support: Leaves, budget: Budget, within: Leaves | None
) -> jax.Array:
    """Find the largest step that leaves the top-k set as it is, by bisection.

    `w` is not thresholded first, so near-ties at rank k keep this step tiny.
    """
    ratios = [jnp.max(a / (b + 1e-16), initial=0.0) for a, b in zip(w, d, strict=True)]
    high = jnp.minimum(jnp.stack(ratios).max(), 100.0)

    def halve(_: int, ends: tuple) -> tuple:
        middle = (ends[0] + ends[1]) / 2
        stepped = optax.tree.add_scale(w, -middle, d)
        moved = select(scores.magnitude(stepped), budget, within)
        same = jnp.stack(
            [jnp.all(m == s) for m, s in zip(moved, support, strict=True)]
        ).all()
        return jnp.where(same, middle, ends[0]), jnp.where(same, ends[1], middle)

    zero = jnp.zeros((), high.dtype)
    return jax.lax.fori_loop(0, _BISECTIONS, halve, (zero, high))[0]


def _adam(rise: jax.Array, bend: jax.Array, limit: jax.Array) -> jax.Array:
    """Run Adam on tau from min(0.5, limit), until it leaves [0, limit]."""
    optimizer = optax.adam(_ADAM_RATE)

    def step(carry: tuple) -> tuple:
        i, tau, state = carry
        update, state = optimizer.update(bend * tau - rise, state)
        return i + 1, tau + update, state

    def inside(carry: tuple) -> jax.Array:
        i, tau, _ = carry
        flat = jnp.abs(bend * tau - rise) < 1e-16
        return (i < _ADAM_STEPS) & (tau >= 0) & (tau <= limit) & ~flat

    first = jnp.minimum(jnp.asarray(0.5, limit.dtype), limit)
    start = (jnp.zeros((), jnp.int32), first, optimizer.init(first))
    return jnp.clip(jax.lax.while_loop(inside, step, start)[1], 0, limit)


def _grow(rise: jax.Array, bend: jax.Array, limit: jax.Array) -> jax.Array:
    """Go on from the limit, 5% further as long as the objective falls."""

    def value(tau: jax.Array) -> jax.Array:
        return 0.5 * bend * tau**2 - rise * tau

    def falls(carry: tuple) -> jax.Array:
        i, tau = carry
        return (i < _GROWTH_LIMIT) & (value(tau * _GROWTH) < value(tau))

    start = (jnp.zeros((), jnp.int32), limit)
    return jax.lax.while_loop(falls, lambda c: (c[0] + 1, c[1] * _GROWTH), start)[1]
