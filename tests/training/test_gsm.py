"""Global sparse momentum against loops with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import kernels
from rule_runs import strongest
from sparse_runs import QUICK, by_gradients, follow, gradients, initial
from trees import equal

import swapjax
from swapjax.training import gsm

KERNELS = {"fc1": {"kernel": True, "bias": False}, "fc2": {"kernel": True}}
RATE, DECAY, BETA = 0.02, 0.05, 0.9


def chained(sparsity, nesterov=False):
    return optax.chain(
        gsm(sparsity),
        optax.add_decayed_weights(DECAY, mask=KERNELS),
        optax.sgd(RATE, momentum=BETA, nesterov=nesterov),
    )


def largest_products(weights, slopes, keep):
    """The entries with the largest ``|w g|`` of all, and one of each leaf."""
    pairs = zip(weights, slopes, strict=True)
    products = [np.float64(w) * np.float64(g) for w, g in pairs]
    return strongest(products, [np.ones(w.shape, bool) for w in weights], keep)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_decay_is_that_of_a_loop(nesterov):
    tx = chained(0.8, nesterov)
    params = initial()
    step = by_gradients(tx, compiler_options=QUICK)
    trail = follow(step, params, tx.init(params), gradients())
    assert step._cache_size() == 1
    weights = [np.array(w) for w in kernels(params)]
    bias = np.array(params["fc1"]["bias"])
    traces, still = [np.zeros_like(w) for w in weights], np.zeros_like(bias)
    for t, gradient in enumerate(gradients(), 1):
        slopes = kernels(gradient)
        chosen = largest_products(weights, slopes, 14)
        for i, (g, m) in enumerate(zip(slopes, chosen, strict=True)):
            seen = g * m + DECAY * weights[i]
            traces[i] = seen + BETA * traces[i]
            ahead = seen + BETA * traces[i] if nesterov else traces[i]
            weights[i] = weights[i] - RATE * ahead
        # What is not prunable has all of its gradient, and no decay.
        g = np.asarray(gradient["fc1"]["bias"])
        still = g + BETA * still
        bias = bias - RATE * (g + BETA * still if nesterov else still)
        for a, b in zip(kernels(trail[t][0]), weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            trail[t][0]["fc1"]["bias"], bias, rtol=1e-4, atol=1e-6
        )


def test_gradients_pass_where_they_matter_and_nowhere_else():
    passing = lambda **goal: jax.jit(gsm(**goal).update, compiler_options=QUICK)  # noqa: E731
    params, gradient = initial(), gradients(1)[0]
    passed, _ = passing(sparsity=0.9)(gradient, optax.EmptyState(), params)
    for p, g, m in zip(
        kernels(passed),
        kernels(gradient),
        largest_products(kernels(params), kernels(gradient), 7),
        strict=True,
    ):
        np.testing.assert_array_equal(p, g * m)
    assert equal(passed["fc1"]["bias"], gradient["fc1"]["bias"])
    plan = swapjax.plan(params, 0.8, overrides={"fc2/kernel": 0.5})
    passed, _ = passing(plan=plan)(gradient, optax.EmptyState(), params)
    assert [int((p != 0).sum()) for p in kernels(passed)] == [5, 9]


@pytest.mark.usefixtures("x64")
def test_weights_that_never_matter_wear_off_at_the_rate_that_is_told():
    """``exp(-rate decay t / (1 - momentum))``, once momentum has come up."""
    rate, decay, beta, steps = 0.01, 0.02, 0.9, 4000
    tx = optax.chain(
        gsm(0.5), optax.add_decayed_weights(decay), optax.sgd(rate, momentum=beta)
    )
    params = {"kernel": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}
    # The first column has no gradient; the other never lets it in.
    slope = {"kernel": jnp.asarray([[0.0, 1e-3], [0.0, -1e-3]])}

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(slope, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["kernel"]

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    passive = np.asarray(train(params))[:, :, 0]
    begin = steps // 4
    gone = np.log(passive[begin] / passive[-1]) / (steps - 1 - begin)
    np.testing.assert_allclose(gone, rate * decay / (1 - beta), rtol=0.02)


def test_what_it_needs_it_asks_for():
    params, gradient = initial(), gradients(1)[0]
    tx = gsm(0.5)
    with pytest.raises(ValueError, match="params: gsm needs them"):
        tx.update(gradient, tx.init(params))
    plan = swapjax.plan(params, 0.5)
    other = {"kernel": jnp.ones((3, 3))}
    with pytest.raises(ValueError, match="params: the tree is not the one"):
        gsm(plan=plan).init(other)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        gsm(1.0).init(params)
    with pytest.raises(ValueError, match="include"):
        tx.init({"bias": jnp.ones(3)})
