"""Optimizers of a part of the network, and several for several parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import equal

import swapjax
from swapjax.io.checkpoint import load_masks, save_masks
from swapjax.training import fit, lottery
from swapjax.training.state import last_mask_step

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (24, 5))


def network():
    keys = jax.random.split(KEY, 3)
    return {
        "stem": {"kernel": jax.random.normal(keys[0], (5, 8)), "bias": jnp.zeros(8)},
        "head": {
            "fc": {"kernel": jax.random.normal(keys[1], (8, 8)), "bias": jnp.zeros(8)},
            "out": {"kernel": jax.random.normal(keys[2], (8, 2)), "gain": jnp.ones(())},
        },
    }


def loss_fn(params, x):
    stem, head = params["stem"], params["head"]
    hidden = jnp.tanh(x @ stem["kernel"] + stem["bias"])
    hidden = jnp.tanh(hidden @ head["fc"]["kernel"] + head["fc"]["bias"])
    out = hidden @ head["out"]["kernel"] * head["out"]["gain"]
    return jnp.mean((out - x[:, :2]) ** 2)


def ours(rule=None, end=2, **options):
    rule = swapjax.gmp() if rule is None else rule
    goal = {} if "plan" in options else {"sparsity": 0.5}
    schedule = None if rule.choose is None else swapjax.constant(0, end, every=1)
    if rule.name == "gmp":
        schedule = swapjax.cubic(0, end)
    return swapjax.sparse(
        optax.sgd(0.1), rule, schedule=schedule, key=KEY, **goal, **options
    )


def by_rank(params):
    return jax.tree.map(lambda x: "sparse" if x.ndim == 2 else "dense", params)


REST = optax.sgd(0.1)
WHOLE = swapjax.plan(network(), 0.5)
INSIDE = jax.tree.map(
    lambda x: jnp.sin(9 * x) > -0.6 if x.ndim == 2 else True, network()
)
PARTS = {
    "by leaf": optax.partition({"sparse": ours(), "dense": REST}, by_rank),
    "below a node": optax.partition(
        {"sparse": ours(), "dense": REST}, {"stem": "dense", "head": "sparse"}
    ),
    "frozen": optax.chain(
        optax.masked(ours(), {"stem": True, "head": False}),
        optax.masked(optax.set_to_zero(), {"stem": False, "head": True}),
    ),
    "two rules": optax.partition(
        {"a": ours(swapjax.static()), "b": ours(swapjax.rigl())},
        {"stem": "a", "head": "b"},
    ),
    "two rules and neither": optax.partition(
        {"a": ours(swapjax.ste()), "b": ours(), "c": REST},
        {
            "stem": {"kernel": "a", "bias": "c"},
            "head": {"fc": "b", "out": {"kernel": "a", "gain": "b"}},
        },
    ),
    "in each other": optax.partition(
        {
            "x": optax.partition(
                {"sparse": ours(), "dense": REST},
                lambda params: by_rank(params),
            ),
            "y": ours(swapjax.static()),
        },
        {"stem": "y", "head": "x"},
    ),
    "around": swapjax.sparse(
        ours(swapjax.static(), plan=swapjax.plan(network(), 0.5, include="stem/ker")),
        swapjax.gmp(),
        plan=swapjax.plan(network(), 0.5, include="head/.*kernel"),
        schedule=swapjax.cubic(0, 2),
    ),
    "a plan of the whole": optax.partition(
        {"sparse": ours(plan=WHOLE, within=INSIDE), "dense": REST}, by_rank
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_what_comes_back_is_taken_everywhere(name, tmp_path):
    tx, params = PARTS[name], network()
    fitted = fit(
        loss_fn, params, tx, X, epochs=2, batch=8, key=KEY, checkpoint=tmp_path / "run"
    )
    loose = swapjax.masks_of(fitted.state)
    masks = swapjax.masks_of(fitted.state, fitted.params)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert last_mask_step(fitted.state) == 2
    for support in (loose, masks):
        assert equal(swapjax.apply_masks(fitted.params, support), fitted.params)
        assert swapjax.density(support) == 0.5
        path = tmp_path / "masks.safetensors"
        save_masks(path, support)
        assert equal(load_masks(path, params), masks)
        assert swapjax.churn(support, masks) == 0
        assert equal(swapjax.intersect(support, masks), masks)
    swapjax.check_state(fitted.state, fitted.params)
    assert fitted.history[-1].sparsity == 0.5
    pruned = [m for m in jax.tree.leaves(masks) if m.ndim]
    densities = fitted.history[-1].densities
    assert len(densities) == len(pruned)
    # A run that ended is taken from its file.
    again = fit(
        loss_fn, params, tx, X, epochs=2, batch=8, key=KEY, checkpoint=tmp_path / "run"
    )
    assert equal(again.params, fitted.params)
    moved = jax.tree.map(lambda x: x + 0.5, fitted.params)
    with pytest.raises(ValueError, match="kernel: Params were not zero where masks"):
        swapjax.check_state(fitted.state, moved)


def test_a_bias_of_fitting_shape_is_not_taken_for_a_kernel():
    params = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    tx = optax.partition({"sparse": ours(), "dense": REST}, by_rank)
    updates, state = tx.update(params, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    swapjax.check_state(state, moved)
    swapjax.check_state(state, moved | {"bias": jnp.ones(3) * 7})
    with pytest.raises(ValueError, match="kernel: Params were not zero"):
        swapjax.check_state(state, moved | {"kernel": jnp.ones((3, 3))})
    for wrong in (moved | {"kernel": jnp.ones((3, 4))}, {"kernel": moved["kernel"]}):
        with pytest.raises(ValueError, match=r"state\.masks: "):
            swapjax.check_state(state, wrong)


def test_each_leaf_has_one_state():
    params = network()
    one, two = ours().init(params), ours(swapjax.static()).init(params)
    for call in (swapjax.masks_of, swapjax.check_state, last_mask_step):
        with pytest.raises(ValueError, match="for each leaf, found 2 for head/fc/kern"):
            call({"one": one, "two": two})
    other = ours().init({"stem": params["stem"]})
    with pytest.raises(ValueError, match="for different params; hand over one of them"):
        swapjax.masks_of((ours().init({"fc": params["stem"]}), other))
    nested = swapjax.sparse(ours(), swapjax.static(), sparsity=0.5, key=KEY)
    with pytest.raises(ValueError, match="found 2 for head/fc/kernel"):
        swapjax.masks_of(nested.init(params))


def test_faults_of_every_part_are_told():
    params = network()
    tx = PARTS["two rules"]
    slopes = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    update = jax.jit(tx.update)
    state = tx.init(params)
    _, state = update(slopes, state, params)
    with pytest.raises(
        ValueError, match="state: head/fc/kernel, head/out/kernel: Some"
    ):
        swapjax.check_state(state)


def test_variables_of_nnx_are_taken(tmp_path):
    from flax import nnx

    model = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
    tx = optax.partition({"sparse": ours(), "dense": REST}, by_rank)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.mean((model(X) - 1) ** 2)  # noqa: E731
        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(3):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    for tree in (params, nnx.as_pure(params)):
        swapjax.check_state(optimizer.opt_state, tree)
        masks = swapjax.masks_of(optimizer.opt_state, tree)
        assert jax.tree.structure(masks) == jax.tree.structure(tree)
        assert swapjax.density(masks) == 0.5
        assert equal(swapjax.apply_masks(tree, masks), tree)
        save_masks(tmp_path / "masks.safetensors", masks)
        assert equal(load_masks(tmp_path / "masks.safetensors", tree), masks)


def test_masks_of_a_part_bound_what_comes_after():
    """Pruned further, and taken for the start of another run."""
    params = network()
    tx = optax.partition(
        {"sparse": ours(swapjax.static()), "dense": REST},
        {"stem": "dense", "head": "sparse"},
    )
    state = tx.init(params)
    masks = swapjax.masks_of(state)
    pruned = swapjax.prune(
        None, params, method=swapjax.magnitude(), within=masks, sparsity=0.5
    )
    outside = jax.tree.map(lambda a, b: jnp.any(a & ~b), pruned.masks,
                           swapjax.masks_of(state, params))  # fmt: skip
    assert not any(jax.tree.leaves(outside))
    assert swapjax.density(pruned.masks) == 0.5
    again = ours(swapjax.static(masks), plan=swapjax.plan(
        params, 0.5, include="head/.*kernel")).init(params)  # fmt: skip
    assert swapjax.churn(again.masks, masks) == 0


def test_scalars_are_out_of_all_counts(tmp_path):
    """One that a rule includes as much as one that it does not."""
    params = network()
    target = swapjax.plan(params, 0.5, include=".")
    total = sum(x.size for x in jax.tree.leaves(params)) - 1
    assert target.layout.total == total
    pruned = swapjax.prune(None, params, method=swapjax.magnitude(), plan=target)
    ticket = lottery(lambda p, m, k: p, params, plan=target, rate=0.4, key=KEY)
    fitted = fit(loss_fn, params, ours(plan=target), X, epochs=1, batch=8, key=KEY)
    for masks in (pruned.masks, ticket.masks, swapjax.masks_of(fitted.state)):
        assert masks["head"]["out"]["gain"].shape == ()
        assert swapjax.density(masks) == target.kept / total
    assert pruned.history[-1].kept == ticket.history[-1].kept == target.kept
    assert fitted.history[-1].sparsity == pruned.history[-1].sparsity
    swapjax.check_state(fitted.state, fitted.params)
    assert np.all(np.asarray(pruned.params["head"]["out"]["gain"]) == 1)
