"""``ridge="kfac"`` in `linear_regression`, `swap` and `chita`, through `prune`."""

import dataclasses

import jax
import jax.numpy as jnp
import layer_problems
import numpy as np
import pytest

import swapjax
from swapjax.pruning.solvers import settings

PLAIN = {"support": "magnitude", "first_order": False}


@pytest.fixture(scope="module")
def network():
    """A kernel, a scale that is in no product, and two layers in a scan."""
    k = jax.random.split(jax.random.key(0), 6)
    params = {
        "first": jax.random.normal(k[0], (6, 5)) / 2,
        "scale": {"matrix": jax.random.normal(k[1], (5, 5)) / 2},
        "stack": jax.random.normal(k[2], (2, 5, 5)) / 2,
        "last": jax.random.normal(k[3], (5, 3)),
    }
    x = jax.random.normal(k[4], (60, 6))
    y = jax.random.randint(k[5], (60,), 0, 3)
    return params, (x, y)


def loss_fn(params, batch):
    x, y = batch
    h = jnp.tanh(x @ params["first"])
    # Every entry of it is a gain of its own: no product with what depends on the data.
    h = h + jnp.sum(jnp.sin(h[:, None] * params["scale"]["matrix"]), axis=2)
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["stack"])
    logits = jax.nn.log_softmax(h @ params["last"])
    return -jnp.mean(jnp.take_along_axis(logits, y[:, None], axis=1))


def prune(network, method, **options):
    params, data = network
    one = jax.tree.map(lambda x: x[:1], data)
    return swapjax.prune(
        loss_fn, params, data,
        plan=swapjax.plan(params, 0.5, include=".*", loss_fn=loss_fn, batch=one),
        method=method,
        **{"samples": 40, "key": jax.random.key(7), **options},
    )  # fmt: skip


METHODS = {
    "linear-regression": swapjax.linear_regression(ridge="kfac", kappa=(0.5, 4)),
    "swap": swapjax.swap(ridge="kfac", kappa=2.0, damping=1e-3),
    "chita": swapjax.chita(ridge="kfac", kappa=2.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_tell_kappa_and_what_was_not_followed(network, name):
    pruned = prune(network, METHODS[name], stages=2)
    details = pruned.history[-1].details
    assert details["unfollowed_leaves"] == 1
    assert 0 <= details["noise_columns"] < 1
    given = dict(METHODS[name].settings)
    assert details["kappa"] in given["kappa"]
    assert details.get("loss", 1.0) > 0  # of several settings
    kept = sum(int(jnp.sum(m)) for m in jax.tree.leaves(pruned.masks))
    assert kept == pruned.history[-1].kept


def test_small_kappa_is_the_regression_and_algebras_agree(network):
    def weights(**options):
        method = swapjax.linear_regression(damping=1e-2, **PLAIN, **options)
        # Of a random network a re-fit is often worse than none: nobody asks here.
        same = lambda params, batch: jnp.zeros(())  # noqa: E731
        found = prune(network, method, criterion=same)
        assert found.history[0].status == swapjax.Status.CONVERGED
        return jax.tree.leaves(found.params)

    plain = weights()
    none = weights(ridge="kfac", kappa=0.0)
    some = [weights(ridge="kfac", kappa=3.0, algebra=a) for a in ("gram", "cg")]
    for a, b, c, d in zip(plain, none, *some, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_allclose(c, d, atol=1e-4)


@pytest.mark.parametrize("kappa", [0.5, 32.0, 1e4])
def test_algebras_agree_where_outputs_count_differently_by_orders(kappa):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 20)) * np.exp(rng.normal(size=20) / 2)
    x[:, :2] = 0  # nothing is read there
    spread = np.exp(2 * rng.normal(size=(24, 1)))
    params = {
        "a": jnp.asarray(rng.normal(size=(20, 24)) / np.sqrt(20), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(24, 5)) / np.sqrt(24) * spread, jnp.float32),
    }
    data = jnp.asarray(x, jnp.float32), jnp.asarray(rng.integers(0, 5, 300))

    def loss_fn(params, batch):
        x, y = batch
        logits = jax.nn.log_softmax(jax.nn.relu(x @ params["a"]) @ params["b"])
        return -jnp.mean(jnp.take_along_axis(logits, y[:, None], axis=1))

    found = []
    for algebra in ("gram", "cg"):
        method = swapjax.linear_regression(
            ridge="kfac", kappa=kappa, algebra=algebra, **PLAIN
        )
        pruned = swapjax.prune(
            loss_fn, params, data, sparsity=0.7, method=method, samples=100,
            key=jax.random.key(0),
        )  # fmt: skip
        assert pruned.history[-1].status == swapjax.Status.CONVERGED
        leaves = jax.tree.leaves(pruned.params)
        found.append(np.concatenate([np.ravel(w) for w in leaves]))
    apart = np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])
    assert apart < 1e-4


