"""Frameworks of adversarial training: formulas, directions, keys, bad input."""

import functools

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest

from swapjax import robust
from swapjax.core.objective import Objective
from swapjax.robust.adversarial import divergence
from swapjax.training import fit

KEY = jax.random.key(5)
PARAMS = network.make(outputs=4)
X = jax.random.uniform(jax.random.key(1), (6, 6))
Y = jnp.array([0, 3, 1, 2, 2, 0])
ATTACK = {"epsilon": 0.1, "step": 0.04, "steps": 3}
HEAD = robust.Hypersphere(8.0, 0.2)
COSINES = robust.cosine_apply(network.hidden, "fc2")
HEADS = [(network.apply, None), (COSINES, HEAD)]
CASES = [
    (*head, name) for head in HEADS for name in ("pgd_at", "alp", "trades", "mart")
]


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kl(target, other):
    p, q = softmax(target), softmax(other)
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


def cross_entropy(logits):
    return -np.log(softmax(logits)[np.arange(6), np.asarray(Y)])


def oracle(name, before, after, head):
    """The losses from outputs of the network, in float64."""
    own = np.eye(4)[np.asarray(Y)]
    s, m = (1.0, 0.0) if head is None else (head.scale, head.margin)
    seen = lambda z: s * z  # noqa: E731
    pushed = lambda z: s * (z - m * own)  # noqa: E731
    if name == "pgd_at":
        return cross_entropy(pushed(after)).mean()
    if name == "alp":
        both = cross_entropy(pushed(before)) + cross_entropy(pushed(after))
        return both.mean() / 2 + 0.5 * np.mean((before - after) ** 2)
    if name == "trades":
        apart = kl(seen(before), seen(after)).mean()
        return cross_entropy(pushed(before)).mean() + 6 * apart
    others = np.where(own > 0, 0, softmax(pushed(after))).max(1)
    boosted = cross_entropy(pushed(after)) - np.log(1 - others)
    right = softmax(seen(before))[np.arange(6), np.asarray(Y)]
    return np.mean(boosted + 5 * kl(seen(before), seen(after)) * (1 - right))


@functools.cache
def attacked(apply, head, name):
    """What the attack of a framework makes of the images, from its words."""
    scale = 1.0 if head is None else head.scale
    climbed, labels = robust.cross_entropy, Y
    if name == "trades":
        climbed, labels = divergence, scale * apply(PARAMS, X)
    seen = climbed if head is None else robust.Scaled(climbed, scale)
    return robust.pgd(KEY, apply, PARAMS, X, labels, **ATTACK, objective=seen,
                      start="gaussian")  # fmt: skip


@pytest.mark.parametrize(("apply", "head", "name"), CASES)
def test_losses_are_their_formulas(apply, head, name):
    objective = getattr(robust, name)(apply, **ATTACK, head=head)
    value, state, told = objective.loss(PARAMS, (), (X, Y), KEY)
    moved = attacked(apply, head, name)
    before, after = (np.asarray(apply(PARAMS, x), np.float64) for x in (X, moved))
    np.testing.assert_allclose(value, oracle(name, before, after, head), rtol=2e-5)
    assert state == ()
    wanted = np.mean(after.argmax(1) == np.asarray(Y))
    np.testing.assert_allclose(told["robust_accuracy"], wanted, rtol=1e-6)


@pytest.mark.parametrize(("apply", "head"), HEADS)
def test_the_divergence_of_trades_has_the_clean_prediction_as_target(apply, head):
    """And both of its sides have gradients in the update."""
    objective = robust.trades(apply, **ATTACK, head=head, beta=1.0)
    slopes, *_ = objective.value_and_grad(PARAMS, (), (X, Y), KEY)
    moved = attacked(apply, head, "trades")
    scale, margin = (1.0, 0.0) if head is None else (head.scale, head.margin)

    def whole(params, clean_side=True):
        clean, after = apply(params, X), scale * apply(params, moved)
        own = margin * jax.nn.one_hot(Y, 4)
        target = scale * (clean if clean_side else jax.lax.stop_gradient(clean))
        p = jax.nn.softmax(target)
        apart = p * (jax.nn.log_softmax(target) - jax.nn.log_softmax(after))
        ce = robust.cross_entropy(scale * (clean - own), Y)
        return jnp.mean(ce) + jnp.sum(apart) / 6

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, slopes, jax.grad(whole)(PARAMS))
    half = jax.grad(whole)(PARAMS, clean_side=False)
    assert not np.allclose(half["fc2"]["kernel"], slopes["fc2"]["kernel"], rtol=1e-3)


def test_no_gradient_flows_through_an_attack():
    def slopes(steps):
        objective = robust.pgd_at(network.apply, epsilon=0.1, step=0.04, steps=steps)
        return objective.value_and_grad(PARAMS, (), (X, Y), KEY)[0]

    moved = attacked(network.apply, None, "pgd_at")
    plain = jax.grad(
        lambda p: jnp.mean(robust.cross_entropy(network.apply(p, moved), Y))
    )(PARAMS)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, slopes(3), plain)


