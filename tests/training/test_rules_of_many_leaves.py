"""Rules that see many leaves as one vector choose what they do leaf by leaf."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax.sparsity import stacking
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


def test_a_rule_that_needs_shapes_sees_them():
    seen = []

    def choose(step):
        seen.append([w.shape for w in step.weights])
        return step.masks

    for needs, shapes in ((True, _SHAPES), (False, [(sum(map(np.prod, _SHAPES)),)])):
        rule = swapjax.training.Rule("own", choose, needs_shapes=needs)
        tx = swapjax.sparse(
            optax.sgd(0.1), rule, sparsity=0.0, schedule=swapjax.constant(0, 4, every=2)
        )
        _train(tx, _params(), steps=2)
        assert seen.pop() == shapes
        seen.clear()


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

    assert size(48) - size(16) < 32 * 200
