"""Cosines, the loss of hypersphere embedding, and weights that stay on the sphere."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import swapjax
from swapjax import robust
from swapjax.training import fit

Z = jax.random.normal(jax.random.key(0), (5, 9))
KERNEL = jax.random.normal(jax.random.key(1), (9, 4))
LABELS = jnp.array([0, 3, 1, 2, 2])


def by_hand(z, kernel):
    z, kernel = np.asarray(z, np.float64), np.asarray(kernel, np.float64)
    return (z / np.linalg.norm(z, axis=1, keepdims=True)) @ (
        kernel / np.linalg.norm(kernel, axis=0)
    )


def loss_by_hand(cos, labels, scale, margin):
    logits = np.array(cos, np.float64)
    logits[np.arange(len(logits)), labels] -= margin
    logits *= scale
    top = logits.max(1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return -logs[np.arange(len(logits)), labels]


@pytest.mark.parametrize("weights", ["project", "reparam"])
def test_outputs_are_cosines_and_gradients_orthogonal(weights):
    found = robust.cosines(Z, KERNEL, weights=weights)
    np.testing.assert_allclose(found, by_hand(Z, KERNEL), atol=1e-6)

    def total(z, kernel):
        return jnp.sum(jnp.sin(3 * robust.cosines(z, kernel, weights=weights)))

    by_z, by_kernel = jax.grad(total, (0, 1))(Z, KERNEL)
    np.testing.assert_allclose(jnp.sum(by_z * Z, axis=1), 0, atol=1e-5)
    along = jnp.sum(by_kernel * KERNEL, axis=0)
    assert (weights == "reparam") == bool(jnp.all(jnp.abs(along) < 1e-5))
    unit = KERNEL / jnp.linalg.norm(KERNEL, axis=0)
    if weights == "project":  # the plain gradient at the projected weights
        plain = jax.grad(lambda w: jnp.sum(jnp.sin(3 * by_features(Z) @ w)))(unit)
        got = jax.grad(total, 1)(Z, unit)
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=1e-5)


def by_features(z):
    return z / jnp.linalg.norm(z, axis=1, keepdims=True)


def test_the_norm_of_features_and_a_rotation_change_nothing():
    found = robust.cosines(Z, KERNEL)
    np.testing.assert_allclose(robust.cosines(7 * Z, KERNEL), found, atol=1e-6)
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (9, 9)))[0]
    turned = robust.cosines(Z @ turn, turn.T @ KERNEL)
    np.testing.assert_allclose(turned, found, atol=1e-5)


def test_an_attack_goes_the_same_way_whatever_the_norm_of_features():
    params = network.make(inputs=6, outputs=4)
    images = jax.random.uniform(jax.random.key(3), (5, 6))

    def attacked(scale):
        apply = robust.cosine_apply(lambda p, x: scale * network.hidden(p, x), "fc2")
        return robust.pgd(
            None, apply, params, images, LABELS, epsilon=0.1, step=0.02, steps=4,
            start=None,
        )  # fmt: skip

    np.testing.assert_array_equal(attacked(1.0), attacked(7.0))


def test_features_of_zeros_have_finite_gradients():
    def loss(z):
        return jnp.sum(robust.he_loss(robust.cosines(z, KERNEL), LABELS, scale=10.0))

    slope = jax.grad(loss)(jnp.zeros_like(Z))
    assert bool(jnp.all(jnp.isfinite(slope)))


@given(
    scale=st.floats(0.1, 300), margin=st.floats(0, 0.9), seed=st.integers(0, 2**16)
)  # fmt: skip
def test_the_loss_is_its_formula(scale, margin, seed):
    cos = np.random.default_rng(seed).uniform(-1, 1, (5, 4)).astype(np.float32)
    got = robust.he_loss(jnp.asarray(cos), LABELS, scale=scale, margin=margin)
    wanted = loss_by_hand(cos, LABELS, scale, margin)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * scale + 1e-6)


def test_the_loss_with_scale_one_is_the_cross_entropy_and_has_its_bound():
    cos = robust.cosines(Z, KERNEL)
    np.testing.assert_allclose(
        robust.he_loss(cos, LABELS, scale=1.0), robust.cross_entropy(cos, LABELS)
    )
    best = jnp.where(jax.nn.one_hot(LABELS, 4) > 0, 1.0, -1 / 3)
    for scale in (1.0, 10.0):
        bound = np.log1p(3 * np.exp(-scale * 4 / 3))
        got = robust.he_loss(best, LABELS, scale=scale)
        np.testing.assert_allclose(got, bound, rtol=1e-3, atol=2e-7)


def test_columns_have_norm_one_after_each_step_and_zeros_stay():
    params = network.make(outputs=4)
    x, y = jax.random.uniform(jax.random.key(4), (40, 6)), jnp.arange(40) % 4
    head = robust.Hypersphere(10.0, 0.1)
    apply = robust.cosine_apply(network.hidden, "fc2")
    objective = robust.pgd_at(apply, epsilon=0.05, step=0.02, steps=2, head=head)
    pruned = swapjax.sparse(
        optax.sgd(0.1, 0.9), swapjax.gmp(), sparsity=0.5,
        schedule=swapjax.cubic(0, 8, every=2),
    )  # fmt: skip
    tx = optax.chain(pruned, robust.on_sphere("fc2/kernel"))
    fitted = fit(
        objective, params, tx, (x, y), epochs=3, batch=10, key=jax.random.key(0)
    )
    norms = jnp.linalg.norm(fitted.params["fc2"]["kernel"], axis=0)
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    assert fitted.history[-1].sparsity == 0.5
    swapjax.check_state(fitted.state, fitted.params)
    # One step of the wrapper by hand.
    slopes = jax.tree.map(jnp.ones_like, params)
    wrap = optax.chain(optax.sgd(0.5), robust.on_sphere("fc2/kernel"))
    moves, _ = wrap.update(slopes, wrap.init(params), params)
    moved = optax.apply_updates(params, moves)
    free = jax.tree.map(lambda p: p - 0.5, params)
    np.testing.assert_allclose(moved["fc1"]["kernel"], free["fc1"]["kernel"])
    wanted = free["fc2"]["kernel"] / np.linalg.norm(free["fc2"]["kernel"], axis=0)
    np.testing.assert_allclose(moved["fc2"]["kernel"], wanted, atol=1e-6)
    np.testing.assert_allclose(
        robust.project_columns(free, ["fc2/kernel"])["fc2"]["kernel"], wanted, atol=1e-6
    )


def test_a_network_that_a_head_does_not_fit_is_an_error():
    params, x = network.make(outputs=4), jnp.full((5, 6), 0.5)
    biased = {**params, "fc2": {**params["fc2"], "bias": jnp.zeros(4)}}
    apply = robust.cosine_apply(network.hidden, "fc2")
    with pytest.raises(ValueError, match="'fc2' with a kernel and no bias wanted, got"):
        apply(biased, x)
    with pytest.raises(ValueError, match="'fc9' with a kernel"):
        robust.cosine_apply(network.hidden, "fc9")(params, x)
    with pytest.raises(ValueError, match=r"head: features \[n, D\] .* \[5, 6\] and"):
        robust.cosine_apply(lambda p, x: x, "fc2")(params, x)
    with pytest.raises(ValueError, match="weights must be 'project' or 'reparam'"):
        robust.cosines(Z, KERNEL, weights="none")
    head = robust.Hypersphere()
    large = lambda p, x: 50 * network.apply(p, x)  # noqa: E731
    objective = robust.pgd_at(large, epsilon=0.1, step=0.1, steps=1, head=head)
    with pytest.raises(ValueError, match="head: Hypersphere needs a network that ret"):
        objective.init(params, (x, LABELS))
    with pytest.raises(ValueError, match="kernels must be paths of params, fc1/bias"):
        robust.on_sphere("fc3/kernel").init(params)
    with pytest.raises(ValueError, match="params: on_sphere"):
        robust.on_sphere("fc2/kernel").update(params, optax.EmptyState())


@pytest.mark.parametrize(
    ("settings", "saying"),
    [
        ({"scale": 0.0}, "scale must be above 0, got 0"),
        ({"margin": -0.1}, "margin must be 0 or more, got -0.1"),
    ],
)
def test_settings_out_of_range_are_an_error(settings, saying):
    with pytest.raises(ValueError, match=saying):
        robust.Hypersphere(**settings)