def test_the_attack_is_in_inference_mode_and_the_update_in_training_mode():
    """With the statistics of the clean batch in the attack where they are given."""
    seen = {"apply": 0, "training": 0}

    def apply(params, x):
        seen["apply"] += 1
        return network.apply(params, x)

    def training(params, x):
        seen["training"] += 1
        return network.apply(params, x - jnp.mean(x, axis=0))

    def statistics(params, x):
        return {**params, "fc2": {"kernel": params["fc2"]["kernel"] + jnp.mean(x)}}

    objective = robust.trades(
        apply, **ATTACK, training_apply=training, statistics=statistics
    )
    objective.loss(PARAMS, (), (X, Y), KEY)
    assert seen["training"] == 2  # clean and attacked
    objective = robust.pgd_at(
        apply, **ATTACK, training_apply=training, statistics=statistics
    )
    value, *_ = objective.loss(PARAMS, (), (X, Y), KEY)
    moved = robust.pgd(KEY, network.apply, statistics(PARAMS, X), X, Y, **ATTACK,
                       start="gaussian")  # fmt: skip
    wanted = jnp.mean(robust.cross_entropy(training(PARAMS, moved), Y))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize(("apply", "head"), HEADS)
def test_fast_training_has_one_step_from_anywhere(apply, head):
    value, *_ = robust.fast_at(apply, epsilon=0.1, head=head).loss(
        PARAMS, (), (X, Y), KEY
    )
    scale = 1.0 if head is None else head.scale
    shift = jax.random.uniform(jax.random.fold_in(KEY, 0), X.shape, minval=-1, maxval=1)
    start = np.clip(np.asarray(X + 0.1 * shift, np.float64), 0, 1)
    slope = jax.grad(
        lambda x: jnp.sum(robust.cross_entropy(scale * apply(PARAMS, x), Y))
    )(jnp.asarray(start, jnp.float32))
    moved = np.clip(start - X + 0.125 * np.sign(slope), -0.1, 0.1) + X
    outputs = np.asarray(apply(PARAMS, jnp.clip(moved, 0, 1)), np.float64)
    wanted = oracle("pgd_at", outputs, outputs, head)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)


@pytest.mark.parametrize(("apply", "head"), HEADS)
def test_free_training_is_a_loop_by_hand(apply, head):
    objective = robust.free_at(apply, epsilon=0.1, step=0.06, replays=3, head=head)
    x, y = jnp.concatenate([X, 1 - X]), jnp.concatenate([Y, Y])
    fitted = fit(objective, PARAMS, optax.sgd(0.1), (x, y), epochs=2, batch=6, key=KEY)
    params, delta, losses = PARAMS, np.zeros_like(X), []
    scale, margin = (1.0, 0.0) if head is None else (head.scale, head.margin)

    @jax.jit
    def both(params, delta, x, y):
        def loss(params, delta):
            outputs = apply(params, jnp.clip(x + delta, 0, 1))
            own = margin * jax.nn.one_hot(y, 4)
            return jnp.mean(robust.cross_entropy(scale * (outputs - own), y))

        return jax.value_and_grad(loss, (0, 1))(params, delta)

    for epoch in range(2):
        order = jax.random.permutation(jax.random.fold_in(KEY, epoch), 12)
        for rows in order.reshape(2, 6):
            for _ in range(3):
                value, (slopes, rise) = both(params, delta, x[rows], y[rows])
                delta = np.clip(delta + np.float32(0.06) * np.sign(rise), -0.1, 0.1)
                params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes)
                losses.append(float(value))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, fitted.params, params)
    close([e.loss for e in fitted.history], np.reshape(losses, (2, 6)).mean(1))
    assert [e.steps for e in fitted.history] == [6, 12]
    assert np.abs(delta).max() <= 0.1 + 1e-7
    _, after, _ = objective.loss(PARAMS, jnp.zeros_like(X), (X, Y), KEY)
    np.testing.assert_array_equal(np.unique(np.abs(after)), np.float32([0.06]))