@pytest.mark.usefixtures("x64")
def test_damping_follows_kappa_and_the_diagonal_of_t():
    """A hundredth of its mean; weights that are zero already do not count."""
    problem, _ = layer_problems.setting()
    weights = tuple(w.at[0].set(0) for w in problem.weights)
    problem = dataclasses.replace(problem, weights=weights)
    held = settings.hold_by(problem, problem.rows, jnp.float64)
    diagonal = np.concatenate([np.ravel(t) for t in held.kronecker.diagonal()])
    there = np.concatenate([np.ravel(w) for w in weights]) != 0
    for kappa in (0.5, 1e4):
        setting = settings.Setting(None, jnp.asarray(kappa), jnp.asarray(0))
        wanted = 0.01 * kappa * np.mean(diagonal[there])
        np.testing.assert_allclose(held.damping(setting), wanted, rtol=1e-10)
    given = settings.Setting(jnp.asarray(3.0), jnp.asarray(2.0), jnp.asarray(0))
    assert held.damping(given) == 3


@pytest.mark.usefixtures("x64")
def test_damping_stays_above_zero_where_t_is_zero():
    """All columns have the same energy, and none is above the floor."""
    x = jnp.sign(jax.random.normal(jax.random.key(0), (64, 12)))
    w = {"kernel": jax.random.normal(jax.random.key(1), (12, 1))}
    pruned = swapjax.prune(
        lambda p, x: jnp.mean(jnp.square(x @ p["kernel"])), w, x, sparsity=0.5,
        samples=64, key=jax.random.key(2),
        method=swapjax.linear_regression(ridge="kfac", **PLAIN),
    )  # fmt: skip
    assert pruned.history[0].details["damping"] > 0
    fine = swapjax.Status.CONVERGED, swapjax.Status.NOT_REFITTED
    assert pruned.history[0].status in fine


def test_large_kappa_is_the_layerwise_refit():
    k = jax.random.split(jax.random.key(3), 3)
    mix = jax.random.normal(k[2], (6, 6))
    params = {"kernel": jax.random.normal(k[0], (6, 5))}
    x = jax.random.normal(k[1], (60, 6)) @ mix
    aims = x @ params["kernel"] + jnp.sin(jnp.arange(60.0))[:, None]
    found = swapjax.prune(
        lambda p, batch: jnp.mean((batch[0] @ p["kernel"] - batch[1]) ** 2),
        params, (x, aims), sparsity=0.5, samples=60, key=jax.random.key(1),
        method=swapjax.linear_regression(
            ridge="kfac", kappa=1e4, damping=1e-6, **PLAIN
        ),
    )  # fmt: skip
    read, old = np.asarray(x, np.float64), np.asarray(params["kernel"], np.float64)
    moment = read.T @ read / len(read)
    mask, got = np.asarray(found.masks["kernel"]), np.asarray(found.params["kernel"])
    # Rounding hides a damping this small.
    assert found.history[0].status == swapjax.Status.DAMPED
    for out in range(old.shape[1]):
        kept = mask[:, out]
        lost = moment[np.ix_(kept, ~kept)] @ old[~kept, out]
        alone = old[kept, out] + np.linalg.solve(moment[np.ix_(kept, kept)], lost)
        np.testing.assert_allclose(got[kept, out], alone, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": "kron"}, "ridge must be"),
        ({"kappa": 1.0}, "kappa: belongs to ridge='kfac'"),
        ({"ridge": "kfac", "kappa": -1.0}, "kappa must be 0 or more"),
        ({"ridge": "kfac", "kappa": float("nan")}, "kappa must be 0 or more"),
        ({"ridge": "kfac", "kappa": ()}, "kappa must be 0 or more"),
        ({"ridge": "kfac", "kappa": "much"}, "kappa must be numbers"),
    ],
)
@pytest.mark.parametrize("make", ["linear_regression", "swap", "chita"])
def test_wrong_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(swapjax, make)(**options)
    if make != "chita":
        with pytest.raises(ValueError, match="support must be"):
            getattr(swapjax, make)(support="kfac")


def test_chita_solves_with_it_at_once():
    with pytest.raises(ValueError, match="'kfac' needs polish='backsolve'"):
        swapjax.chita(ridge="kfac", search="magnitude", block=5)
