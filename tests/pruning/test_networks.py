"""Methods on many networks: counts of every layer, stacked or not, patterns."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.layers import by_layer, inputs_first, kept_by_layer, plans, whole
from networks.table import NETWORKS
from trees import equal

import swapjax
from swapjax.core import trees
from swapjax.pruning.methods import METHODS

KEY = jax.random.key(1)

# Without those whose stack a program shows as one layer.
STACKED = [n for n, row in NETWORKS.items() if row.stacks and not row.shown]
PRUNED = [n for n, row in NETWORKS.items() if row.matrices and not row.shown]


def prune(row, plan=None, *, separate=False, **options):
    params, loss_fn, data = row.unstacked() if separate else row.make()
    settings = {"plan": plan, "samples": 8, "key": KEY, **options}
    return swapjax.prune(loss_fn, params, data, **settings)


def plan(row, sparsity, separate, **options):
    params, loss_fn, data = row.unstacked() if separate else row.make()
    return swapjax.plan(params, sparsity, loss_fn=loss_fn, batch=data, **options)


def shares(row, plan, density):
    """What each layer would keep at a density of its own, in fractions."""
    sizes = {
        name: layer.size for name, layer in by_layer(row, row.make().params).items()
    }
    assert sum(sizes.values()) == plan.layout.total
    return {name: size * density[name] for name, size in sizes.items()}


@pytest.mark.parametrize("name", PRUNED)
def test_uniform_and_erk_plans_count_by_layer(name):
    row = NETWORKS[name]
    params, loss_fn, data = row.make()
    layers = by_layer(row, params)
    for allocation in ("uniform", "erk"):
        plan = swapjax.plan(
            params, 0.7, loss_fn=loss_fn, batch=data, allocation=allocation,
            output_heads=True,
        )  # fmt: skip
        assert list(plan.layout.layers) == list(layers)
        kept = dict(zip(layers, (plan.keep[g] for g in plan.groups), strict=True))
        assert sum(kept.values()) == plan.kept == round(plan.layout.total * 0.3)
        density = dict.fromkeys(layers, 0.3)
        if allocation == "erk":
            density = erk(row, layers, plan.kept)
        for layer, share in shares(row, plan, density).items():
            assert abs(kept[layer] - share) < 1, (allocation, layer)


def erk(row, layers, kept):
    """The densities of RigL's appendix: sum over product of sides, capped at one."""
    raw = {}
    for name, layer in layers.items():
        role = row.roles[name.split("[")[0]]
        left = [i for i in range(len(role.axes)) if i not in role.stack]
        size = lambda axes, left=left, of=layer.shape: [of[left.index(i)] for i in axes]  # noqa: E731
        inputs, outputs = math.prod(size(role.channels)), math.prod(size(role.outputs))
        raw[name] = (inputs + outputs + sum(size(role.pixels))) / layer.size
    full: set[str] = set()
    while True:
        free = kept - sum(layers[name].size for name in full)
        scale = free / sum(raw[n] * x.size for n, x in layers.items() if n not in full)
        new = {n for n in layers if n not in full and raw[n] * scale > 1}
        if not new:
            return {n: 1.0 if n in full else raw[n] * scale for n in layers}
        full |= new


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_has_the_plan_of_leaves_of_their_own(name):
    row = NETWORKS[name]
    layers = row.layers()
    own = [layer for layer in layers if "[" in layer][-1]
    by_erk = plans(row, 0.9, allocation="erk")
    by_hand = [
        plan(row, 0.5, separate, min_keep=5, overrides={f"^{re.escape(of)}$": 0.75})
        for separate, of in ((False, own), (True, layers[own]))
    ]
    for stacked, separate in (by_erk, by_hand):
        names = [layers[layer] for layer in stacked.layout.layers]
        assert names == list(separate.layout.layers)
        for field in ("keep", "groups", "floors", "overrides", "sparsity"):
            assert getattr(stacked, field) == getattr(separate, field), field


def same_masks(row, stacked, separate):
    params = row.make().params, row.unstacked().params
    masks = [
        whole(p.masks, x) for p, x in zip((stacked, separate), params, strict=True)
    ]
    return equal(row.split(masks[0]), masks[1])


