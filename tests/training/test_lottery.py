"""Train, prune, rewind: against the same by hand, resumed, and its controls."""

import dataclasses
import math
from fractions import Fraction

import flax.core
import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from interrupts import stop_at
from network import kernels, loss_fn
from trees import equal

import swapjax
from swapjax import NM, FineTune
from swapjax.training import Ticket, Trainer, lottery, reinit, shuffle

KEY = jax.random.key(0)


def initial(key=KEY):
    return network.make(key, inputs=8, hidden=10, outputs=4)


PARAMS = initial()


def data():
    x = jax.random.normal(jax.random.key(1), (40, 8))
    return x, jnp.tanh(x[:, :4]) - x[:, 4:]


TRAIN = Trainer(loss_fn, data(), FineTune(optax.adam(1e-2), steps=10, batch=8))


class Record:
    """A train that adds noise of its key, and remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, masks, key):
        self.calls.append((params, masks, key))
        noise = initial(key)
        return jax.tree.map(
            lambda p, m, n: jnp.where(m, p + n, 0), params, masks, noise
        )

    def describe(self):
        return "noise"


def find(train=None, **options):
    train = Record() if train is None else train
    goal = {} if "plan" in options else {"sparsity": 0.9}
    return lottery(train, PARAMS, **{**goal, "key": KEY, **options})


def test_prunes_a_fifth_of_what_is_left_down_to_the_sparsity():
    seen = []
    ticket = find(evaluate=lambda p: 7.5, callback=seen.append)
    assert seen == list(ticket.history)
    assert [level.level for level in seen] == list(range(12))
    # 0.8^11 < 0.1: the last step is smaller than the others.
    left = [Fraction(4, 5) ** level for level in range(11)] + [Fraction(1, 10)]
    assert [level.kept for level in seen] == [math.floor(120 * f + 0.5) for f in left]
    assert seen[-1].sparsity == pytest.approx(0.9)
    assert all(level.accuracy == 7.5 and level.seconds > 0 for level in seen)
    assert swapjax.sparsity.masks.count(ticket.masks) == (12, 120)
    assert equal(swapjax.apply_masks(ticket.params, ticket.masks), ticket.params)
    assert ticket.masks["fc1"]["bias"].shape == ()


def test_does_by_magnitude_what_sorting_would():
    train = Record()
    find(train, sparsity=0.6)
    masks = [np.ones((8, 10), bool), np.ones((10, 4), bool)]
    for params, given_masks, key in train.calls:
        # Every level starts from the same weights, with the same order of the data.
        for start, mask, passed, used in zip(
            kernels(PARAMS), masks, kernels(given_masks), kernels(params), strict=True
        ):
            np.testing.assert_array_equal(passed, mask)
            np.testing.assert_array_equal(used, np.where(mask, start, 0))
        np.testing.assert_array_equal(params["fc1"]["bias"], PARAMS["fc1"]["bias"])
        assert key == KEY
        trained = kernels(
            jax.tree.map(lambda p, m, n: jnp.where(m, p + n, 0), params, given_masks,
                         initial(key))
        )  # fmt: skip
        flat = np.concatenate([np.abs(t).ravel() for t in trained])
        flat[~np.concatenate([m.ravel() for m in masks])] = -1
        level = sum(m.sum() for m in masks)
        kept = max(
            math.floor(120 * 0.8 ** (round(math.log(level / 120, 0.8)) + 1) + 0.5), 48
        )
        chosen = np.zeros(120, bool)
        chosen[np.argsort(-flat, kind="stable")[:kept]] = True
        masks = [chosen[:80].reshape(8, 10), chosen[80:].reshape(10, 4)]
    assert len(train.calls) == 6


def test_weights_are_reset_between_levels_and_go_on_only_within_one():
    train = Record()
    ticket = find(train, sparsity=0.5)
    last_params, last_masks, _ = train.calls[-1]
    assert equal(last_params, swapjax.apply_masks(PARAMS, ticket.masks))
    assert equal(last_masks, ticket.masks)
    assert equal(ticket.start, PARAMS)
    assert not equal(ticket.params, last_params)


def test_rewinding_trains_once_and_starts_there():
    first, train = Record(), Record()
    ticket = find(train, sparsity=0.5, rewind=first)
    ((params, masks, key),) = first.calls
    assert equal(params, PARAMS)
    assert all(np.all(m) for m in jax.tree.leaves(masks))
    assert key == KEY
    wanted = jax.tree.map(jnp.add, PARAMS, initial(KEY))
    assert equal(ticket.start, wanted)
    for params, masks, _ in train.calls:
        assert equal(params, swapjax.apply_masks(wanted, masks))


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_a_plan_says_how_layers_share(allocation):
    target = swapjax.plan(PARAMS, 0.7, allocation=allocation)
    ticket = find(plan=target)
    kept = [int(m.sum()) for m in kernels(ticket.masks)]
    assert kept == [target.keep[g] for g in target.groups]


def test_a_pattern_is_kept_to_and_no_level_prunes_nothing():
    target = swapjax.plan(PARAMS, pattern=NM(1, 2))
    ticket = find(plan=target)
    assert [level.kept for level in ticket.history] == [120, 60]
    for mask in kernels(ticket.masks):
        assert np.all(mask.reshape(-1, 2, mask.shape[1]).sum(axis=1) == 1)


def test_no_sparsity_trains_the_dense_network_once():
    assert [level.kept for level in find(sparsity=0.0).history] == [120]


def test_a_trainer_trains_and_keeps_zeros():
    ticket = find(TRAIN, sparsity=0.6, rate=0.4)
    assert [level.kept for level in ticket.history] == [120, 72, 48]
    assert equal(swapjax.apply_masks(ticket.params, ticket.masks), ticket.params)
    start = swapjax.apply_masks(ticket.start, ticket.masks)
    assert loss_fn(ticket.params, data()) < loss_fn(start, data())
    assert equal(TRAIN(start, ticket.masks, KEY), ticket.params)


def test_bfloat16_stays_bfloat16():
    def train(params, masks, key):
        del masks, key
        return jax.tree.map(lambda p: 2 * p, params)

    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    ticket = lottery(train, narrow, sparsity=0.5, rate=0.5, key=KEY)
    assert {p.dtype.name for p in jax.tree.leaves(ticket.params)} == {"bfloat16"}
    assert swapjax.density(ticket.masks) == 0.5


# Going on.


def test_a_killed_run_goes_on_bit_by_bit(tmp_path):
    state = tmp_path / "state.safetensors"
    options = {
        "sparsity": 0.6,
        "rate": 0.3,
        "rewind": dataclasses.replace(TRAIN, settings=FineTune(optax.sgd(0.1), 2, 8)),
        "evaluate": lambda p: float(loss_fn(p, data())),
    }

    whole = find(TRAIN, **options)
    with pytest.raises(KeyboardInterrupt):
        find(TRAIN, checkpoint=state, callback=stop_at(level=1), **options)
    assert [p.name for p in tmp_path.iterdir()] == [state.name]
    seen = []
    resumed = find(TRAIN, checkpoint=state, callback=seen.append, **options)
    assert [level.level for level in seen] == [2, 3]
    for name in ("params", "start", "masks"):
        assert equal(getattr(resumed, name), getattr(whole, name))
    same = [dataclasses.replace(level, seconds=0) for level in resumed.history]
    assert same == [dataclasses.replace(level, seconds=0) for level in whole.history]
    # A finished run is read back at once.
    again = find(TRAIN, checkpoint=state, callback=seen.append, **options)
    assert len(seen) == 2
    assert again.history == resumed.history
    assert equal(again.params, whole.params)


def test_the_state_of_another_run_is_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    find(sparsity=0.3, checkpoint=state)
    before = state.read_bytes()
    others = [
        ({"rate": 0.1}, r"another run \(rate was 0.2, is 0.1\)"),
        ({"key": jax.random.key(1)}, "another run .*key was"),
        ({"train": TRAIN}, r"another run \(train differs"),
        ({"rewind": Record()}, r"another run \(rewind was none, is noise\)"),
    ]
    for options, message in others:
        with pytest.raises(ValueError, match=message):
            find(**{"sparsity": 0.3, "checkpoint": state, **options})
    with pytest.raises(ValueError, match="is not the state of a run of stages"):
        swapjax.prune(
            loss_fn, PARAMS, data(), sparsity=0.3, samples=8, key=KEY, checkpoint=state
        )
    assert state.read_bytes() == before
    with pytest.raises(ValueError, match=r"checkpoint: .*nowhere is not a folder"):
        find(checkpoint=tmp_path / "nowhere" / "state.safetensors")


# Controls.


def test_controls_have_the_masks_or_the_weights_of_the_ticket():
    ticket = find(sparsity=0.8)
    fresh = reinit(ticket, initial, key=jax.random.key(5))
    assert equal(fresh, swapjax.apply_masks(initial(jax.random.key(5)), ticket.masks))

    params, masks = shuffle(ticket, key=KEY)
    assert equal(params, swapjax.apply_masks(PARAMS, masks))
    for one, other in zip(kernels(masks), kernels(ticket.masks), strict=True):
        assert one.sum() == other.sum()
    assert not equal(masks, ticket.masks)
    assert not equal(masks, shuffle(ticket, key=jax.random.key(1))[1])
    assert masks["fc1"]["bias"].shape == ()
    with pytest.raises(ValueError, match="the masks of the ticket: must have the tree"):
        reinit(ticket, lambda key: {"kernel": jnp.ones(3)}, key=KEY)


def test_shuffled_masks_keep_the_number_of_each_layer():
    w = jax.random.normal(KEY, (3, 4, 5)) * jnp.asarray([1.0, 3, 9])[:, None, None]
    stacked, apart = {"layers": {"w": w}}, {"layers": [{"w": x} for x in w]}
    found = []
    for params, axes in (
        (stacked, ("stack", "input", "output")),
        (apart, ("input", "output")),
    ):
        plan = swapjax.plan(params, 0.5, axes={"w": axes}, min_keep=2)
        masks = swapjax.magnitude_masks(params, plan=plan)
        ticket = Ticket(params, params, masks, ())
        mixed = shuffle(ticket, plan=plan, key=KEY)[1]
        assert plan.kept_in(mixed) == plan.kept_in(masks)
        found.append(mixed)
    assert len(set(plan.kept_in(found[1]).values())) > 1
    for one, other in zip(found[0]["layers"]["w"], found[1]["layers"], strict=True):
        assert equal(one, other["w"])
    named = {"blocks": {"kernel": w, "bias": w[:, 0]}}
    plan = swapjax.plan(named, 0.5)
    assert len(plan.layout.layers) == 3
    masks = swapjax.magnitude_masks(named, plan=plan)
    mixed = shuffle(Ticket(named, named, masks, ()), key=KEY)[1]
    assert plan.kept_in(mixed) == plan.kept_in(masks)
    assert mixed["blocks"]["bias"].shape == ()


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"rate": 0.0}, r"rate must be in \(0, 1\), got 0.0"),
        ({"rate": 1.0}, r"rate must be in \(0, 1\), got 1.0"),
        ({"rate": math.nan}, r"rate must be in \(0, 1\), got nan"),
        ({"train": 3}, "train must be a function, got 3"),
        ({"rewind": 500}, "rewind must be a function, got 500"),
        (
            {"plan": swapjax.plan({"kernel": jnp.ones((2, 2))}, 0.5)},
            "params: the tree",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        find(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p + 1, r"train: moved \d+ entries of fc1/kernel that masks hold"),
        (lambda p: p * jnp.where(p == 0, 1, jnp.nan), "the params of train: NaN"),
        (
            lambda p: p.astype(jnp.float16),
            "train: must leave fc1/bias float32 of shape",
        ),
        (lambda p: p[:1], r"train: must leave fc1/bias float32 of shape \(10,\), got"),
    ],
)
def test_what_train_returns_is_checked(change, message):
    with pytest.raises(ValueError, match=message):
        find(lambda params, masks, key: jax.tree.map(change, params))
    with pytest.raises(ValueError, match=r"rewind: must return the tree of params"):
        find(rewind=lambda params, masks, key: {})


def test_a_plan_of_another_kind_of_tree_will_do():
    """Only paths and shapes matter, as elsewhere."""
    plan = swapjax.plan(PARAMS, 0.5)
    train = lambda params, masks, key: params  # noqa: E731
    one, other = (
        lottery(train, params, plan=plan, key=KEY).masks
        for params in (PARAMS, flax.core.freeze(PARAMS))
    )
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_trainer_refuses_what_cannot_be_seen_twice():
    with pytest.raises(
        ValueError, match="data: an iterator of batches can be seen once"
    ):
        Trainer(loss_fn, iter([data()]), FineTune(optax.sgd(0.1), 1))


def test_params_that_are_not_finite_are_named():
    bad = {**PARAMS, "fc2": {"kernel": PARAMS["fc2"]["kernel"].at[0, 0].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"params: NaN.* in fc2/kernel \(1 of 40\)"):
        lottery(TRAIN, bad, sparsity=0.5, key=KEY)


def test_keys_and_counters_among_params_stay_as_they_are(tmp_path):
    params = {**PARAMS, "key": jax.random.key(3), "steps": jnp.int32(5)}
    options = {"sparsity": 0.3, "key": KEY, "checkpoint": tmp_path / "state"}
    first, again = (lottery(TRAIN, params, **options) for _ in range(2))
    for ticket in (first, again):
        assert bool(ticket.params["key"] == params["key"])
        assert int(ticket.params["steps"]) == 5
        assert ticket.history[-1].sparsity == pytest.approx(0.3, abs=0.01)
    assert equal(first.masks, again.masks)
