"""The sharpness-aware gradient against two gradients taken one after the other."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest

from swapjax.core.objective import Objective
from swapjax.training import sharpness_aware

KEY = jax.random.key(0)
BATCH = network.data(8)


def step_of(objective, params, state=()):
    return jax.jit(objective.value_and_grad)(params, state, BATCH, KEY)


slope = jax.jit(jax.grad(network.loss_fn))


def test_the_gradient_is_that_up_the_loss():
    params = network.make()
    gradient, loss, state, aux = step_of(sharpness_aware(network.loss_fn, 0.3), params)
    up = slope(params, BATCH)
    length = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(up)))
    near = jax.tree.map(lambda w, g: w + 0.3 * g / length, params, up)
    want = slope(near, BATCH)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        gradient, want,
    )  # fmt: skip
    assert float(loss) == pytest.approx(float(network.loss_fn(params, BATCH)))
    assert (state, aux) == ((), {})
    # Optax does the same as an optimizer, which calls the loss.
    tx = optax.contrib.sam(
        optax.sgd(1.0), optax.chain(optax.contrib.normalize(), optax.sgd(0.3)),
        opaque_mode=True,
    )  # fmt: skip
    updates, _ = tx.update(
        up, tx.init(params), params, grad_fn=lambda p, i: slope(p, BATCH)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, -b, rtol=2e-5, atol=1e-6),
        updates, want,
    )  # fmt: skip


def test_state_key_and_reports_are_those_at_params():
    seen = []

    def loss(params, state, batch, key):
        seen.append(key)
        noise = jax.random.normal(key, ())
        value = network.loss_fn(params, batch) * (1 + 0 * noise)
        return value, state + 1, {"noise": noise, "norm": optax.tree.norm(params)}

    inner = Objective(loss, init=lambda params, batch: jnp.int32(5), replays=3)
    objective = sharpness_aware(inner, 0.5)
    params = network.make()
    _, value, state, aux = step_of(objective, params, objective.init(params, BATCH))
    plain, new, told = loss(params, jnp.int32(5), BATCH, KEY)
    assert (int(state), objective.replays) == (int(new), 3) == (6, 3)
    assert float(value) == pytest.approx(float(plain))
    assert {k: float(v) for k, v in aux.items()} == pytest.approx(
        {k: float(v) for k, v in told.items()}
    )
    assert all(key is seen[0] for key in seen[:2])


def test_a_gradient_of_its_own_is_taken_at_both_points():
    def gradient(params, state, batch, key):
        return jax.tree.map(lambda w: 2 * w, params), jnp.float32(7), state, {}

    inner = Objective(lambda *given: (jnp.float32(0), given[1], {}), gradient=gradient)
    params = {"w": jnp.asarray([3.0, 4.0])}
    found, loss, *_ = step_of(sharpness_aware(inner, 0.5), params)
    np.testing.assert_allclose(found["w"], [6.6, 8.8], rtol=1e-6)
    assert float(loss) == 7


def test_masked_it_leaves_zeros_where_they_are():
    params = network.make()
    pruned = jax.tree.map(lambda w: jnp.where(jnp.abs(w) < 0.2, 0, w), params)
    assert any(bool(jnp.any(w == 0)) for w in jax.tree.leaves(pruned))
    masked = sharpness_aware(network.loss_fn, 0.3, masked=True)
    found, *_ = step_of(masked, pruned)
    up = jax.tree.map(lambda g, w: g * (w != 0), slope(pruned, BATCH), pruned)
    length = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(up)))
    near = jax.tree.map(lambda w, g: w + 0.3 * g / length, pruned, up)
    want = slope(near, BATCH)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, found, want)
    dense, *_ = step_of(sharpness_aware(network.loss_fn, 0.3), pruned)
    assert not np.allclose(dense["fc1"]["kernel"], want["fc1"]["kernel"], rtol=1e-3)
    with pytest.raises(ValueError, match="masked must be True or False, got 1"):
        sharpness_aware(network.loss_fn, 0.3, masked=1)


def test_at_a_minimum_and_without_a_radius_it_is_the_plain_gradient():
    still = {"w": jnp.zeros(2, jnp.bfloat16)}
    square = lambda params, batch: jnp.sum(params["w"] ** 2)  # noqa: E731
    found, *_ = step_of(sharpness_aware(square, 0.5), still)
    assert not jnp.any(found["w"] != 0)
    assert found["w"].dtype == jnp.bfloat16
    params = network.make()
    found, *_ = step_of(sharpness_aware(network.loss_fn, 0), params)
    want = jax.grad(network.loss_fn)(params, BATCH)
    jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.mark.parametrize(
    ("loss", "radius", "message"),
    [
        (3, 0.1, r"loss must be loss_fn\(params, batch\) or an Objective, got 3"),
        (network.loss_fn, -0.1, "radius must be a number, 0 or more, got -0.1"),
        (network.loss_fn, float("inf"), "radius must be a number, 0 or more, got inf"),
        (network.loss_fn, "0.1", "radius must be a number, 0 or more, got '0.1'"),
    ],
)
def test_bad_arguments(loss, radius, message):
    with pytest.raises(ValueError, match=message):
        sharpness_aware(loss, radius)