# Those that need what a loss does not tell.
MISSING = {"synflow"}
MAKE = {"random": (jax.random.key(3),)}
# Their sums run over all layers, of separate leaves in another order.
REFIT = {"cbs", "chita", "linear-regression", "swap", "swap-released", "woodfisher"}
REFIT |= {"linear-regression-released"}


@pytest.mark.parametrize("name", [n for n in METHODS if n not in MISSING])
def test_every_method_counts_by_layer_and_knows_no_stack(name):
    row = NETWORKS["loop in a loop"]
    method = METHODS[name].factory(*MAKE.get(name, ()))
    planned = plans(row, 0.7, allocation="uniform", min_keep=2)
    stacked = prune(row, planned[0], method=method)
    counts = kept_by_layer(row, stacked.masks)
    wanted = [planned[0].keep[g] for g in planned[0].groups]
    assert counts == dict(zip(planned[0].layout.layers, wanted, strict=True))
    if name not in REFIT:
        separate = prune(row, planned[1], separate=True, method=method)
        assert same_masks(row, stacked, separate)
        assert equal(row.split(stacked.params), separate.params)


BITS = {
    "linen scan, axis 1": (
        swapjax.magnitude(),
        {"allocation": "global", "min_keep": 9},
    ),
    "mixture, scanned": (swapjax.random(KEY), {"allocation": "erk"}),
    "plain lstms in layers": (swapjax.snip(), {"allocation": "global"}),
    "twelve blocks": (swapjax.random(KEY), {"allocation": "uniform"}),
}


@pytest.mark.parametrize("name", BITS)
def test_a_stack_has_the_masks_of_leaves_of_their_own(name):
    row = NETWORKS[name]
    method, options = BITS[name]
    planned = plans(row, 0.9, **options)
    stacked = prune(row, planned[0], method=method)
    separate = prune(row, planned[1], separate=True, method=method)
    assert same_masks(row, stacked, separate)
    assert equal(row.split(stacked.params), separate.params)
    least = options.get("min_keep", 1)
    assert min(kept_by_layer(row, stacked.masks).values()) >= least


def test_ties_between_layers_go_to_the_first():
    row = NETWORKS["mixture, scanned"]
    params, loss_fn, data = row.make()
    ones = jax.tree.map(lambda x: x * 0 + 1, params)
    plan = swapjax.plan(ones, 0.6, loss_fn=loss_fn, batch=data)
    found = swapjax.prune(None, ones, plan=plan, method=swapjax.magnitude())
    left = plan.kept - len(row.layers())  # one of each stays in any case
    for layer, mask in by_layer(row, whole(found.masks, params)).items():
        more = min(left, mask.size - 1)
        left -= more
        assert mask.sum() == 1 + more, layer
        assert mask.flat[: 1 + more].all()


FOURS = (
    "linen scan, axis 1", "equinox grus in layers", "mixture, scanned", "gpt, tied",
    "patches by convolution", "equinox convolutions",
)  # fmt: skip


@pytest.mark.parametrize("name", FOURS)
def test_two_of_four_lie_along_inputs(name):
    row = NETWORKS[name]
    params, loss_fn, data = row.make()
    # Whose inputs are 3, 1 and 5 channels.
    odd = ("grouped", "depthwise", "head") if "convolutions" in name else ()
    told = {"loss_fn": loss_fn, "batch": data, "exclude": odd}
    plan = swapjax.plan(params, pattern=swapjax.NM(2, 4), output_heads=True, **told)
    found = swapjax.prune(None, params, plan=plan, method=swapjax.magnitude())
    before = by_layer(row, params)
    for layer, mask in by_layer(row, whole(found.masks, params)).items():
        if layer.startswith(odd):
            continue
        groups = inputs_first(row, layer, mask)
        groups = groups.reshape(-1, 4, groups.shape[-1])
        sizes = np.abs(inputs_first(row, layer, before[layer])).reshape(groups.shape)
        assert (groups.sum(1) == 2).all(), layer
        kept, gone = np.where(groups, sizes, np.inf), np.where(groups, 0, sizes)
        assert (kept.min(1) >= gone.max(1)).all(), layer


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("equinox convolutions", "grouped/weight"),
        ("equinox convolutions", "depthwise/weight"),
        ("pytorch convolutions", "up.weight"),
        ("linen convolutions", "grouped_conv/kernel"),
        ("linen scan", "blocks/attention/out/kernel"),
    ],
)
def test_inputs_that_a_pattern_does_not_divide_are_named(name, path):
    params, loss_fn, data = NETWORKS[name].make()
    told = {"loss_fn": loss_fn, "batch": data, "include": f"^{path}$"}
    with pytest.raises(ValueError, match=f"{path} of shape .* does not divide"):
        swapjax.plan(params, pattern=swapjax.NM(2, 5), **told)


