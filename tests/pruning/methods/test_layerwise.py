"""What all methods keep to that prune layer by layer."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import (
    METHODS,
    ONE,
    problem_of,
    setting,
    single,
)
from problems import check_contract, solve
from trees import flat

import swapjax
from swapjax import Status, alps, layerwise_obs, plan, wanda
from swapjax.pruning.solvers import layerwise
from swapjax.sparsity.patterns import NM


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in METHODS if name != "alps"]
    + [(name, "bfloat16") for name in ("greedy", "columns")],
)
def test_keeps_the_contract(name, dtype):
    problem, target = setting(jnp.dtype(dtype))
    solution = solve(METHODS[name], problem, target.budget)
    check_contract(solution, target, dtype)
    assert Status(int(solution.status)) is Status.CONVERGED


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "wanda by output"])
def test_jit_changes_nothing(name):
    moment, _, weights = single(seed=3)
    problem = problem_of(moment, weights)
    budget = plan({"kernel": weights}, 0.5).budget
    jitted = solve(METHODS[name], problem, budget)
    eager = METHODS[name](problem, budget)
    for a, b in zip(jitted.masks, eager.masks, strict=True):
        assert (a == b).all()
    np.testing.assert_allclose(flat(jitted.weights), flat(eager.weights), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "wanda"])
def test_within_limits_the_support(name):
    problem, target = setting(**ONE)
    allowed = tuple(
        jnp.arange(w.size).reshape(w.shape) % 3 < 2 for w in problem.weights
    )
    problem = dataclasses.replace(problem, within=allowed)
    solution = solve(METHODS[name], problem, target.budget)
    assert flat(solution.masks).sum() == target.kept
    for mask, inside in zip(solution.masks, allowed, strict=True):
        assert not np.any(mask & ~inside)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "wanda"])
def test_zeros_stay_zero(name):
    problem, target = setting(sparsity=0.6, **ONE)
    first = solve(METHODS[name], problem, target.at(0.4).budget)
    again = dataclasses.replace(problem, weights=first.weights)
    second = solve(METHODS[name], again, target.budget)
    assert flat(second.masks).sum() == target.kept
    for mask, before in zip(second.masks, first.masks, strict=True):
        assert not np.any(mask & ~before)


@pytest.mark.parametrize(
    ("name", "axis"),
    [*itertools.product(["greedy", "columns", "wanda"], [-2, -1]), ("alps", -1)],
)
def test_patterns_are_kept_exactly(name, axis):
    pattern = NM(1, 2, axis=axis)
    problem, target = setting(jnp.float32, None, pattern=pattern, **ONE)
    solution = solve(METHODS[name], problem, target.budget)
    for mask, w in zip(solution.masks, solution.weights, strict=True):
        groups = target.patterns[0].split(mask)
        assert (groups.sum(-1) == 1).all()
        assert not np.any(np.asarray(w)[~np.asarray(mask)])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "alps"])
def test_patterns_within_masks(name):
    """A group with less room than the pattern leaves keeps less."""
    problem, target = setting(sparsity=None, pattern=NM(1, 2), **ONE)
    allowed = tuple(jnp.arange(w.shape[0])[:, None] % 4 > 1 for w in problem.weights)
    allowed = tuple(
        jnp.broadcast_to(a, w.shape)
        for a, w in zip(allowed, problem.weights, strict=True)
    )
    problem = dataclasses.replace(problem, within=allowed)
    solution = solve(METHODS[name], problem, target.budget)
    for mask, inside in zip(solution.masks, allowed, strict=True):
        pairs = np.asarray(inside).reshape(-1, 2, mask.shape[1]).any(1)
        kept = np.asarray(mask).reshape(-1, 2, mask.shape[1]).sum(1)
        assert (kept == pairs).all()
        assert not np.any(mask & ~inside)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "rule"),
    [("greedy", (None, NM(2, 4))), ("columns", (0.6, None)), ("wanda", (0.6, None))],
)
def test_a_convolution_is_a_product_with_patches(name, rule):
    keys = jax.random.split(jax.random.key(3), 2)
    kernel = jax.random.normal(keys[0], (3, 3, 4, 5))
    images = jax.random.normal(keys[1], (12, 6, 6, 4))

    def convolve(params, x):
        return jnp.mean(
            jax.lax.conv_general_dilated(
                x, params["kernel"], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        )  # fmt: skip

    def patches(x):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = [x[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
        return jnp.concatenate(windows, axis=-1)

    def product(params, x):
        return jnp.mean(x @ params["kernel"])

    sparsity, pattern = rule
    results = []
    for loss, w, x in (
        (convolve, kernel, images),
        (product, kernel.reshape(36, 5), patches(images)),
    ):
        pruned = swapjax.prune(
            loss, {"kernel": w}, x, method=METHODS[name], samples=12,
            plan=plan({"kernel": w}, sparsity, pattern=pattern), key=keys[0],
        )  # fmt: skip
        results.append(np.asarray(pruned.params["kernel"]).reshape(36, 5))
    np.testing.assert_allclose(*results, rtol=1e-7, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_layers_side_by_side_are_layers_of_their_own():
    x = jax.random.normal(jax.random.key(0), (30, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 4, 2))
    method = layerwise_obs()

    def prune(loss_fn, params, x, rule):
        return swapjax.prune(
            loss_fn, params, x, method=method, samples=30, key=jax.random.key(2),
            plan=rule,
        ).params  # fmt: skip

    def batched(p, x):
        return jnp.sum(jnp.einsum("bgi,gio->bgo", x, p["kernel"]))

    def apart(p, x):
        return sum(jnp.sum(x[:, g] @ p[str(g)]["kernel"]) for g in range(3))

    params = {str(g): {"kernel": kernel[g]} for g in range(3)}
    # No leaf may keep less than none of its entries here: groups compete freely.
    rule = functools.partial(plan, sparsity=0.5, min_keep=0)
    one = prune(batched, {"kernel": kernel}, x, rule({"kernel": kernel}))
    several = prune(apart, params, x, rule(params))
    stacked = jnp.stack([several[str(g)]["kernel"] for g in range(3)])
    np.testing.assert_allclose(one["kernel"], stacked, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", [layerwise_obs(), alps(), wanda()])
def test_a_problem_without_layers_is_an_error(method):
    problem, target = setting(jnp.float32)
    with pytest.raises(ValueError, match="needs layers"):
        method(dataclasses.replace(problem, layers=None), target.budget)


@pytest.mark.parametrize("name", ["greedy", "columns", "alps", "wanda"])
def test_a_leaf_without_entries_is_passed_over(name):
    params = {"a": jnp.ones((6, 4)), "none": jnp.ones((6, 0))}
    x = jax.random.normal(jax.random.key(1), (20, 6))

    def loss_fn(params, x):
        return jnp.mean((x @ params["a"]) ** 2) + jnp.sum(x @ params["none"])

    pruned = swapjax.prune(
        loss_fn, params, x, sparsity=0.5, samples=20, method=METHODS[name],
        key=jax.random.key(0),
    )  # fmt: skip
    assert pruned.history[0].kept == 12


def test_methods_of_the_same_settings_are_equal():
    assert layerwise_obs() == layerwise_obs(order="auto")
    assert layerwise_obs() != layerwise_obs(block=64)
    assert str(wanda()) == "wanda(per_output=True)"


STACKED = {
    "mixed": (layerwise_obs(block=7, weigh="fisher"), {"min_keep": 1}),
    "columns and re-fit": (METHODS["columns and re-fit"], {"pattern": NM(2, 4)}),
    "wanda by output": (METHODS["wanda by output"], {"allocation": "uniform"}),
}


@pytest.mark.parametrize("name", STACKED)
def test_slices_of_a_stack_are_pruned_as_leaves_of_their_own(name, monkeypatch):
    method, rules = STACKED[name]
    if name == "mixed":  # up by the greedy order, down by columns
        monkeypatch.setattr(layerwise, "GREEDY_WORK", 1e4)
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = jnp.asarray([1.0, 0.2])[:, None, None]
    blocks = {
        "up": {"kernel": sizes * jax.random.normal(keys[0], (2, 8, 12))},
        "down": {"kernel": sizes * jax.random.normal(keys[1], (2, 12, 8))},
    }
    head = {"kernel": jax.random.normal(keys[2], (8, 4))}
    x = jax.random.normal(keys[3], (24, 8))

    def block(h, p):
        return h + jnp.tanh(h @ p["up"]["kernel"]) @ p["down"]["kernel"], None

    def stacked(p, x):
        h = jax.lax.scan(block, x, p["blocks"])[0]
        return jnp.mean(jnp.square(h @ p["head"]["kernel"]))

    def apart(p, x):
        for i in range(2):
            x, _ = block(x, p[f"block{i}"])
        return jnp.mean(jnp.square(x @ p["head"]["kernel"]))

    def prune(loss_fn, params):
        sparsity = None if "pattern" in rules else 0.7
        target = plan(params, sparsity, loss_fn=loss_fn, batch=x, **rules)
        return swapjax.prune(
            loss_fn, params, x, method=method, samples=24, plan=target, key=keys[0]
        )

    one = prune(stacked, {"blocks": blocks, "head": head})
    each = {f"block{i}": jax.tree.map(lambda w, i=i: w[i], blocks) for i in range(2)}
    several = prune(apart, {**each, "head": head})
    for masks, equal in (
        (False, functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)),
        (True, np.testing.assert_array_equal),
    ):
        found, wanted = (r.masks if masks else r.params for r in (one, several))
        equal(found["head"]["kernel"], wanted["head"]["kernel"])
        for i in range(2):
            jax.tree.map(
                lambda a, b, i=i, f=equal: f(a[i], b), found["blocks"],
                wanted[f"block{i}"],
            )  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "wanda by output"])
def test_parts_of_a_kernel_are_pruned_as_leaves_of_their_own(name):
    """Parts of different sizes fill up the arrays that hold them."""
    cuts, x = [2, 5], jax.random.normal(jax.random.key(0), (20, 8))
    kernel = jax.random.normal(jax.random.key(1), (8, 9))
    parts = jnp.split(kernel, cuts, axis=1)

    def read(parts, x):
        inputs = (x, jnp.sin(x), jnp.square(x))
        return sum(jnp.mean((a @ w) ** 2) for a, w in zip(inputs, parts, strict=True))

    def fused(p, x):
        return read(jnp.split(p["kernel"], cuts, axis=1), x)

    def apart(p, x):
        return read([p[k]["kernel"] for k in "abc"], x)

    def prune(loss_fn, params):
        target = plan(params, pattern=NM(2, 4))
        return swapjax.prune(
            loss_fn, params, x, method=METHODS[name], samples=20, plan=target,
            key=jax.random.key(2),
        ).params  # fmt: skip

    one = prune(fused, {"kernel": kernel})["kernel"]
    each = {k: {"kernel": w} for k, w in zip("abc", parts, strict=True)}
    several = prune(apart, each)
    whole = jnp.concatenate([several[k]["kernel"] for k in "abc"], axis=1)
    assert ((one != 0) == (whole != 0)).all()
    np.testing.assert_allclose(one, whole, rtol=1e-8, atol=1e-12)
