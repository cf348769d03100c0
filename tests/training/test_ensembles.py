"""Sparse training under vmap, inside of jit, on several devices, and without jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sparse_runs import QUICK

import swapjax
from swapjax import constant, cubic
from swapjax.core.members import any_member, own_seed
from swapjax.training import check_state, granet, masks_of, rigl, set_, sparse, static

KEY = jax.random.key(3)
MEMBERS = {
    "kernel": jax.random.normal(jax.random.key(0), (3, 8, 6)),
    "bias": jnp.zeros((3, 6)),
}
ONE = jax.tree.map(lambda x: x[0], MEMBERS)


def make(rule, key=KEY, rate=0.1):
    schedule = constant(0, 4, every=2)
    return sparse(optax.adam(rate), rule, sparsity=0.5, schedule=schedule, key=key)


def train(tx, params, steps=5):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, steps)[0]


quick = functools.partial(jax.jit, compiler_options=QUICK)


def test_members_are_as_alone_with_keys_of_their_own():
    rule = set_()
    tx = make(rule)
    params, state = quick(jax.vmap(functools.partial(train, tx)))(MEMBERS)
    masks = masks_of(state)
    assert swapjax.density(masks) == 0.5
    assert masks["bias"].shape == ()
    check_state(state, params)
    one_by_one = quick(lambda key, params: train(make(rule, key), params))
    for i in range(3):
        one = one_by_one(
            jax.random.fold_in(KEY, i), jax.tree.map(lambda x, i=i: x[i], MEMBERS)
        )
        np.testing.assert_array_equal(masks_of(one[1])["kernel"], masks["kernel"][i])
    assert np.any(masks["kernel"][0] != masks["kernel"][1])


def test_members_of_members_all_draw_their_own():
    params = {"kernel": jax.random.normal(KEY, (2, 3, 8, 6))}
    masks = masks_of(quick(jax.vmap(jax.vmap(make(static()).init)))(params))["kernel"]
    assert len(np.unique(np.asarray(masks).reshape(6, -1), axis=0)) == 6
    shared = quick(jax.vmap(lambda _: make(static()).init(ONE).masks))(jnp.arange(2))
    np.testing.assert_array_equal(shared["kernel"][0], shared["kernel"][1])


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_a_key_may_be_traced_or_a_constant_of_a_compiled_function(kind):
    keys = jax.random.split(jax.random.key(0, impl=kind), 2)

    def masks(key):
        return train(make(set_(), key), ONE, 3)[1].masks["kernel"]

    many = quick(jax.vmap(masks))(keys)
    assert many.sum((1, 2)).tolist() == [24, 24]
    assert np.any(many[0] != many[1])
    found = quick(masks)(keys[1])
    if kind == "threefry2x32":  # others draw otherwise under vmap
        np.testing.assert_array_equal(found, many[1])
    np.testing.assert_array_equal(quick(lambda: masks(keys[1]))(), found)


def test_a_factory_of_injected_hyperparameters():
    injected = optax.inject_hyperparams(lambda rate: make(rigl(), KEY, rate))(0.1)
    state = quick(lambda params: train(injected, params, 3)[1])(ONE)
    assert swapjax.density(masks_of(state)) == 0.5


def test_an_old_key_and_what_is_none():
    old, kernel = jax.random.PRNGKey(3), "kernel"
    found = masks_of(jax.jit(make(static(), old).init)(ONE))[kernel]
    np.testing.assert_array_equal(found, masks_of(make(static()).init(ONE))[kernel])
    with pytest.raises(ValueError, match="key must be a JAX PRNG key, got"):
        jax.jit(lambda key: make(set_(), key).init(ONE).masks)(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"one PRNG key, got \(2,\)"):
        make(set_(), jax.random.split(KEY))


def primitives(jaxpr):
    return [eqn.primitive.name for eqn in jaxpr.eqns]


def test_the_branch_of_mask_steps_stays_one_under_vmap():
    tx = make(granet())
    state = jax.vmap(tx.init)(MEMBERS)
    program = jax.make_jaxpr(jax.vmap(tx.update))(MEMBERS, state, MEMBERS)
    found = primitives(program.jaxpr)
    assert found.count("while") == 1
    assert "cond" not in found


def test_members_that_differ_in_their_counts_change_masks_each_in_time():
    tx = make(set_(anneal=False))
    state = quick(jax.vmap(tx.init))(MEMBERS)
    state = state._replace(count=jnp.asarray([3, 2, 3]))
    _, after = quick(jax.vmap(tx.update))(MEMBERS, state, MEMBERS)
    moved = np.any(np.asarray(after.masks["kernel"] != state.masks["kernel"]), (1, 2))
    assert moved.tolist() == [True, False, True]


def test_a_flag_of_members_and_their_derivatives():
    def branch(weight, t):
        return jax.lax.cond(any_member(t > 1), lambda: weight**2, lambda: weight)

    weights, times = jnp.ones(3), jnp.arange(3)
    assert jax.vmap(branch)(weights, times).tolist() == [1, 1, 1]
    assert jax.vmap(jax.grad(branch))(weights, times).tolist() == [2, 2, 2]
    assert jax.grad(branch)(1.0, 0) == 1
    seed = jax.random.key_data(KEY)
    np.testing.assert_array_equal(own_seed("threefry2x32", seed, ONE), seed)


def test_different_networks_on_the_devices_of_a_mesh():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")

    def whole(params):
        params, state = train(make(granet()), jax.tree.map(lambda x: x[0], params))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], (params, state.masks))

    spread = quick(jax.shard_map(whole, mesh=mesh, in_specs=spec, out_specs=spec))
    _, masks = spread(jax.tree.map(lambda x: x[:1], MEMBERS))
    found = quick(lambda params: train(make(granet()), params))(ONE)[1].masks["kernel"]
    np.testing.assert_array_equal(masks["kernel"][0], found)


def test_a_loop_without_jit_compiles_nothing_after_the_second_step():
    tx = make(rigl())
    params, state, compiled = ONE, tx.init(ONE), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    )
    for _ in range(6):
        compiled.append("a step")
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
    assert len(compiled) > 6
    assert compiled[-4:] == ["a step"] * 4


def test_line_searches_keep_zeros_and_descend():
    x = jax.random.normal(jax.random.key(1), (32, 8))
    target = x @ MEMBERS["kernel"][1]
    loss = lambda p: jnp.mean((x @ p["kernel"] + p["bias"] - target) ** 2)  # noqa: E731
    tx = sparse(optax.lbfgs(), rigl(), sparsity=0.5,
                schedule=constant(0, 6, every=3), key=KEY)  # fmt: skip
    start = swapjax.apply_masks(ONE, masks_of(tx.init(ONE)))
    take = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, slopes = take(params, state=state)
        more = {"value": value, "grad": slopes, "value_fn": loss}
        updates, state = tx.update(slopes, state, params, **more)
        return (optax.apply_updates(params, updates), state), value

    run = quick(lambda: jax.lax.scan(step, (start, tx.init(ONE)), None, 20))
    (params, state), values = run()
    check_state(state, params)
    # The best that this support allows.
    masks, best = masks_of(state)["kernel"], 0.0
    for j in range(6):
        a = np.c_[np.asarray(x)[:, np.asarray(masks)[:, j]], np.ones(32)]
        found = np.linalg.lstsq(a, np.asarray(target)[:, j], rcond=None)[0]
        best += np.mean((a @ found - np.asarray(target)[:, j]) ** 2) / 6
    assert values[-1] == pytest.approx(best, rel=1e-3)
    other = sparse(optax.lbfgs(), swapjax.ste(), sparsity=0.5, schedule=cubic(1, 3))
    more = {"value": 1.0, "grad": ONE, "value_fn": loss}
    with pytest.raises(ValueError, match="value_fn: a line search would measure dense"):
        other.update(ONE, other.init(ONE), ONE, **more)