@pytest.mark.parametrize("name", ["equinox gru", "haiku lstm", "plain gru"])
def test_without_a_plan_the_loss_tells_what_to_prune(name):
    row = NETWORKS[name]
    found = prune(row, sparsity=0.9, method=swapjax.magnitude())
    masks = dict(
        zip(trees.paths(found.masks), jax.tree.leaves(found.masks), strict=True)
    )
    assert {path for path, mask in masks.items() if mask.ndim} == set(row.matrices)
    total = sum(masks[path].size for path in row.matrices)
    assert sum(kept_by_layer(row, found.masks).values()) == round(total * 0.1)


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_no_layer_of_a_stack_dies(allocation):
    row = NETWORKS["linen scan"]
    params, _, _ = row.make()
    faint = jax.tree.map(lambda x: x.at[1].multiply(1e-3), params["blocks"])
    params = {**params, "blocks": faint}
    # Without a loss, so that names tell the stack.
    plan = swapjax.plan(
        params, 0.97, allocation=allocation, min_keep=2, output_heads=True
    )
    found = swapjax.prune(None, params, plan=plan, method=swapjax.magnitude())
    kept = kept_by_layer(row, found.masks)
    assert sum(kept.values()) == plan.kept
    assert min(kept.values()) == 2 if allocation == "global" else min(kept.values()) > 2


NAMED = [
    name
    for name, row in NETWORKS.items()
    if row.named == {} and not row.shown and "convolutions" not in name
]


@pytest.mark.parametrize("name", NAMED)
def test_names_and_programs_make_the_same_plan(name):
    params, loss_fn, data = NETWORKS[name].make()
    odd = {"exclude": "head/"} if "in layers" in name else {}
    for options in (
        {"sparsity": 0.8, "allocation": "erk"},
        {"pattern": swapjax.NM(2, 4)},
    ):
        named = swapjax.plan(params, **options, **odd)
        told = {"loss_fn": loss_fn, "batch": data}
        traced = swapjax.plan(params, **options, **odd, **told)
        assert named == traced
        assert named.layout.layers == traced.layout.layers


def test_members_of_an_ensemble_that_read_the_same_have_budgets_of_their_own():
    rng = np.random.default_rng(0)
    up, down, x = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 8, 6), (2, 6, 2), (16, 8))
    )

    def loss_fn(params, x):
        run = lambda up, down: jnp.tanh(x @ up) @ down  # noqa: E731
        return jnp.mean(jax.vmap(run)(params["up"], params["down"]) ** 2)

    def separate(params, x):
        return loss_fn({name: jnp.stack(w) for name, w in params.items()}, x)

    masks = []
    stacked = {"up": up, "down": down}
    apart = {name: list(w) for name, w in stacked.items()}
    for params, loss in ((stacked, loss_fn), (apart, separate)):
        options = {"allocation": "uniform", "loss_fn": loss, "batch": x}
        pruned = swapjax.prune(
            loss, params, x, plan=swapjax.plan(params, 0.5, **options), samples=16,
            method=swapjax.layerwise_obs(order="columns", block=4),
            key=jax.random.key(0),
        )  # fmt: skip
        assert sorted(pruned.history[-1].layers.values()) == [6] * 2 + [24] * 2
        masks.append(pruned.masks)
    for name, mask in masks[0].items():
        np.testing.assert_array_equal(mask, np.stack(masks[1][name]))
