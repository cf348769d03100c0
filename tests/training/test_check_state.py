"""Mistakes that are told after a run, and what a run leaves to its caller."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import kernels, loss_fn
from sparse_runs import QUICK, brief, by_gradients, follow, gradients, initial

import swapjax
from swapjax import constant, cubic
from swapjax.training import (
    check_state,
    gmp,
    granet,
    masks_of,
    rigl,
    sparse,
    static,
    ste,
)


class TestMistakes:
    """What cannot be raised under jit, and is told afterwards."""

    @pytest.mark.parametrize("rule", [granet(), rigl()], ids=str)
    def test_a_loss_that_multiplies_by_masks(self, rule):
        tx = brief(rule)
        x, y = jnp.ones((4, 6)), jnp.ones((4, 2))

        def step(params, state, masked):
            def loss(params):
                used = jax.tree.map(lambda m: m | ~masked, masks_of(state))
                return loss_fn(jax.tree.map(jnp.multiply, params, used), (x, y))

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step, compiler_options=QUICK)
        params = initial()
        for masked in (False, True):
            _, state = follow(step, params, tx.init(params), [jnp.asarray(masked)] * 4)[
                -1
            ]
            if masked:
                with pytest.raises(ValueError, match="do not multiply by masks in th"):
                    check_state(state)
            else:
                check_state(state)

    def test_params_that_something_else_moves(self):
        tx = brief(gmp())
        step = by_gradients(tx, compiler_options=QUICK)
        params = initial()
        state = tx.init(params)
        for gradient in gradients(4):
            params, state = step(params, state, gradient)
            params["fc2"]["kernel"] = params["fc2"]["kernel"] + 0.01
        with pytest.raises(ValueError, match="fc2/kernel: Params were not zero") as e:
            check_state(state)
        assert "fc1/kernel" not in str(e.value)

    @pytest.mark.parametrize("rule", [gmp(), granet(), ste()], ids=str)
    def test_gradients_that_are_not_finite(self, rule):
        tx = brief(rule)
        step = by_gradients(tx, compiler_options=QUICK)
        params, given = initial(), gradients(4)
        # Of a weight that stays active: what is not seen does no harm.
        largest = jnp.abs(params["fc1"]["kernel"]) == jnp.max(
            jnp.abs(params["fc1"]["kernel"])
        )
        slope = given[1]["fc1"]["kernel"]
        given[1]["fc1"]["kernel"] = jnp.where(largest, jnp.nan, slope)
        trail = follow(step, params, tx.init(params), given)
        check_state(trail[1][1])
        for _, state in trail[2:]:
            with pytest.raises(ValueError, match="state: fc1/kernel: ") as e:
                check_state(state)
            assert "fc2/kernel" not in str(e.value)
        assert sum(int(m.sum()) for m in kernels(masks_of(trail[-1][1]))) == 36

    def test_dense_params_at_first_are_none(self):
        """init masks nothing: params are dense until the first update."""
        tx = brief(rigl())
        step = by_gradients(tx, compiler_options=QUICK)
        params = initial()
        trail = follow(step, params, tx.init(params), gradients(4))
        check_state(trail[-1][1])
        masks = masks_of(trail[0][1])
        sparse_from_the_start = swapjax.apply_masks(params, masks)
        other = follow(step, sparse_from_the_start, tx.init(params), gradients(4))
        check_state(other[-1][1])
        np.testing.assert_array_equal(
            kernels(trail[1][0])[0] != 0, kernels(other[1][0])[0] != 0
        )

    def test_the_first_update_may_be_a_mask_step_of_dense_params(self):
        tx = brief(rigl(), schedule=constant(1, 3, every=1))
        step = by_gradients(tx, compiler_options=QUICK)
        params = initial()
        check_state(follow(step, params, tx.init(params), gradients(4))[-1][1])


class TestOwners:
    """A loop that gives its arrays away takes nothing of others with them."""

    @pytest.mark.parametrize("rule", [static(), gmp(), rigl(), ste()], ids=str)
    def test_donated_states_leave_key_within_and_masks_alone(self, rule):
        kernel = jax.random.normal(jax.random.key(0), (10, 10))
        params = {"kernel": kernel, "bias": jnp.zeros(10), "scale": jnp.ones(10)}
        key = jax.random.key(1)
        few = jnp.arange(100).reshape(10, 10) < 80
        within = {"kernel": few, "bias": jnp.array(True), "scale": jnp.array(True)}
        tx = sparse(
            optax.adam(0.1), rule, sparsity=0.5, schedule=cubic(0, 4, every=2),
            within=within, key=key,
        )  # fmt: skip

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state):
            slopes = jax.tree.map(jnp.cos, params)
            updates, state = tx.update(slopes, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(2):
            now = jax.tree.map(jnp.array, params)
            state = tx.init(now)
            for _ in range(3):
                now, state = step(now, state)
        assert jax.random.normal(key, ()).shape == ()
        assert int(jnp.sum(within["kernel"])) == 80

    def test_masks_from_before_training_stay_their_owners(self):
        params = {"kernel": jnp.ones((4, 4))}
        masks = {"kernel": jnp.eye(4, dtype=bool)}
        tx = sparse(optax.sgd(0.1), static(masks), sparsity=0.75, key=jax.random.key(0))
        state = tx.init(params)
        jax.jit(tx.update, donate_argnums=1)(params, state, params)
        assert int(jnp.sum(masks["kernel"])) == 4


def test_dead_inputs_are_not_taken_for_hidden_gradients():
    params = {"kernel": jax.random.normal(jax.random.key(0), (12, 8))}
    x = jax.random.normal(jax.random.key(1), (32, 12)) * (jnp.arange(12) < 6)
    loss = lambda p: jnp.mean((x @ p["kernel"] - 1) ** 2)  # noqa: E731
    tx = sparse(optax.adam(0.05), rigl(), sparsity=0.2,
                schedule=constant(0, 200, every=5), key=jax.random.key(2))  # fmt: skip

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), None, 200)
    swapjax.check_state(state, params)
    with pytest.raises(ValueError, match="kernel: Params were not zero"):
        swapjax.check_state(state, jax.tree.map(jnp.ones_like, params))


def test_nothing_grows_at_the_last_update():
    params = {"kernel": jax.random.normal(jax.random.key(0), (10, 10))}
    rule = granet(fraction=0.5, last=0.5)
    tx = sparse(optax.sgd(0.0), rule, sparsity=0.5, schedule=cubic(0, 4, every=2),
                steps=8, key=jax.random.key(1))  # fmt: skip
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for i in range(8):
        slopes = {"kernel": jax.random.normal(jax.random.key(i), (10, 10))}
        updates, state = update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        found.append(state.masks["kernel"])
    assert np.any(found[5] != found[3])
    np.testing.assert_array_equal(found[7], found[5])
