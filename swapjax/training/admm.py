"""ADMM on the constraint that a network is sparse, around any Optax optimizer."""

import optax

from swapjax.sparsity.plan import Plan
from swapjax.training.admm_step import Penalty, transformation


def admm(
    optimizer: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    steps: int,
    penalty: Penalty | None = None,
    every: int = 32,
) -> optax.GradientTransformationExtraArgs:
    """Draw a dense network to a sparse one while it trains; cut it in the end.

    The alternating direction method of multipliers, as Zhang et al. prune by it (ECCV
    2018, arXiv:1804.03294) and Lee et al. in one run (SAFE, ICML 2025,
    arXiv:2506.06866). With params x, a sparse copy z and the sum u of the residuals:
    at each update ``penalty (x - z + u)`` is added to the gradient, and every few
    updates, after them,

    1. z becomes the projection of x + u: the plan's count of entries with the largest
       magnitudes, all others zero;
    2. u becomes u + x - z.

    At the last of the `steps` z is the projection of x alone: `swapjax.masks_of` gives
    the masks of the cut, and ``swapjax.apply_masks(params, masks)`` makes it. Until
    then params are dense. `swapjax.training.residuals` tells how much a cut takes.

    The penalty goes into the gradient before the optimizer sees it, as in the authors'
    code, so that momentum and Adam's scaling act on both; weight decay belongs into the
    optimizer, and a norm to clip by into a chain before this. The sum u is not rescaled
    where the penalty changes, as in theirs.

    Args:
        optimizer: any transformation.
        sparsity: of what the names of leaves tell to be matrices, after the cut.
        plan: instead of a sparsity, by `swapjax.plan`: patterns, layer by layer.
        steps: updates in all.
        penalty: at the end of training; it rises from zero along half a cosine. Or a
            schedule of Optax's, ``updates so far -> penalty``. By default 78 / steps:
            the authors' 1e-3 in 78,200 steps of SGD with a rate of 0.1 and momentum
            0.9. It must grow where steps or rates become fewer and smaller, or weights
            do not come near enough to z to be cut.
        every: updates from one change of z and u to the next, the last being that of
            the last update.

    Returns:
        A transformation whose state holds an `swapjax.training.AdmmState`. Its
        ``update`` needs params, and takes ``mask_step`` as that of `swapjax.sparse`
        does. Both functions raise ValueError for a plan, a state or gradients of other
        params, params that are missing, and a line search, which would not see the
        penalty.

    Raises:
        ValueError: for an optimizer of the wrong kind, both or neither of sparsity and
            plan, a sparsity that is not a number in [0, 1), steps and every that are
            not at least 1, and a penalty that is neither 0 or more nor a schedule.

    Example:
        >>> import jax, jax.numpy as jnp, optax, swapjax
        >>> tx = swapjax.admm(optax.adam(1e-2), sparsity=0.75, steps=100, every=10)
        >>> params = {"kernel": jax.random.normal(jax.random.key(1), (8, 4))}
        >>> state = tx.init(params)
        >>> loss = lambda p: jnp.mean((jnp.ones((1, 8)) @ p["kernel"] - 1) ** 2)
        >>> @jax.jit
        ... def step(params, state):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> for _ in range(100):
        ...     params, state = step(params, state)
        >>> params = swapjax.apply_masks(params, swapjax.masks_of(state))
        >>> int((params["kernel"] != 0).sum())
        8
    """
    return transformation(
        optimizer, sparsity, plan, steps, penalty, every, weighs=False
    )
