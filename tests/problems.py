"""Problems of pruning small enough for G, H and brute force, and their solutions."""

import itertools

import jax
import jax.numpy as jnp
import network
import numpy as np
from trees import flat

from swapjax import plan
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.unit import in_unit
from swapjax.pruning import Problem

N = 24


def setting(
    dtype=jnp.float32, sparsity=0.6, storage="stored", allocation="global", **options
):
    """A problem of the small network with N rows in their unit, and its plan."""
    params, data = network.make(dtype=dtype), network.data(N, dtype=dtype)
    target = plan(params, sparsity, allocation=allocation)
    rows = per_example_gradients(
        network.loss_fn, params, data, target, storage=storage, **options
    )
    weights = target.layout.split(params)
    start = tuple(w + 0.1 * jnp.sign(w) for w in weights)
    whole = {"params": params, "layout": target.layout}
    return Problem(weights, start, in_unit(rows), **whole), target


def explicit(rows):
    """G as an array, [n, p], of rows that are stored."""
    return np.concatenate(
        [np.asarray(m).reshape(rows.n, -1) for m in rows.matrices], axis=1
    )


solve = jax.jit(lambda method, *args: method(*args), static_argnums=0)


def check_contract(solution, target, dtype):
    """What holds of the solution of every method."""
    kept = flat(solution.masks).astype(bool)
    assert kept.sum() == target.kept
    assert not flat(solution.weights)[~kept].any()
    assert np.isfinite(flat(solution.weights)).all()
    assert {w.dtype.name for w in solution.weights} == {dtype}
    assert {m.dtype.name for m in solution.masks} == {"bool"}
    assert all(np.ndim(value) == 0 for value in solution.details.values())


def dense(problem, damping):
    """H = F + lambda I as an array, and G."""
    g = explicit(problem.rows)
    return g.T @ g / len(g) + damping * np.eye(g.shape[1]), g


def bend(problem, kept):
    """How many Fishers of the rows the Hessian is, as thresholding tells."""
    rows = problem.rows
    plain = tuple(
        jnp.where(m, w, 0) for m, w in zip(kept, problem.weights, strict=True)
    )
    v = explicit(rows) @ (flat(plain) - flat(problem.weights))
    rise = float(rows.loss(plain) - rows.loss(problem.weights)) / float(rows.unit)
    return 2 * (rise - v.mean()) / np.mean(v**2)


def on_support(h, w, keep, slope=None):
    """The minimiser of g^T d + d^T H d / 2 with w + d zero off the support."""
    slope = np.zeros_like(w) if slope is None else slope
    d = np.where(keep, 0, -w)
    right = -slope[keep] - h[np.ix_(keep, ~keep)] @ d[~keep]
    d[keep] = np.linalg.solve(h[np.ix_(keep, keep)], right)
    return w + d


def small(sparsity, n=9):
    """A linear model with 8 weights: every mask can be tried."""
    keys = jax.random.split(jax.random.key(3), 3)
    params = {"kernel": jax.random.normal(keys[0], (4, 2), jnp.float64)}
    x = jax.random.normal(keys[1], (n, 4), jnp.float64)
    x = x.at[:, 1].add(0.9 * x[:, 0])  # weights that can stand in for each other
    y = jax.random.normal(keys[2], (n, 2), jnp.float64)

    def loss(params, batch):
        return jnp.mean(jnp.square(batch[0] @ params["kernel"] - batch[1]))

    target = plan(params, sparsity, min_keep=0)
    rows = in_unit(per_example_gradients(loss, params, (x, y), target))
    weights = target.layout.split(params)
    g = np.asarray(rows.matrices[0]).reshape(n, -1)
    return Problem(weights, weights, rows), target, g


def supports(total, kept):
    """All masks that keep so many of all entries."""
    for chosen in itertools.combinations(range(total), kept):
        mask = np.zeros(total, bool)
        mask[list(chosen)] = True
        yield mask


def relu(x):
    return jnp.maximum(x, 0)


def chain(params, x):
    """The outputs of dense layers with a ReLU after each."""
    for name in sorted(params):
        x = relu(x @ params[name]["kernel"] + params[name].get("bias", 0))
    return x


def chain_params(sizes, scale=1.0, dtype=np.float32):
    """The kernels of such a chain, by He's initialisation."""
    rng = np.random.default_rng(0)
    return {
        f"layer{i:02}": {
            "kernel": (scale * rng.normal(size=(a, b)) * np.sqrt(2 / a)).astype(dtype)
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }
