"""Sparse regularisation, negative learning, and what a network has memorised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swapjax import robust as memory
from swapjax.corruptions import flip_labels
from swapjax.robust import NoisyLabels
from swapjax.robust.label_losses import ce
from swapjax.robust.label_objective import LABEL_OBJECTIVES, label_objective
from swapjax.robust.negative_learning import negative_learning
from swapjax.robust.sparse_regularization import (
    lp_penalty,
    sharpen,
    sparse_regularized,
)
from swapjax.robust.supervised import supervised
from swapjax.training import fit

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
Y = np.arange(12) % 4
PARAMS = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), "f4")}
SETTINGS = {"tau": 0.5, "p": 0.1, "weight": 3.0}


def apply(params, x):
    return x @ params["kernel"]


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("p", [0.01, 0.1, 1.0])
def test_the_penalty_of_a_vertex_and_of_the_centre(classes, p):
    vertex = 1e6 * jnp.eye(classes)[:1]
    np.testing.assert_allclose(lp_penalty(vertex, p), 1, rtol=1e-6)
    centre = lp_penalty(jnp.zeros((1, classes)), p)
    np.testing.assert_allclose(centre, classes ** (1 - p), rtol=1e-5)


def test_the_clamp_is_that_of_the_authors():
    vertex = 1e6 * jnp.eye(10)[:1]
    found = lp_penalty(vertex, 0.1, clamp=1e-7)
    np.testing.assert_allclose(found, 1 + 9 * 1e-7**0.1, rtol=1e-5)
    assert abs(float(found[0]) - 2.80) < 0.005
    slope = jax.grad(lambda z: lp_penalty(z, 0.1, clamp=1e-7).sum())
    below = jnp.asarray([[100.0, 0.0, 0.0]])
    np.testing.assert_allclose(slope(below), 0, atol=1e-6)


def test_the_gradient_of_the_penalty(x64):
    z, p = np.random.default_rng(2).normal(size=(5, 4)) * 3, 0.3
    u = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    wanted = p * (u**p - u * (u**p).sum(axis=1, keepdims=True))
    found = jax.grad(lambda z: lp_penalty(z, p).sum())(jnp.asarray(z))
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("row", [[1e3, -1e3, 0.0], [0.0, 0.0, 0.0], [-1e3, 1e3, 1e3]])
def test_gradients_are_finite_where_logits_are_not_small(normalize, row):
    def penalty(z):
        return lp_penalty(sharpen(z, 0.1, normalize=normalize), 0.1).sum()

    found = jax.grad(penalty)(jnp.asarray([row]))
    assert bool(jnp.isfinite(found).all())


@pytest.mark.parametrize(("classes", "most"), [(10, 0.478), (100, 0.070)])
def test_what_normalised_logits_can_reach(classes, most):
    corner = jnp.eye(classes)[:1] - 1 / classes
    found = jax.nn.softmax(sharpen(corner, 0.5, normalize=True))
    assert abs(float(found.max()) - most) < 5e-4
    bound = 1 / (1 + (classes - 1) * np.exp(-np.sqrt(classes / (classes - 1)) / 0.5))
    np.testing.assert_allclose(found.max(), bound, rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_objective_is_its_formula_and_the_weight_grows(normalize):
    grown = sparse_regularized(
        apply, ce(), growth=2.0, every=3, normalize=normalize, **SETTINGS
    )
    z = X @ np.asarray(PARAMS["kernel"], np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if normalize else z
    u = np.exp(z / 0.5) / np.exp(z / 0.5).sum(axis=1, keepdims=True)
    base, penalty = -np.log(u[np.arange(12), Y]).mean(), (u**0.1).sum(axis=1).mean()
    counts = np.bincount((X @ np.asarray(PARAMS["kernel"])).argmax(axis=1), minlength=4)
    step = jax.jit(grown.loss)
    state = grown.init(PARAMS, (X, Y))
    for i in range(8):
        loss, state, told = step(PARAMS, state, (X, Y), KEY)
        weight = 3.0 * 2 ** (i // 3)
        wanted = {"base": base, "penalty": penalty, "weight": weight}
        for name, value in wanted.items():
            np.testing.assert_allclose(told[name], value, rtol=1e-5)
        np.testing.assert_allclose(loss, base + weight * penalty, rtol=1e-5)
        assert float(told["largest_class"]) == pytest.approx(counts.max() / 12)
    assert step._cache_size() == 1


@pytest.mark.parametrize(("every", "times"), [(150, 120), (50, 120), (12, 4)])
def test_the_weight_grows_evenly_along_a_run(every, times):
    grown = sparse_regularized(
        apply, ce(), growth=1.01, every=every, times=times, **SETTINGS
    )
    weight = jax.jit(lambda t: grown.loss(PARAMS, t, (X, Y), KEY)[2]["weight"])
    for t in (0, 1, 4, every // 2, every - 1, every, 2 * every + 3):
        wanted = 3.0 * 1.01 ** (t * times // every)
        np.testing.assert_allclose(weight(jnp.int32(t)), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="times must be 2 or fewer in 1073741823"):
        sparse_regularized(apply, ce(), every=2**30 - 1, times=5, **SETTINGS)


def test_cifar100_has_a_weight_for_each_kind_of_noise():
    batch = X, jnp.asarray(Y)
    for given, wanted in (({}, 4.0), ({"asymmetric": True}, 10.0)):
        made = label_objective("sr-ce", apply, data="cifar100", steps=9, **given)
        _, _, told = made.loss(PARAMS, made.init(PARAMS, batch), batch, KEY)
        assert told["weight"] == wanted


def test_supervised_is_the_mean_loss():
    plain = supervised(apply, ce())
    loss, state, told = plain.loss(PARAMS, (), (X, jnp.asarray(Y)), KEY)
    logits = apply(PARAMS, X)
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert state == ()
    assert set(told) == {"largest_class"}


def test_a_loss_must_be_a_number_an_example():
    for objective in (
        supervised(apply, lambda z, y: z.mean()),
        sparse_regularized(apply, lambda z, y: z.mean(), **SETTINGS),
    ):
        with pytest.raises(ValueError, match=r"loss must return floats \[12\]"):
            objective.loss(PARAMS, objective.init(PARAMS, None), (X, Y), KEY)


def test_negative_learning_draws_among_the_other_classes():
    counts = np.asarray([1.0, 2, 4, 5])
    objective = negative_learning(apply, counts)
    u = np.asarray(jax.nn.softmax(apply(PARAMS, X)), np.float64)
    terms = -np.log(np.maximum(1 - u, 1e-5)) * (5 / counts)[Y][:, None]
    terms[np.arange(12), Y] = 0
    wanted = terms.sum(axis=1).mean() / 3

    @jax.jit
    def losses(keys):
        batch = (X, jnp.asarray(Y))
        return jax.vmap(lambda key: objective.loss(PARAMS, (), batch, key)[0])(keys)

    found = np.asarray(losses(jax.random.split(KEY, 4000)))
    error = found.std() / np.sqrt(4000)
    assert abs(found.mean() - wanted) < 5 * error
    # No draw is the label: that would cost an example of class 0 much.
    sure = {"kernel": jnp.asarray(np.eye(6, 4), jnp.float32) * 1e3}
    x = np.eye(4, 6, dtype=np.float32)
    loss = objective.loss(sure, (), (x, jnp.arange(4)), KEY)[0]
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    labels = jnp.asarray(Y).at[0].set(4)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\)"):
        objective.loss(PARAMS, (), (X, labels), KEY)
    loss = jax.jit(lambda y: objective.loss(PARAMS, (), (X, y), KEY)[0])
    assert bool(jnp.isnan(loss(labels)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.0}, "tau must be a number above 0, got 0.0"),
        ({"p": 0.0}, r"p must be in \(0, 1\], got 0.0"),
        ({"p": 1.5}, r"p must be in \(0, 1\], got 1.5"),
        ({"weight": -1.0}, "weight must be a number, 0 or more"),
        ({"weight": float("inf")}, "weight must be a number, 0 or more"),
        ({"growth": 0.5}, "growth must be 1 or more"),
        ({"clamp": 1.0}, r"clamp must be in \[0, 1\)"),
        ({"every": 0}, "every must be 1 or more"),
    ],
)
def test_bad_settings_of_sparse_regularisation_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sparse_regularized(apply, ce(), **SETTINGS | settings)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5], "counts must be of 2 classes or more"),
        ([5, 0], "counts must be above 0, got 0 for a class"),
    ],
)
def test_bad_counts_are_named(counts, message):
    with pytest.raises(ValueError, match=message):
        negative_learning(apply, counts)


def test_counts_of_other_classes_are_named():
    objective = negative_learning(apply, [1, 2])
    with pytest.raises(ValueError, match=r"counts must be of \(4,\) classes"):
        objective.loss(PARAMS, (), (X, jnp.asarray(Y)), KEY)


@pytest.mark.parametrize("name", LABEL_OBJECTIVES)
def test_every_objective_by_name(name):
    objective = label_objective(name, apply, data="cifar10", steps=240, counts=[3] * 4)
    batch = X, jnp.asarray(Y)
    state = objective.init(PARAMS, batch)
    loss, state, told = objective.loss(PARAMS, state, batch, KEY)
    assert loss.shape == ()
    assert bool(jnp.isfinite(loss))
    assert told["largest_class"].shape == ()
    if name.startswith("sr-"):
        # By 1.03 each of 120 epochs, of two steps here.
        _, state, told = objective.loss(PARAMS, state + 1, batch, KEY)
        np.testing.assert_allclose(told["weight"], 1.2 * 1.03, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "best"}, "name must be one of ce, fl, .*, got 'best'"),
        ({"name": "ce", "data": "svhn"}, "data must be one of mnist, .*, got 'svhn'"),
        ({"name": "nlnl"}, "counts: nlnl weighs classes by them"),
        ({"name": "sr-ce", "steps": 0}, "steps must be 1 or more"),
        ({"name": "sr-ce"}, "steps: the weight of sr-ce grows along the run, give the"),
    ],
)
def test_names_that_are_not_known(arguments, message):
    with pytest.raises(ValueError, match=message):
        label_objective(apply=apply, **arguments)


def test_fit_trains_on_noisy_labels_and_tells_their_parts():
    centres = np.eye(4, 6) * 3
    rng = np.random.default_rng(0)
    labels = np.arange(128) % 4
    x = (centres[labels] + rng.normal(size=(128, 6))).astype(np.float32)
    noisy, flipped = flip_labels(KEY, labels, 0.5, classes=4, exact=True)
    objective = label_objective("sr-ce", apply, steps=40)
    measure = NoisyLabels(apply, (x, labels), x, noisy, flipped, labels)
    params = {"kernel": jnp.zeros((6, 4))}
    tx = optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(0.01))
    fitted = fit(objective, params, tx, (x, noisy), epochs=5, batch=16, key=KEY,
                 evaluate=measure)  # fmt: skip
    weights = [epoch.told["weight"] for epoch in fitted.history]
    # Eight steps an epoch, and twice the weight after each four.
    np.testing.assert_allclose(weights, [4 * 1.5 * 4**i for i in range(5)], rtol=1e-5)
    last = fitted.history[-1]
    assert last.accuracy == measure(fitted.params)["accuracy"] > 60
    assert last.told["memorized"] < 30 < 60 < last.told["recovered"]


def test_memorisation_is_counted_apart():
    outputs = np.eye(3)[[0, 1, 2, 0, 1]]
    noisy, labels = np.asarray([0, 1, 0, 0, 2]), np.asarray([0, 2, 2, 1, 2])
    flipped = noisy != labels
    found = memory.memorization(outputs, noisy, flipped, labels)
    assert found == {
        "memorized": pytest.approx(100 * 2 / 3),  # the second and the fourth
        "recovered": pytest.approx(100 / 3),  # the third
        "fitted": pytest.approx(50),  # the first of two
    }
    clean = memory.memorization(outputs, labels, np.zeros(5, bool))
    assert clean == {"fitted": pytest.approx(40)}
    with pytest.raises(ValueError, match=r"flipped must be of shape \(5,\)"):
        memory.memorization(outputs, noisy, flipped[:3])
    with pytest.raises(ValueError, match=r"labels must be of shape \(5,\), .*\(3,\)"):
        memory.memorization(outputs, noisy, flipped, labels[:3])


def test_best_to_last():
    assert memory.best_to_last([50.0, 80.0, 60.0]) == 20
    assert memory.best_to_last([50.0, 80.0]) == 0
    with pytest.raises(ValueError, match="accuracies must be one an epoch, got none"):
        memory.best_to_last([])


def test_shares_of_classes():
    outputs = jnp.eye(3)[jnp.asarray([0, 2, 2, 2])]
    np.testing.assert_allclose(memory.class_shares(outputs), [0.25, 0, 0.75])
    assert float(memory.largest_class(outputs)) == 0.75


def test_the_evaluation_measures_in_parts():
    noisy = Y.copy()
    noisy[:3] = (noisy[:3] + 1) % 4
    measure = NoisyLabels(apply, (X[:7], Y[:7]), X, noisy, noisy != Y, Y, batch=5)
    found = measure(PARAMS)
    outputs = apply(PARAMS, X)
    hits = np.asarray(outputs).argmax(axis=1) == Y
    assert found["accuracy"] == pytest.approx(100 * hits[:7].mean())
    assert found["largest_class_tested"] == pytest.approx(
        100 * float(memory.largest_class(outputs[:7]))
    )
    wanted = memory.memorization(outputs, noisy, noisy != Y, Y)
    assert {name: found[name] for name in wanted} == wanted
    other = NoisyLabels(apply, (X[:7], Y[:7]), X, Y, Y != Y)
    assert measure.describe() != other.describe()
    with pytest.raises(ValueError, match="batch must be 1 or more"):
        NoisyLabels(apply, (X, Y), X, noisy, noisy != Y, batch=0)
    with pytest.raises(ValueError, match="labels must be one an image, 12, got 5"):
        NoisyLabels(apply, (X, Y), X, noisy, noisy != Y, Y[:5])
