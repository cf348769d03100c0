"""Masks that are handed over: every door looks at all of them, and says the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import equal

import swapjax
from swapjax.core import holes
from swapjax.core.given_masks import take_masks
from swapjax.io.checkpoint import load_masks, save_masks
from swapjax.loops.finetune import FineTune, finetune
from swapjax.training import Ticket, Trainer, reinit

KEY = jax.random.key(0)
PARAMS = {
    "embed": {"table": jnp.arange(1.0, 13).reshape(6, 2)},
    "fc": {
        "kernel": jax.random.normal(KEY, (2, 8)),
        "bias": jnp.ones(8),
        "gain": jnp.ones(()),
    },
}
DATA = jnp.ones((4, 6))
TUNE = FineTune(optax.sgd(0.1), 1, batch=4)
CHECKER = np.indices((2, 8)).sum(0) % 2 == 0


def loss_fn(params, x):
    hidden = x @ params["embed"]["table"] @ params["fc"]["kernel"]
    return jnp.mean((params["fc"]["gain"] * hidden + params["fc"]["bias"]) ** 2)


def masks(table=True, kernel=CHECKER, bias=True, gain=True):
    return {
        "embed": {"table": table},
        "fc": {"kernel": kernel, "bias": bias, "gain": gain},
    }


def train(rule, **options):
    return swapjax.sparse(optax.sgd(0.1), rule, sparsity=0.5, **options).init(PARAMS)


# All doors, by whether they keep to a plan.
PLANNED = {
    "static": lambda given: train(swapjax.static(given)),
    "within of sparse": lambda given: train(
        swapjax.gmp(), within=given, schedule=swapjax.one_shot(1)
    ),
    "within of prune": lambda given: swapjax.prune(
        None, PARAMS, sparsity=0.5, method=swapjax.magnitude(), within=given
    ),
    "magnitude_masks": lambda given: swapjax.magnitude_masks(PARAMS, 0.5, within=given),
}
FREE = {
    "apply_masks": lambda given: swapjax.apply_masks(PARAMS, given),
    "finetune": lambda given: finetune(
        loss_fn, PARAMS, DATA, TUNE, masks=given, key=KEY
    ),
    "Trainer": lambda given: Trainer(loss_fn, DATA, TUNE)(PARAMS, given, KEY),
    "reinit": lambda given: reinit(
        Ticket(PARAMS, PARAMS, given, ()), lambda _: PARAMS, key=KEY
    ),
}
TWO = {
    "intersect": lambda given: swapjax.intersect(masks(), given),
    "churn": lambda given: swapjax.churn(given, masks()),
}
DOORS = PLANNED | FREE | TWO

SOUND = {
    "numpy": masks(),
    "jax": jax.tree.map(jnp.asarray, masks()),
    "full": masks(np.ones((6, 2), bool), CHECKER, np.ones(8, bool), np.True_),
    "None": masks(bias=None, gain=None),
    "MaskedNode": {"embed": optax.MaskedNode(), "fc": masks()["fc"]},
    "one True for a part": {"embed": True, "fc": masks()["fc"]},
}


@pytest.mark.parametrize("given", SOUND)
@pytest.mark.parametrize("door", DOORS)
def test_all_doors_take_what_is_sound(door, given):
    found = DOORS[door](SOUND[given])
    if door in FREE:
        assert not np.any(np.asarray(found["fc"]["kernel"])[~CHECKER])


UNSOUND = {
    "0 and 1": (masks(kernel=CHECKER.astype(int)), "fc/kernel must be bool.* int64"),
    "floats": (masks(kernel=CHECKER * 0.5), "fc/kernel must be bool.*float64"),
    "NaN": (masks(bias=np.full(8, np.nan)), "fc/bias must be bool.*float64"),
    "a number": (masks(table=1), "embed/table must be bool.*int64.*!= 0 are bool"),
    "too many axes": (masks(kernel=CHECKER[None]), r"fc/kernel .*\(1, 2, 8\)"),
    "one row": (masks(kernel=CHECKER[:1]), r"fc/kernel .*\(1, 8\)"),
    "other axes": (masks(kernel=CHECKER.T), r"fc/kernel .*\(8, 2\)"),
    "a list": (masks(bias=[True] * 8), "missing fc/bias; not of .*fc/bias/0, fc/bias/"),
    "a leaf less": ({"fc": masks()["fc"]}, "missing embed/table$"),
    "a leaf more": (masks() | {"head": True}, "not of these params head$|missing head"),
    "another name": ({"emb": True, "fc": masks()["fc"]}, "missing em"),
}


@pytest.mark.parametrize("given", UNSOUND)
@pytest.mark.parametrize("door", DOORS)
def test_all_doors_refuse_what_is_not(door, given):
    unsound, said = UNSOUND[given]
    if door in TWO:
        if given == "a list":
            return  # of which the True of the other masks says enough
        said = "masks: "
    with pytest.raises(ValueError, match=said):
        DOORS[door](unsound)


def test_none_at_all_are_refused():
    for call in (*FREE.values(), *TWO.values()):
        if call not in (FREE["finetune"], FREE["Trainer"]):  # where None is for none
            with pytest.raises(ValueError, match="must be a tree of bool arrays, got "):
                call(None)


CUTS = {
    "embed/table has 1 entries": masks(table=np.arange(12).reshape(6, 2) != 5),
    "fc/bias has 8 entries": masks(bias=jnp.zeros(8, bool)),
    "embed/table is": masks(table=False),
    "fc/gain is": masks(gain=np.False_),
}


@pytest.mark.parametrize("said", CUTS)
@pytest.mark.parametrize("door", PLANNED)
def test_what_a_plan_does_not_prune_is_not_cut_in_silence(door, said):
    rest = "False, and the plan does not prune this leaf; include it in the plan, or"
    with pytest.raises(ValueError, match=f"(masks|within): {said}.*{rest}"):
        PLANNED[door](CUTS[said])


@pytest.mark.parametrize("door", FREE)
def test_where_there_is_no_plan_every_cut_is_made(door):
    found = FREE[door](masks(table=np.arange(12).reshape(6, 2) != 5, gain=False))
    assert found["embed"]["table"][2, 1] == 0
    assert found["embed"]["table"][2, 0] != 0
    assert found["fc"]["gain"] == 0


def test_a_plan_that_prunes_what_masks_cut_goes_on_with_them():
    half = masks(table=np.arange(12).reshape(6, 2) % 2 == 0)
    target = swapjax.plan(PARAMS, 0.75, include=["table", "kernel"])
    tx = swapjax.sparse(optax.sgd(0.1), swapjax.gmp(), plan=target, within=half,
                        schedule=swapjax.one_shot(1))  # fmt: skip
    slopes = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = tx.update(slopes, tx.init(PARAMS), PARAMS)
    trained = optax.apply_updates(PARAMS, updates)
    swapjax.check_state(state, trained)
    assert not trained["embed"]["table"][:, 1].any()
    assert swapjax.density(swapjax.masks_of(state)) == 0.25


def test_masks_of_a_whole_network_for_a_part_of_it():
    """What belongs to other parts must be True: this one cannot hold it at zero."""
    part = {"embed": optax.MaskedNode(), "fc": PARAMS["fc"]}
    taken = take_masks(masks(), part)
    assert jax.tree.structure(taken) == jax.tree.structure(part)
    with pytest.raises(ValueError, match="embed/table is False somewhere, and params"):
        take_masks(masks(table=np.zeros((6, 2), bool)), part)
    with pytest.raises(ValueError, match="embed/table is False somewhere"):
        take_masks(masks(table=False), {"embed": None, "fc": PARAMS["fc"]})


def test_masks_of_a_filtered_module_fit_the_whole_of_it(tmp_path):
    model = eqx.nn.MLP(3, 2, 4, 1, use_final_bias=False, key=KEY)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    found = swapjax.magnitude_masks(arrays, 0.5)
    for support in (found, eqx.filter(found, lambda m: m.ndim == 2)):
        pruned = swapjax.apply_masks(model, support)
        assert jax.tree.structure(pruned) == jax.tree.structure(model)
        assert pruned.activation is model.activation
        assert pruned(jnp.ones(3)).shape == (2,)
        assert swapjax.density(support) == 0.5
        save_masks(tmp_path / "masks.safetensors", support)
        for like in (arrays, model):
            read = load_masks(tmp_path / "masks.safetensors", like)
            assert jax.tree.structure(read) == jax.tree.structure(like)
            assert swapjax.density(read) == 0.5


def test_keys_and_integers_stay_as_they_are():
    params = {"kernel": jnp.ones((2, 2)), "key": KEY, "steps": jnp.arange(3)}
    given = {"kernel": np.eye(2, dtype=bool), "key": True, "steps": True}
    found = swapjax.apply_masks(params, given)
    assert found["key"] == KEY
    assert found["steps"].tolist() == [0, 1, 2]


def test_files_hold_what_is_left_out_as_true(tmp_path):
    path = tmp_path / "masks.safetensors"
    for support in SOUND.values():
        save_masks(path, support)
        read = load_masks(path, PARAMS)
        assert jax.tree.structure(read) == jax.tree.structure(PARAMS)
        assert swapjax.churn(read, masks()) == 0
    save_masks(path, {"embed": False, "fc": masks()["fc"]})
    with pytest.raises(ValueError, match="embed is False somewhere"):
        load_masks(path, {"embed": None, "fc": PARAMS["fc"]})
    with pytest.raises(ValueError, match="missing head; not of this network embed"):
        load_masks(path, {"head": PARAMS["embed"]["table"], "fc": PARAMS["fc"]})
    with pytest.raises(ValueError, match="masks: fc/kernel must be bool, got float64"):
        save_masks(path, masks(kernel=CHECKER * np.nan))


def test_a_leaf_that_one_of_two_prunes_was_whole_in_the_other():
    other = masks(table=np.arange(12).reshape(6, 2) < 7)
    assert swapjax.churn(masks(), other) == 5
    assert swapjax.churn(other, masks()) == 5
    both = swapjax.intersect(other, masks(kernel=True))
    assert swapjax.density(both) == (7 + 8) / 28


def test_one_false_is_not_counted_as_never_pruned():
    with pytest.raises(ValueError, match="embed/table is one False for entries whose "):
        swapjax.density(masks(table=False))


leaves = st.sampled_from(["array", "scalar", "hole"])
nodes = st.recursive(
    leaves, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
)


@given(nodes, st.randoms(use_true_random=False))
def test_holes_anywhere_are_filled_with_true(shape, random):
    """A tree, with some of its nodes left out, against a loop over its paths."""
    if isinstance(shape, str):
        return

    def build(node, make):
        if isinstance(node, str):
            return make(node)
        return {name: build(inner, make) for name, inner in node.items()}

    def punch(node):
        if random.random() < 0.3:
            return random.choice([None, optax.MaskedNode()])
        return (
            {k: punch(v) for k, v in node.items()} if isinstance(node, dict) else node
        )

    params = build(shape, lambda _: np.ones((2, 2)))
    whole = build(
        shape, lambda kind: np.eye(2, dtype=bool) if kind == "array" else True
    )
    given = punch(whole)
    if given is None:
        return
    taken = take_masks(given, params)
    assert jax.tree.structure(taken) == jax.tree.structure(params)
    there = holes.by_path(given)
    for (keys, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(taken), jax.tree.leaves(whole), strict=True
    ):
        path = "/".join(key.key for key in keys)
        expected = wanted if there.get(path, holes.HOLE) is not holes.HOLE else True
        assert equal(np.asarray(leaf), np.asarray(expected))
