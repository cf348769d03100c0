"""Updates that are none: skipped for overflow, or gathered into one of several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import kernels
from sparse_runs import KEY, QUICK, by_gradients, follow, gradients, initial

import swapjax
from swapjax import constant, cubic
from swapjax.training import (
    Trainer,
    check_state,
    fit,
    gmp,
    masks_of,
    rigl,
    set_,
    sparse,
    ste,
)

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
SAFE = optax.apply_if_finite(optax.adam(0.01), 99)


def overflow(tree, leaf=None):
    """Gradients of which one leaf, or each, is infinite."""
    return jax.tree.map(
        lambda x: x if leaf and x.shape != leaf else jnp.full_like(x, jnp.inf), tree
    )


def run(rule, broken, *, steps=8, inner=SAFE, leaf=None, **options):
    """Masks after each update, some of them with gradients that overflow."""
    schedule = options.pop("schedule", cubic(2, 6, every=2, initial=0.3))
    tx = sparse(inner, rule, sparsity=0.5, schedule=schedule, key=KEY, **options)
    given = gradients(steps)
    for t in broken:
        given[t - 1] = overflow(given[t - 1], leaf)
    params = initial()
    trail = follow(
        by_gradients(tx, compiler_options=QUICK), params, tx.init(params), given
    )
    return trail, [np.concatenate([m.ravel() for m in kernels(masks_of(s))])
                   for _, s in trail]  # fmt: skip


@pytest.mark.parametrize("rule", [gmp(), rigl(), ste()], ids=str)
@pytest.mark.parametrize("leaf", [None, (9,)], ids=["all", "bias"])
def test_a_skipped_update_spends_no_mask_step(rule, leaf):
    steady = rule.name == "rigl"
    schedule = constant(2, 6, every=2) if steady else cubic(2, 6, every=2)
    trail, masks = run(rule, [4, 6, 7], leaf=leaf, schedule=schedule)
    for t in (4, 6, 7):
        np.testing.assert_array_equal(masks[t], masks[t - 1])
    # The next update makes up for it, and the end is exact.
    assert np.any(masks[5] != masks[4])
    assert masks[8].mean() == 0.5
    check_state(trail[-1][1], trail[-1][0])


def test_at_the_last_update_of_all_the_budget_is_met_without_gradients():
    trail, masks = run(gmp(), [6], steps=6)
    assert masks[-1].mean() > 0.5
    assert trail[-1][1].extras["waits"]
    tx = sparse(SAFE, gmp(), sparsity=0.5, schedule=cubic(2, 6, every=2), steps=6)
    given = gradients(6)
    given[5] = overflow(given[5])
    step, params = by_gradients(tx, compiler_options=QUICK), initial()
    params, state = follow(step, params, tx.init(params), given)[-1]
    assert swapjax.density(masks_of(state)) == 0.5
    check_state(state, params)


def test_gradients_that_the_optimizer_mends_do_not_postpone():
    """zero_nans moves weights on: the mask step comes, and growth skips what is NaN."""
    inner = optax.chain(optax.zero_nans(), optax.adam(0.01))
    schedule = constant(2, 6, every=2)
    given = gradients(4)
    given[1] = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), given[1])
    for rule, moves in ((rigl(), False), (set_(), True)):
        tx = sparse(inner, rule, sparsity=0.5, schedule=schedule, key=KEY)
        step, params = by_gradients(tx, compiler_options=QUICK), initial()
        trail = follow(step, params, tx.init(params), given)
        one, two, three = (kernels(masks_of(s))[0] for _, s in trail[1:4])
        assert bool(np.any(one != two)) == moves
        np.testing.assert_array_equal(two, three)


def regression(params, x):
    return jnp.mean((x @ params["kernel"] - x[:, :2]) ** 2)


@pytest.mark.parametrize(
    ("wrap", "updates"),
    [
        (lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(), 6),
        (lambda tx: optax.MultiSteps(tx, lambda t: 1 + t).gradient_transformation(), 4),
        (lambda tx: optax.conditionally_mask(tx, lambda t: t % 3 == 0), 4),
    ],
)  # fmt: skip
def test_masks_that_wrappers_keep_from_settling_are_refused(wrap, updates):
    params = {"kernel": jnp.ones((6, 2))}
    args = {"epochs": 3, "batch": 8, "key": KEY}
    ours = functools.partial(sparse, optax.sgd(0.1), gmp(), sparsity=0.5)
    late = wrap(ours(schedule=cubic(1, updates + 1)))
    with pytest.raises(
        ValueError, match=f"the 12 steps of training make only {updates}"
    ):
        fit(regression, params, late, X, **args)
    trainer = Trainer(regression, X, swapjax.FineTune(late, 12, batch=8))
    with pytest.raises(ValueError, match=f"update {updates + 1}, the 12 steps"):
        trainer(params, jax.tree.map(lambda x: jnp.ones(x.shape, bool), params), KEY)
    fitted = fit(regression, params, wrap(ours(schedule=cubic(1, updates))), X, **args)
    assert fitted.history[-1].sparsity == 0.5
    assert fitted.history[-1].status == ""


def test_each_part_of_a_network_settles_in_its_own_updates():
    params = {"a": {"kernel": jnp.ones((6, 2))}, "b": {"kernel": jnp.ones((6, 2))}}
    args = {"epochs": 3, "batch": 8, "key": KEY}
    ours = functools.partial(sparse, optax.sgd(0.1), gmp(), sparsity=0.5)

    def loss(params, x):
        return regression(params["a"], x) + regression(params["b"], x)

    def parts(last):
        slow = optax.MultiSteps(ours(schedule=cubic(1, last)), 4)
        steps = {"slow": slow.gradient_transformation(), "all": ours(schedule=late)}
        return optax.partition(steps, {"a": "slow", "b": "all"})

    late = cubic(1, 12)
    with pytest.raises(ValueError, match=r"update 4, the 12 steps .* make only 3"):
        fit(loss, params, parts(4), X, **args)
    fitted = fit(loss, params, parts(3), X, **args)
    assert fitted.history[-1].sparsity == 0.5
    assert fitted.history[-1].status == ""


def test_an_ensemble_is_fitted_as_one_network():
    one = sparse(optax.sgd(0.1), gmp(), sparsity=0.5, schedule=cubic(1, 4))
    both = optax.GradientTransformation(jax.vmap(one.init), jax.vmap(one.update))

    def loss(params, x):
        return jax.vmap(regression, (0, None))(params, x).mean()

    params = {"kernel": jax.random.normal(KEY, (3, 6, 2))}
    fitted = fit(loss, params, both, X, epochs=1, batch=8, key=KEY)
    assert (fitted.params["kernel"] != 0).sum((1, 2)).tolist() == [6, 6, 6]
    assert fitted.history[-1].status == ""
    with pytest.raises(ValueError, match="until update 4, training ends after 2"):
        fit(loss, params, both, X, epochs=1, batch=16, key=KEY)


def test_a_run_that_ends_in_skipped_updates_is_told_and_kept(tmp_path):
    tx = sparse(SAFE, gmp(), sparsity=0.5, schedule=cubic(1, 12))

    def loss(params, batch):  # its gradient is NaN, its value is not
        x, zeros = batch
        return regression(params, x) + jnp.sqrt(jnp.sum(zeros * params["kernel"][0, 0]))

    data = (X, np.zeros(32, np.float32))
    args = {"epochs": 3, "batch": 8, "key": KEY, "checkpoint": tmp_path / "run"}
    with pytest.warns(UserWarning, match="fit: the last mask step still waits"):
        fitted = fit(loss, {"kernel": jnp.ones((6, 2))}, tx, data, **args)
    assert "still waits" in fitted.history[-1].status
    again = fit(loss, {"kernel": jnp.ones((6, 2))}, tx, data, **args)
    assert again.history == fitted.history
