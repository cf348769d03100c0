"""Rules on networks whose layers are stacked, and on the same with separate leaves."""

import jax
import optax
import pytest
from networks.layers import by_layer, kept_by_layer, plans, whole
from networks.row import fill
from networks.table import NETWORKS
from sparse_runs import KEY, QUICK
from trees import equal

import swapjax
from swapjax.training import check_state, masks_of, sparse
from swapjax.training.rules import RULES

STEPS = 5


def follow(tx, params, gradients):
    """Params and masks after each update by known gradients."""

    @jax.jit(compiler_options=QUICK)
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    trail = [(params, masks_of(state))]
    for given in gradients:
        params, state = step(params, state, given)
        trail.append((params, masks_of(state)))
    check_state(state)
    return trail


def train(row, rule, sparsity=0.8, **options):
    """Both trails, of the stack and of separate leaves, and the plan of the stack."""
    entry = RULES[rule]
    schedule = entry.schedule and entry.schedule(4, 2)
    params = row.make().params
    steps = [fill(params, seed) for seed in range(1, 1 + STEPS)]
    planned = plans(row, sparsity, **options)
    trails = []
    for plan, apart in zip(planned, (lambda tree: tree, row.split), strict=True):
        tx = sparse(
            optax.sgd(0.3, momentum=0.9), entry.factory(), plan=plan,
            schedule=schedule, steps=STEPS, key=KEY if entry.needs_key else None,
        )  # fmt: skip
        trails.append(follow(tx, apart(params), [apart(g) for g in steps]))
    return trails, planned[0]


def check(row, trails):
    for (params, masks), (separate, others) in zip(*trails, strict=True):
        assert equal(row.split(whole(masks, params)), whole(others, separate))
        assert equal(row.split(params), separate)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_counts_by_layer_and_knows_no_stack(rule):
    row = NETWORKS["loop in a loop"]
    trails, plan = train(row, rule, allocation="uniform", min_keep=3)
    check(row, trails)
    kept = kept_by_layer(row, trails[0][-1][1])
    wanted = [plan.keep[g] for g in plan.groups]
    assert kept == dict(zip(plan.layout.layers, wanted, strict=True))
    zero = by_layer(row, jax.tree.map(lambda x: x == 0, trails[0][-1][0]))
    assert {n: int((~z).sum()) for n, z in zero.items()} == kept


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [
        ("towers", "rigl", {"allocation": "erk"}),
        ("twelve blocks", "set", {"allocation": "uniform"}),
        ("plain lstms in layers", "gmp", {"allocation": "global", "min_keep": 30}),
    ],
)
def test_a_stack_is_trained_as_leaves_of_their_own(name, rule, options):
    row = NETWORKS[name]
    trails, plan = train(row, rule, **options)
    check(row, trails)
    kept = kept_by_layer(row, trails[0][-1][1])
    assert sum(kept.values()) == plan.kept
    for layer, weights in by_layer(row, row.make().params).items():
        assert kept[layer] >= min(options.get("min_keep", 1), weights.size)


def test_two_of_four_of_a_stack_are_those_of_leaves_of_their_own():
    row = NETWORKS["mixer"]
    trails, _ = train(row, "gmp", None, pattern=swapjax.NM(2, 4))
    check(row, trails)
    for layer, mask in by_layer(
        row, whole(trails[0][-1][1], row.make().params)
    ).items():
        if row.roles[layer.split("[")[0]].inputs:
            assert (mask.reshape(-1, 4, mask.shape[-1]).sum(1) == 2).all(), layer


def test_norms_tables_and_biases_are_never_masked():
    for name in ("equinox scan", "llama, stacked", "gpt, tied", "linen gru, both ways"):
        row = NETWORKS[name]
        params, loss_fn, data = row.make()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        for told in ({"loss_fn": loss_fn, "batch": data}, {}):
            plan = swapjax.plan(shapes, 0.9, output_heads=True, **told)
            assert plan.layout.paths == row.matrices
            reasons = dict(plan.left_out)
            assert set(reasons) == set(row.roles) - set(row.matrices)
            assert all(reasons.values())
