"""Re-fits for what comes out layers later, against explicit least squares."""

import block_networks
import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest

import swapjax

EXACT = {"damping": 0.0, "tolerance": 1e-12, "products": 200}


def setting(dtype="float64", sparsity=0.5, n=48):
    """The small network, its examples, and what magnitude leaves of it."""
    dense, data = network.make(0, dtype), network.data(n, 0, dtype)
    pruned = swapjax.prune(
        network.loss_fn, dense, sparsity=sparsity, method=swapjax.magnitude()
    )
    return dense, pruned, data


def reconstruct(dense, pruned, data, **options):
    """By batches, so that sums go over several."""
    return swapjax.reconstruct(
        network.loss_fn, pruned.params, pruned.masks, data, dense=dense, batch=16,
        **options,
    )  # fmt: skip


def least_squares(inputs, aims, mask):
    """The best weights on a support, an output at a time."""
    w = np.zeros(mask.shape)
    for o, kept in enumerate(mask.T):
        w[kept, o] = np.linalg.lstsq(inputs[:, kept], aims[:, o], rcond=None)[0]
    return w


@pytest.mark.usefixtures("x64")
def test_without_layers_ahead_outputs_are_those_of_least_squares():
    dense, pruned, data = setting()
    found = reconstruct(dense, pruned, data, ahead=0, **EXACT)
    masks = network.kernels(pruned.masks)
    first, second = network.kernels(found.params)
    aims = data[0] @ dense["fc1"]["kernel"]
    np.testing.assert_allclose(
        first, least_squares(np.asarray(data[0]), np.asarray(aims), masks[0]), rtol=1e-6
    )
    # What the second layer reads is made by the first as it is now.
    inputs = np.asarray(network.hidden(found.params, data[0]))
    aims = np.asarray(network.apply(dense, data[0]))
    expected = least_squares(inputs, aims, masks[1])
    np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-9)
    error = np.sum((inputs @ expected - aims) ** 2) / np.sum(aims**2)
    assert [x.layer for x in found.history] == ["fc1/kernel", "fc2/kernel"]
    np.testing.assert_allclose(found.history[1].error[1], error, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("curvature", "through"),
    [("gauss-newton", "dense"), ("gauss-newton", "pruned"), ("hessian", "dense")],
)
def test_a_step_is_that_of_an_explicit_curvature(curvature, through):
    dense, pruned, data = setting(sparsity=0.05)
    found = reconstruct(
        dense, pruned, data, ahead=1, steps=1, curvature=curvature, through=through,
        **EXACT,
    )  # fmt: skip
    kernel = pruned.params["fc1"]["kernel"]
    kept = np.flatnonzero(pruned.masks["fc1"]["kernel"])
    later = (dense if through == "dense" else pruned.params)["fc2"]

    def residual(w):
        whole = kernel.ravel().at[kept].set(w).reshape(kernel.shape)
        layer = {"kernel": whole, "bias": dense["fc1"]["bias"]}
        made = network.apply({"fc1": layer, "fc2": later}, data[0])
        return (made - network.apply(dense, data[0])).ravel()

    half = lambda w: 0.5 * jnp.sum(residual(w) ** 2)  # noqa: E731
    w = kernel.ravel()[kept]
    jacobian = jax.jacobian(residual)(w)
    matrix = jacobian.T @ jacobian
    if curvature == "hessian":
        matrix = jax.hessian(half)(w)
        assert np.linalg.eigvalsh(matrix)[0] > 0  # or the system would not be solved
    step = -np.linalg.solve(matrix, jax.grad(half)(w))
    (layer, *_), length = found.history, 1.0
    while half(w + length * step) >= half(w):
        length /= 2
    expected = w + length * step
    got = np.asarray(found.params["fc1"]["kernel"]).ravel()[kept]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert (layer.until, layer.steps) == ("fc2/kernel", 1)
    np.testing.assert_allclose(
        layer.error,
        2 * np.array([half(w), half(expected)])
        / jnp.sum(network.apply(dense, data[0]) ** 2),
        rtol=1e-6,
    )  # fmt: skip


def test_layers_of_a_stack_are_layers_of_their_own():
    """Nothing that was pruned returns, and all else stays as it is."""
    dense, batch = block_networks.make("stacked"), block_networks.examples(8)
    loss_fn, seen = block_networks.loss_fn, []
    target = swapjax.plan(
        dense, 0.5, allocation="uniform", loss_fn=loss_fn, batch=batch, include="up"
    )
    pruned = swapjax.prune(
        loss_fn, dense, batch, plan=target, method=swapjax.magnitude()
    )
    found = swapjax.reconstruct(
        loss_fn, pruned.params, pruned.masks, batch, dense=dense, batch=4, ahead=0,
        callback=seen.append,
    )  # fmt: skip
    assert tuple(seen) == found.history
    assert [x.layer for x in seen] == [f"blocks/up[{i}]" for i in range(4)]
    assert all(x.until == x.layer and x.steps for x in seen)
    assert all(x.error[1] < x.error[0] for x in seen)
    moved = jax.tree.map(np.not_equal, found.params, pruned.params)
    up = moved["blocks"].pop("up")
    assert up.any(axis=(1, 2)).all()
    assert not (up & ~np.asarray(pruned.masks["blocks"]["up"])).any()
    assert not any(x.any() for x in jax.tree.leaves(moved))


