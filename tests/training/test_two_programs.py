"""A program with the mask step and one without it, chosen on the host."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sparse_runs import KEY, QUICK, gradients, initial

import swapjax
from swapjax import constant, cubic, until_mask_step
from swapjax.training import (
    fit,
    gmp,
    granet,
    masks_of,
    rigl,
    set_,
    sparse,
    static,
    ste,
    two_programs,
)

SAFE = optax.apply_if_finite(optax.rmsprop(0.01, initial_scale=1.0), 99)
RULES = [(gmp(), cubic), (granet(), cubic), (rigl(), constant), (set_(), constant),
         (rigl(skip_update=True), constant), (ste(), cubic)]  # fmt: skip


def stepper(tx):
    @functools.partial(jax.jit, static_argnames="mask_step", compiler_options=QUICK)
    def step(params, state, given, mask_step):
        updates, state = tx.update(given, state, params, mask_step=mask_step)
        return optax.apply_updates(params, updates), state

    return step


def run(step, params, state, given, chosen):
    """States after each update; chosen on the host, or all in one program."""
    trail = []
    for one in given:
        due = until_mask_step(state) == 0 if chosen else None
        params, state = step(params, state, one, due)
        trail.append((params, state))
    return trail


def equal(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("rule", "schedule"), RULES, ids=lambda x: str(x)[:20])
def test_two_programs_are_one_bit_for_bit(rule, schedule):
    tx = sparse(SAFE, rule, sparsity=0.5, schedule=schedule(1, 7, every=3), key=KEY)
    given = gradients(8)
    given[3] = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), given[3])  # a skip
    step, params = stepper(tx), initial()
    state = tx.init(params)
    one = run(step, params, state, given, chosen=False)
    two = run(step, params, state, given, chosen=True)
    equal(one, two)
    # And so does a run that goes on from a state in hand.
    equal(one[5:], run(step, *jax.device_get(two[4]), given[5:], chosen=True))


def test_updates_until_a_mask_step_are_counted():
    tx = sparse(SAFE, gmp(), sparsity=0.5, schedule=cubic(2, 6, every=2))
    step, params, found = stepper(tx), initial(), []
    state = tx.init(params)
    given = gradients(8)
    given[3] = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), given[3])
    for one in given:
        found.append(until_mask_step(state))
        params, state = step(params, state, one, found[-1] == 0)
    # Updates 2, 4, which is skipped and made up for at 5, and 6.
    assert found == [1, 0, 1, 0, 0, 0, math.inf, math.inf]
    still = sparse(SAFE, swapjax.static(), sparsity=0.5, key=KEY).init(params)
    assert until_mask_step(still) == math.inf
    members = jax.vmap(tx.init)(jax.tree.map(lambda x: jnp.stack([x, x]), params))
    members = members._replace(count=jnp.asarray([0, 2]))
    assert until_mask_step(members) == 1
    assert until_mask_step(members._replace(count=jnp.asarray([0, 3]))) == 0


def test_a_mask_step_that_is_left_out_waits_and_one_too_many_changes_nothing():
    tx = sparse(SAFE, gmp(), sparsity=0.5, schedule=constant(2, 6, every=2))
    step, params, given = stepper(tx), initial(), gradients(4)
    state = tx.init(params)
    params, first = step(params, state, given[0], True)
    equal(masks_of(first), masks_of(state))
    params, second = step(params, first, given[1], False)
    equal(masks_of(second), masks_of(state))
    assert second.extras["waits"]
    assert until_mask_step(second) == 0
    for due in (True, None):
        _, third = step(params, second, given[2], due)
        assert not third.extras["waits"]
        assert swapjax.density(masks_of(third)) < 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.partition({"a": tx}, lambda p: jax.tree.map(lambda _: "a", p)),
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.inject_hyperparams(
            lambda scale: optax.chain(optax.scale(scale), tx)
        )(1.0),
    ],
    ids=["chain", "finite", "masked", "partition", "gathered", "injected"],
)
def test_wrappers_pass_the_choice_on(wrap):
    params = {"kernel": jax.random.normal(KEY, (6, 4))}
    tx = wrap(
        sparse(optax.sgd(0.1), gmp(), sparsity=0.5, schedule=cubic(1, 5, every=1))
    )
    state = tx.init(params)
    for due in (False, True):
        _, after = tx.update(params, state, params, mask_step=due)
        assert until_mask_step(after) == 0
        assert bool(find(after)["waits"]) != due


def find(state):
    (found,) = swapjax.training.state.find_states(state)
    return found.extras


def test_the_choice_is_made_when_programs_are_compiled():
    params = initial()
    tx = sparse(SAFE, gmp(), sparsity=0.5, schedule=cubic(2, 6, every=2))
    state = tx.init(params)
    step = jax.jit(lambda due: tx.update(params, state, params, mask_step=due))
    with pytest.raises(ValueError, match="mask_step must be True, False or None when"):
        step(True)


def test_what_has_a_derivative_keeps_it():
    tx = sparse(optax.adam(0.1), rigl(), sparsity=0.5, key=KEY,
                schedule=constant(0, 20, every=2))  # fmt: skip
    params = {"kernel": jax.random.normal(KEY, (6, 4))}
    state = tx.init(params)

    @functools.partial(jax.jit, static_argnums=1)
    def end(scale, chosen):
        now, after = params, state
        for t in range(3):
            due = t == 1 if chosen else None
            slopes = {"kernel": jnp.sin(scale * now["kernel"] + t)}
            moves, after = tx.update(slopes, after, now, mask_step=due)
            now = optax.apply_updates(now, moves)
        return jnp.sum(now["kernel"] ** 2)

    one, two = (jax.grad(end)(1.3, chosen) for chosen in (False, True))
    assert float(one) != 0
    np.testing.assert_allclose(one, two, rtol=1e-5)


class TestFit:
    """`fit` chooses between the programs by itself."""

    @pytest.mark.parametrize(
        ("rule", "schedule"),
        [
            (static(), None),
            (gmp(), cubic(0, 40, every=10)),
            (rigl(), constant(0, 40, every=10)),
        ],
        ids=lambda x: str(x)[:20],
    )
    def test_the_same_bits_as_in_one_program(self, rule, schedule, monkeypatch):
        x = jax.random.normal(jax.random.key(0), (92, 6))
        params = {"kernel": jax.random.normal(jax.random.key(1), (6, 4))}
        tx = optax.chain(
            optax.clip(1.0),
            sparse(optax.adam(0.01), rule, sparsity=0.5, schedule=schedule, key=KEY),
        )

        def run():
            return fit(
                lambda p, x: jnp.mean((x @ p["kernel"] - x[:, :4]) ** 2),
                params, tx, x, epochs=3, batch=4, key=jax.random.key(3),
            )  # fmt: skip

        asked = []
        count = two_programs.until_mask_step
        monkeypatch.setattr(
            two_programs, "until_mask_step", lambda s: asked.append(1) or count(s)
        )
        two = run()
        assert asked
        monkeypatch.setattr(two_programs, "mask_steps_every", lambda state: 0)
        one = run()
        for a, b in zip(
            jax.tree.leaves(two[:2]), jax.tree.leaves(one[:2]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        assert [e.loss for e in two.history] == [e.loss for e in one.history]

    def test_an_optimizer_that_refuses_the_argument_has_one(self):
        inner = sparse(
            optax.sgd(0.1), gmp(), sparsity=0.5, schedule=cubic(0, 20, every=10)
        )
        tx = optax.GradientTransformation(
            inner.init,
            lambda updates, state, params=None: inner.update(updates, state, params),
        )
        x = jax.random.normal(jax.random.key(0), (40, 6))
        fitted = fit(
            lambda p, x: jnp.mean((x @ p["kernel"]) ** 2),
            {"kernel": jnp.ones((6, 4))}, tx, x, epochs=3, batch=4, key=KEY,
        )  # fmt: skip
        assert fitted.history[-1].sparsity == 0.5
