"""Rules that see many leaves as one vector choose what they do leaf by leaf."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax.sparsity import stacking
from swapjax.training.rule import by_entry
from swapjax.training.rules import RULES

_SHAPES = [(4, 6), (6, 6), (6, 6), (2, 6, 6), (6, 5), (5, 7), (7, 6), (6, 6), (6, 3)]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Tests have several: there leaves stay as they are."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def _loss(params, batch):
    x = batch
    for layer in params.values():
        kernel = layer["kernel"]
        if kernel.ndim == 2:
            x = jnp.tanh(x @ kernel)
        else:
            x = jax.lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernel)[0]
    return jnp.mean(jnp.square(x - 0.3))


def _params(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(_SHAPES))
    return {
        f"a{i}": {"kernel": jax.random.normal(key, shape) / 2}
        for i, (key, shape) in enumerate(zip(keys, _SHAPES, strict=True))
    }


def _tx(name, within):
    entry, batch = RULES[name], jnp.zeros((2, 4))
    plan = swapjax.plan(
        _params(), 0.7, loss_fn=_loss, batch=batch,
        allocation=entry.allocation, overrides={"a1": 0.2},
    )  # fmt: skip
    own = {"within": within} if within is not None else {}
    return swapjax.sparse(
        optax.adam(0.05), entry.factory(), plan=plan, key=jax.random.key(7),
        steps=12, schedule=entry.schedule(8, 3), **own,
    )  # fmt: skip


def _train(tx, params, steps=10, spoil=None):
    """Take some steps; return params and masks after each, and all that was met."""
    data = jax.random.normal(jax.random.key(1), (16, 4))

    @jax.jit
    def step(params, state, t):
        slopes = jax.grad(_loss)(params, data)
        if spoil is not None:
            wrong = slopes["a2"]["kernel"].at[0, :4].set(jnp.nan)
            slopes["a2"]["kernel"] = jnp.where(
                t == spoil, wrong, slopes["a2"]["kernel"]
            )
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for t in range(steps):
        params, state = step(params, state, t)
        seen.append((state.masks, params, state.extras["status"]))
    return seen


def _equal(found, wanted):
    for (masks, params, status), (m, p, s) in zip(found, wanted, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (masks, m)), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (params, p)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(status, s)


@pytest.mark.parametrize(
    ("name", "bounded"),
    [
        *((name, False) for name in ("gmp", "rigl", "granet-st", "ste", "acdc")),
        ("granet", True),
        ("rigl", True),
    ],
)
def test_one_vector_keeps_what_the_leaves_do(name, bounded, monkeypatch):
    within = None
    if bounded:
        draw = np.random.default_rng(0)
        within = jax.tree.map(
            lambda x: jnp.asarray(draw.random(x.shape) < 0.9), _params()
        )
    found = _train(_tx(name, within), _params())
    monkeypatch.setattr(stacking, "_MANY", 99)
    _equal(found, _train(_tx(name, within), _params()))
    changes = [m["a3"]["kernel"] for m, *_ in found]
    assert any(not np.array_equal(a, b) for a, b in itertools.pairwise(changes))


@pytest.mark.parametrize("name", ["granet", "gmp"])
def test_what_was_met_is_told_of_the_same_leaf(name, monkeypatch):
    found = _train(_tx(name, None), _params(), spoil=2)
    status = np.asarray(found[-1][2])
    assert status[2] == swapjax.Status.NOT_FINITE
    monkeypatch.setattr(stacking, "_MANY", 99)
    wanted = _train(_tx(name, None), _params(), spoil=2)
    np.testing.assert_array_equal(status, wanted[-1][2])


def test_only_a_marked_choice_sees_a_vector():
    seen = []

    def choose(step):
        seen.append([w.shape for w in step.weights])
        return step.masks

    def look(choose):
        # One of a rule that looks at entries, put in its place, is not marked.
        rule = dataclasses.replace(swapjax.gmp(), choose=choose)
        tx = swapjax.sparse(
            optax.sgd(0.1), rule, sparsity=0.0, schedule=swapjax.constant(0, 4, every=2)
        )
        _train(tx, _params(), steps=2)
        return seen.pop()

    assert look(choose) == _SHAPES
    assert look(by_entry(choose)) == [(sum(map(math.prod, _SHAPES)),)]


def test_blind_growth_is_told_of_a_vector():
    params = _params()
    tx = _tx("granet", None)

    @jax.jit
    def step(state, params):
        # Hidden where masks are False, as by a loss of masked weights.
        slopes = jax.tree.map(
            lambda p, m: jnp.where(m, p, 0) if m.ndim else p, params, state.masks
        )
        updates, state = tx.update(slopes, state, params)
        return state, optax.apply_updates(params, updates)

    state = tx.init(params)
    for _ in range(10):
        state, params = step(state, params)
    assert set(np.asarray(state.extras["status"]).tolist()) == {
        int(swapjax.Status.BLIND_GROWTH)
    }


def test_dead_units_are_not_blind_growth():
    params, tx = _params(), _tx("granet", None)

    @jax.jit
    def step(state, params):
        # Columns without a gradient, as those of dead units; nothing is hidden else.
        slopes = jax.tree.map(
            lambda m: jnp.ones(m.shape) * jnp.any(m, axis=-2, keepdims=True),
            state.masks,
        )
        updates, state = tx.update(slopes, state, params)
        return state, optax.apply_updates(params, updates)

    state = tx.init(params)
    state = state._replace(
        masks=jax.tree.map(lambda m: m & (jnp.arange(m.shape[-1]) < 2), state.masks)
    )
    params = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, state.masks)
    for _ in range(3):
        state, params = step(state, params)
    assert not np.asarray(state.extras["status"]).any()


@pytest.mark.parametrize("case", ["pattern", "dtypes", "members", "no key"])
def test_other_settings_give_what_leaves_give(case, monkeypatch):
    def run():
        params, how = _params(), {"sparsity": 0.6}
        key = None if case == "no key" else jax.random.key(7)
        if case == "dtypes":
            params["a4"]["kernel"] = params["a4"]["kernel"].astype(jnp.bfloat16)
        if case == "pattern":
            entries = jnp.arange(32.0).reshape(8, 4)
            params = {f"a{i}": {"kernel": jnp.sin(entries * (i + 1))} for i in range(9)}
            how = {"pattern": swapjax.NM(2, 4)}
        plan = swapjax.plan(params, **how)
        tx = swapjax.sparse(
            optax.adam(0.05), swapjax.granet(), plan=plan, key=key, steps=12,
            schedule=swapjax.cubic(0, 8, every=3),
        )  # fmt: skip

        def train(params):
            state, seen = tx.init(params), []
            for t in range(6):
                slopes = jax.tree.map(lambda p, t=t: jnp.sin(7 * p + t), params)
                updates, state = tx.update(slopes, state, params)
                params = optax.apply_updates(params, updates)
                seen.append((state.masks, params, state.extras["status"]))
            return seen

        if case != "members":
            return jax.jit(lambda p: train(p))(params)
        both = jax.tree.map(lambda x: jnp.stack([x, -2 * x[::-1]]), params)
        return jax.jit(jax.vmap(lambda p: train(p)))(both)

    found = run()
    monkeypatch.setattr(stacking, "_MANY", 99)
    _equal(found, run())


def test_more_leaves_make_little_more_of_a_mask_step():
    def size(count):
        params = {f"a{i}": {"kernel": jnp.ones((6, 6))} for i in range(count)}
        tx = swapjax.sparse(
            optax.sgd(0.1), swapjax.granet(), sparsity=0.5, steps=9,
            schedule=swapjax.cubic(0, 4, every=2),
        )  # fmt: skip
        program = jax.jit(lambda g, s, p: tx.update(g, s, p))
        text = program.lower(params, tx.init(params), params).compile().as_text()
        return text.count(" = ")

    assert size(48) - size(16) < 32 * 100