def test_it_fits_better_what_the_network_makes():
    dense, pruned, data = setting("float32", 0.6)
    wanted = network.apply(dense, data[0])

    def error(params):
        return float(jnp.sum((network.apply(params, data[0]) - wanted) ** 2))

    found = reconstruct(dense, pruned, data, ahead=1)
    assert error(found.params) < 0.7 * error(pruned.params)
    np.testing.assert_allclose(
        found.history[-1].error[1], error(found.params) / np.sum(wanted**2), rtol=1e-4
    )


def test_narrow_weights_stay_narrow():
    dense, pruned, data = setting("bfloat16")
    found = reconstruct(dense, pruned, data, ahead=1, steps=1)
    for w, m in zip(
        network.kernels(found.params), network.kernels(pruned.masks), strict=True
    ):
        assert w.dtype == jnp.bfloat16
        assert not w[~m].any()


def test_layers_that_were_fitted_before_are_passed_through_as_they_are():
    """Even with dense layers ahead: a weight that is used twice is one layer."""

    def apply(p, x):
        return jnp.tanh(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["a"]) @ p["c"]

    rng = np.random.default_rng(0)
    dense = {k: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for k in "abc"}
    x = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    loss_fn = lambda p, x: jnp.sum(apply(p, x))  # noqa: E731
    plan = swapjax.plan(dense, 0.5, include=["a", "b", "c"])
    pruned = swapjax.prune(loss_fn, dense, plan=plan, method=swapjax.magnitude())
    found = swapjax.reconstruct(
        loss_fn, pruned.params, pruned.masks, x, dense=dense, ahead=1, through="dense"
    )
    now = {"a": found.params["a"], "b": pruned.params["b"], "c": dense["c"]}
    aim = apply(dense, x)
    wanted = jnp.sum((apply(now, x) - aim) ** 2) / jnp.sum(aim**2)
    assert [layer.layer for layer in found.history] == ["a", "b", "c"]
    np.testing.assert_allclose(found.history[1].error[0], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ahead": -1}, "ahead must be 0 or more"),
        ({"samples": 0}, "samples"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"products": 0}, "products"),
        ({"damping": -1.0}, "damping"),
        ({"tolerance": 0.0}, "tolerance must be a number above 0"),
        ({"through": "both"}, "through must be 'dense' or 'pruned'"),
        ({"curvature": "fisher"}, "curvature must be 'gauss-newton' or 'hessian'"),
    ],
)
def test_arguments_out_of_range_are_named(options, word):
    dense, pruned, data = setting("float32")
    with pytest.raises(ValueError, match=word):
        reconstruct(dense, pruned, data, **options)


def test_what_does_not_belong_together_is_named():
    dense, pruned, data = setting("float32")
    with pytest.raises(ValueError, match="dense: must have the tree of params"):
        reconstruct(dense["fc1"], pruned, data)
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), dense)
    with pytest.raises(ValueError, match="dense: fc1/bias must be float32"):
        reconstruct(narrow, pruned, data)
    with pytest.raises(ValueError, match="data: has no examples"):
        reconstruct(dense, pruned, jax.tree.map(lambda x: x[:0], data))
    broken = {**dense, "fc1": {**dense["fc1"], "bias": dense["fc1"]["bias"] * jnp.nan}}
    with pytest.raises(ValueError, match=r"^dense: NaN or .* fc1/bias"):
        reconstruct(broken, pruned, data)
    with pytest.raises(ValueError, match=r"^params: NaN or .* fc1/bias"):
        reconstruct(dense, pruned._replace(params=broken), data)
    with pytest.raises(ValueError, match=r"^data: NaN or .* in 0 "):
        reconstruct(dense, pruned, (data[0] * jnp.inf, data[1]))
    with pytest.raises(ValueError, match=r"^data: has PRNG keys, key<fry>, which"):
        reconstruct(dense, pruned, (*data, jax.random.split(jax.random.key(0), 48)))
    unread = {"more": jnp.ones((2, 2)), **dense}
    masks = {"more": jnp.ones((2, 2), bool), **pruned.masks}
    with pytest.raises(ValueError, match="masks: more is not reached"):
        swapjax.reconstruct(network.loss_fn, unread, masks, data, dense=unread)


def test_what_has_no_forward_derivative_is_named():
    @jax.custom_vjp
    def halve(x):
        return x / 2

    halve.defvjp(lambda x: (x / 2, None), lambda _, slope: (slope / 2,))
    dense, masks = [jnp.eye(2)] * 2, [jnp.array([[True, False], [True, True]])] * 2
    params = jax.tree.map(lambda w, m: w * m * 2, dense, masks)
    with pytest.raises(ValueError, match=r"^loss_fn: what 0 makes .* jax.custom_vjp"):
        swapjax.reconstruct(
            lambda p, x: jnp.sum(halve(x @ p[0]) @ p[1]), params, masks,
            np.ones((2, 2), np.float32), dense=dense,
        )  # fmt: skip
