"""Losses, and what users' functions return, are looked at while nothing is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax import FineTune, magnitude, obd

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 6))
DATA = X, X[:, :3]


def loss_fn(params, batch):
    return jnp.mean(jnp.square(batch[0] @ params["kernel"] - batch[1]))


def prune(loss_fn=loss_fn, method=None, **options):
    params = {"kernel": jax.random.normal(KEY, (6, 3)), "steps": jnp.int32(7)}
    return swapjax.prune(
        loss_fn, params, DATA, sparsity=0.5, samples=8, key=KEY,
        method=method or magnitude(), **options,
    )  # fmt: skip


def nan_where(condition, value=jnp.nan):
    return lambda p, b: jnp.where(condition(p, b), value, loss_fn(p, b))


def keep(value):
    """A recalibration that returns this for the kernel."""
    return lambda p: {**p, "kernel": value(p["kernel"])}


@pytest.mark.parametrize("method", [magnitude(), obd(), swapjax.wanda()], ids=str)
def test_a_loss_of_nan_is_an_error_that_counts_rows(method):
    some = nan_where(lambda p, b: b[0][0, 0] > 0.5)
    with pytest.raises(ValueError, match=r"^loss_fn: .* nan in stage 1 \(\d of 8 rows"):
        prune(some, method)


def test_what_loses_the_loss_is_named():
    sparse = nan_where(lambda p, b: jnp.any(p["kernel"] == 0), jnp.inf)
    with pytest.raises(ValueError, match=r"^method magnitude: the loss became inf"):
        prune(sparse)
    useless = FineTune(optax.sgd(1e30), 1, batch=8)
    with pytest.raises(ValueError, match=r"^finetune: .* smaller learning rate"):
        prune(finetune=useless)
    with pytest.raises(ValueError, match=r"^recalibrate: the loss became inf"):
        prune(recalibrate=keep(lambda k: 1e30 * k))


@pytest.mark.parametrize(
    ("recalibrate", "message"),
    [
        (keep(lambda k: k[:1]), r"kernel must stay float32 of shape \(6, 3\), got"),
        (keep(lambda k: k.astype(jnp.bfloat16)), "got bfloat16"),
        (keep(lambda k: k.at[2, 1].set(jnp.inf)), r"infinite entries in kernel \(1 of"),
        (lambda p: {**p, "steps": 7}, "steps must stay int32"),
        (lambda p: None, "must return the tree of params"),
        (lambda p: {"kernel": p["kernel"]}, "must return the tree of params"),
        (lambda p: p.update(kernel=p["kernel"][0]) or p, "kernel must stay"),
    ],
)
def test_what_recalibrate_returns_is_checked(recalibrate, message):
    with pytest.raises(ValueError, match=f"^recalibrate: .*{message}"):
        prune(recalibrate=recalibrate)


def test_finished_stages_outlive_a_fault(tmp_path):
    path, calls = tmp_path / "state.safetensors", []

    def breaks(params):
        calls.append(params)
        return params if len(calls) < 3 else keep(lambda k: k * jnp.nan)(params)

    with pytest.raises(ValueError, match="recalibrate"):
        prune(stages=3, recalibrate=breaks, checkpoint=path)
    mended = prune(stages=3, recalibrate=lambda p: p, checkpoint=path)
    never = prune(stages=3, recalibrate=lambda p: p)
    np.testing.assert_array_equal(mended.params["kernel"], never.params["kernel"])
    assert [stage.loss for stage in mended.history] == [s.loss for s in never.history]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[None], r"one scalar, .*float32\[1\]"),
        (
            lambda x: (x, {"accuracy": x}),
            "a tuple of 2; .* has_aux=True",
        ),
        (lambda x: {"loss": x}, "a dict of 1"),
        (lambda x: None, "got a NoneType"),
        (lambda x: x + 1j, "real number, got complex64"),
    ],
)
def test_what_a_loss_returns_is_checked(change, message):
    with pytest.raises(ValueError, match=f"^loss_fn must return .*{message}"):
        prune(lambda p, b: change(loss_fn(p, b)))


def test_losses_without_gradients_do_for_methods_that_take_none():
    whole = lambda p, b: jnp.round(loss_fn(p, b)).astype(jnp.int32)  # noqa: E731
    assert prune(whole).history[0].kept == 9
    assert prune(lambda p, b: 1.5).history[0].loss == 1.5
    narrow = lambda p, b: loss_fn(p, b).astype(jnp.float16)  # noqa: E731
    assert prune(narrow, obd()).history[0].kept == 9
    with pytest.raises(ValueError, match="must return a float to have gradients"):
        prune(whole, obd())
    with pytest.raises(ValueError, match="must return a float to have gradients"):
        prune(whole, finetune=FineTune(optax.sgd(0.1), 1, batch=8))


@jax.custom_vjp
def clipped(x, limit):
    return x


clipped.defvjp(
    lambda x, limit: (clipped(x, limit), limit),
    lambda limit, g: (jnp.clip(g, -limit, limit), jnp.zeros_like(limit)),
)


@pytest.mark.parametrize(
    "method",
    [swapjax.linear_regression(algebra="cg"), swapjax.grasp(), swapjax.saliency()],
    ids=lambda method: method.name,
)
def test_losses_with_a_derivative_of_their_own_take_any_storage(method):
    def loss(params, batch):
        hidden = jax.lax.map(lambda x: clipped(x, 0.01), batch[0] @ params["kernel"])
        return jnp.mean(jnp.square(jax.jit(jnp.tanh)(hidden) - batch[1]))

    stored, free = (
        prune(loss, method, storage=storage) for storage in ("stored", "matrix-free")
    )
    np.testing.assert_array_equal(stored.masks["kernel"], free.masks["kernel"])
    np.testing.assert_allclose(
        stored.params["kernel"], free.params["kernel"], rtol=1e-4, atol=1e-5
    )


def test_matrices_by_name_that_are_not_followed_are_told_of():
    def loss_fn(params, x):
        filters = jnp.fft.irfft(jnp.fft.rfft(params["mix"]["kernel"]), 4)
        return jnp.mean((x[:, None] * filters).sum(-1) @ params["out"]["kernel"])

    params = {
        "mix": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(3)},
        "out": {"kernel": jnp.ones((3, 2)), "empty": jnp.ones((0, 3))},
        "table": {"embedding": jnp.ones((5, 2))},
    }
    wanted = (
        "^params: not pruned, though called as matrices are: mix/kernel, which enters "
        r"the loss through fft; .* swapjax.plan\(..., include=..., axes=...\)$"
    )
    with pytest.warns(UserWarning, match=wanted) as told:
        pruned = swapjax.prune(
            loss_fn, params, jnp.ones((6, 4)), sparsity=0.5, samples=6,
            method=swapjax.magnitude(), key=jax.random.key(0),
        )  # fmt: skip
    assert [warning.filename for warning in told] == [__file__]
    assert pruned.history[-1].layers == {"out/kernel": 3}
