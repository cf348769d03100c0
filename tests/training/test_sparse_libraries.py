"""Sparse training with the params of other libraries, and inside of Optax."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from network import kernels, loss_fn
from sparse_runs import KEY, QUICK, batches, initial
from trees import equal

import swapjax
from swapjax import cubic
from swapjax.training import check_state, gmp, granet, masks_of, rigl, sparse, ste

SMALL = {"sparsity": 0.5, "schedule": cubic(1, 2), "steps": 3, "key": KEY}


def check_trained(tx, params, loss, steps=3):
    """Train, and look at what came of it."""
    state = tx.init(params)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1
    check_state(state)
    masks = masks_of(state)
    assert swapjax.density(masks) == 0.5
    return params, state, masks


class TestModels:
    """Params of three libraries."""

    def test_flax_linen(self):
        from flax import linen as nn

        model = nn.Sequential([nn.Dense(9), nn.tanh, nn.Dense(2)])
        x, y = batches()[0]
        params = model.init(KEY, x)
        loss = lambda p: jnp.mean(jnp.square(model.apply(p, x) - y))  # noqa: E731
        tx = sparse(optax.adam(0.01), gmp(), **SMALL)
        params, _, masks = check_trained(tx, params, loss)
        assert equal(params, swapjax.apply_masks(params, masks))

    def test_equinox(self):
        import equinox as eqx

        x, y = batches()[0]
        model = eqx.nn.MLP(6, 2, 9, 1, key=KEY)
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)

        def loss(arrays):
            return jnp.mean(jnp.square(jax.vmap(eqx.combine(arrays, rest))(x) - y))

        tx = sparse(optax.adam(0.01), rigl(), **SMALL)
        arrays, _, masks = check_trained(tx, arrays, loss)
        assert equal(arrays, swapjax.apply_masks(arrays, masks))

    @pytest.mark.parametrize("given", ["sparsity", "plan and within"])
    @pytest.mark.parametrize("rule", [gmp(), ste()], ids=str)
    def test_flax_nnx(self, given, rule):
        """Its optimizer gives init other nodes than update, and keeps variables."""
        from flax import nnx

        x, y = batches()[0]
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(
            nnx.Linear(6, 9, rngs=rngs), jnp.tanh, nnx.Linear(9, 2, rngs=rngs)
        )
        params = nnx.state(model, nnx.Param)
        options = dict(SMALL)
        if given != "sparsity":
            options["plan"] = swapjax.plan(params, options.pop("sparsity"))
            options["within"] = jax.tree.map(lambda p: p > -1, nnx.as_pure(params))
        tx = sparse(optax.adam(0.01), rule, **options)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss = lambda model: jnp.mean(jnp.square(model(x) - y))  # noqa: E731
            optimizer.update(model, nnx.grad(loss)(model))

        for _ in range(3):
            step(model, optimizer)
        check_state(optimizer.opt_state)
        masks = nnx.as_pure(masks_of(optimizer.opt_state))
        assert all(isinstance(m, jax.Array) for m in jax.tree.leaves(masks))
        assert swapjax.density(masks) == 0.5
        params = nnx.as_pure(nnx.state(model, nnx.Param))
        assert equal(params, swapjax.apply_masks(params, masks))


KERNELS = {"fc1": {"kernel": True, "bias": False}, "fc2": {"kernel": True}}

LABELS = {"fc1": {"kernel": "x", "bias": "y"}, "fc2": {"kernel": "x"}}

OURS = sparse(optax.adam(0.01), granet(), **SMALL)

AROUND = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), OURS),
    "MultiSteps": optax.MultiSteps(OURS, 2).gradient_transformation(),
    "masked": optax.masked(OURS, KERNELS),
    "multi_transform": optax.multi_transform({"x": OURS, "y": optax.sgd(0.1)}, LABELS),
    "apply_if_finite": optax.apply_if_finite(OURS, 3),
}

INSIDE = {
    "MultiSteps": optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
    "masked": optax.masked(optax.adam(0.01), KERNELS),
    "multi_transform": optax.multi_transform(
        {"x": optax.adam(0.01), "y": optax.sgd(0.1)}, LABELS
    ),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(0.01),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.01), 3),
}


class TestOptax:
    """What Optax puts around an optimizer, around ours and inside of it."""

    @pytest.mark.parametrize("name", AROUND)
    def test_inside_of(self, name):
        loss = lambda params: loss_fn(params, batches()[0])  # noqa: E731
        steps = 6 if name == "MultiSteps" else 3
        params, _, masks = check_trained(AROUND[name], initial(), loss, steps)
        for p, m in zip(kernels(params), kernels(masks), strict=True):
            assert not p[~m].any()

    @pytest.mark.parametrize("name", INSIDE)
    def test_around(self, name):
        loss = lambda params: loss_fn(params, batches()[0])  # noqa: E731
        tx = sparse(INSIDE[name], granet(), **SMALL)
        params, _, masks = check_trained(tx, initial(), loss)
        assert equal(params, swapjax.apply_masks(params, masks))

    @pytest.mark.parametrize("rule", [gmp(), ste()], ids=str)
    def test_functions_are_mapped_over_what_belongs_to_params(self, rule):
        params = initial()
        within = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
        tx = sparse(optax.adam(0.01), rule, within=within, **SMALL)
        state = tx.init(params)
        names = jax.tree.map(lambda path: path, LABELS)
        found = optax.tree.map_params(
            tx, lambda _, name: name, state, names, transform_non_params=lambda _: "-"
        )
        assert found.count == found.key == found.extras["status"] == "-"
        assert found.masks == found.extras["within"] == LABELS
        assert found.inner[0].mu == found.inner[0].nu == LABELS
        assert ("dense" in found.extras) == rule.straight_through
        assert found.extras.get("dense", LABELS) == LABELS
        assert equal(optax.tree.map_params(tx, lambda x: x, state), state)