def test_runs_repeat_and_depend_on_the_key():
    objective = robust.pgd_at(network.apply, **ATTACK, start="uniform")
    runs = [
        fit(objective, PARAMS, optax.sgd(0.1), (X, Y), epochs=1, batch=6, key=key)
        for key in (KEY, KEY, jax.random.key(0))
    ]
    first, same, other = (run.params["fc2"]["kernel"] for run in runs)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_run_that_collapses_ends():
    """Weights grow after the first epoch until the network is flat in no image."""
    watch = robust.watch_robustness(
        network.apply, (X, Y), epsilon=0.05, key=KEY, evaluate=lambda p: {"accuracy": 9}
    )
    plain = robust.watch_robustness(network.apply, (X, Y), epsilon=0.05, key=KEY)
    moved = robust.pgd(KEY, network.apply, PARAMS, X, Y, epsilon=0.05, step=0.0125,
                       steps=5)  # fmt: skip
    left = np.mean(np.argmax(network.apply(PARAMS, moved), 1) == np.asarray(Y))
    assert watch(PARAMS) == {"accuracy": 9, "robust_batch": pytest.approx(left)}
    clean = np.mean(np.argmax(network.apply(PARAMS, X), 1) == np.asarray(Y))
    assert plain(PARAMS)["accuracy"] == pytest.approx(clean)
    found = iter([0.5, 0.7, 0.55, 0.3, 0.9])

    def evaluate(params):
        return {"accuracy": 1.0, "robust_batch": next(found)}

    loss = Objective(lambda p, s, b, k: (jnp.sum(p["fc2"]["kernel"] ** 2), s, {}))
    stop = robust.stop_at_collapse(0.2)
    options = {"epochs": 5, "batch": 6, "key": KEY, "callback": stop}
    with pytest.warns(UserWarning, match=r"ended training: .* from 0.55 to 0.30 in ep"):
        fitted = fit(loss, PARAMS, optax.sgd(0.1), (X, Y), **options, evaluate=evaluate)
    assert [e.told["robust_batch"] for e in fitted.history] == [0.5, 0.7, 0.55, 0.3]
    assert "robust accuracy fell from 0.55 to 0.30" in fitted.history[-1].status
    found = iter([0.1, 0.2, 0.2, 0.2, 0.2])  # from less than the last run had
    fit(loss, PARAMS, optax.sgd(0.1), (X, Y), **options, evaluate=evaluate)
    with pytest.raises(ValueError, match=r"evaluate must tell 'robust_batch' .* \[\]"):
        fit(loss, PARAMS, optax.sgd(0.1), (X, Y), **options)


@pytest.mark.parametrize(
    ("make", "saying"),
    [
        (
            lambda: robust.pgd_at(network.apply, epsilon=-1, step=1, steps=1),
            "epsilon m",
        ),
        (lambda: robust.alp(network.apply, epsilon=1, step=-1, steps=1), "step must"),
        (lambda: robust.mart(network.apply, epsilon=1, step=1, steps=-1), "steps must"),
        (
            lambda: robust.trades(network.apply, **ATTACK, beta=-1.0),
            "beta must be a number, 0 or more, got -1",
        ),
        (
            lambda: robust.trades(network.apply, **ATTACK, start=None),
            "start must be 'gaussian' or 'uniform': at the images",
        ),
        (lambda: robust.pgd_at(network.apply, **ATTACK, head=5), "head must be Hyper"),
        (
            lambda: robust.trades(network.apply, **ATTACK, beta="6"),
            "beta must be a number, 0 or more, got '6'",
        ),
        (lambda: robust.pgd_at(network.apply, **ATTACK, start="foo"), "start must be"),
        (lambda: robust.pgd_at(network.apply, **ATTACK, norm="l3"), "norm must be"),
        (
            lambda: robust.pgd_at(network.apply, **ATTACK, headd=None),
            "options must be of loss, head, .* got 'headd'",
        ),
        (
            lambda: robust.free_at(network.apply, epsilon=0.1, box=(1, 0)),
            "box must be two numbers that rise",
        ),
        (lambda: robust.free_at(network.apply, epsilon=0.1, replays=0), "replays must"),
        (lambda: robust.fast_at(network.apply, epsilon=-0.1), "epsilon must"),
        (lambda: robust.stop_at_collapse(0.0), "drop must be above 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_an_error(make, saying):
    with pytest.raises(ValueError, match=saying):
        make()


@pytest.mark.parametrize(
    ("batch", "saying"),
    [
        ((X * 3, Y), "images must lie in the box from 0 to 1"),
        ((X, Y + 2), "labels must be from 0 to 3"),
        (X, r"data must be \(images, labels\), got a"),
    ],
)
@pytest.mark.parametrize("name", ["pgd_at", "free_at"])
def test_data_that_do_not_fit_are_an_error_before_training(name, batch, saying):
    settings = ATTACK if name == "pgd_at" else {"epsilon": 0.1}
    objective = getattr(robust, name)(network.apply, **settings)
    with pytest.raises(ValueError, match=saying):
        fit(objective, PARAMS, optax.sgd(0.1), batch, epochs=1, batch=6, key=KEY)


def test_a_loss_must_be_one_number_an_image():
    objective = robust.free_at(network.apply, epsilon=0.1, loss=lambda z, y: z.mean())
    with pytest.raises(ValueError, match=r"loss must return floats \[6\]"):
        objective.loss(PARAMS, jnp.zeros_like(X), (X, Y), KEY)
