"""What sparse training cannot work with, and what it says of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sparse_runs import KEY, QUICK, brief, by_gradients, follow, gradients, initial

import swapjax
from swapjax import NM, cubic
from swapjax.training import (
    Rule,
    check_state,
    gmp,
    granet,
    granet_st,
    masks_of,
    rigl,
    set_,
    sparse,
    static,
    ste,
)

ADAM = optax.adam(0.01)


class TestArguments:
    """Before anything is trained."""

    def test_a_schedule_of_stages(self):
        with pytest.raises(
            ValueError, match=r"schedule: cubic\(initial=0\) counts sta"
        ):
            brief(schedule=cubic())

    def test_a_schedule_that_ends_after_training(self):
        with pytest.raises(ValueError, match=r"schedule: .* ends after update 9, trai"):
            brief(schedule=cubic(1, 9), steps=8)
        brief(schedule=cubic(1, 9), steps=9)

    def test_a_schedule_of_steps_for_stages(self):
        params = {"kernel": jnp.eye(4)}
        data = (jnp.ones((2, 4)), jnp.ones((2, 4)))
        loss = lambda p, b: jnp.mean(jnp.square(b[0] @ p["kernel"] - b[1]))  # noqa: E731
        with pytest.raises(ValueError, match="schedule"):
            swapjax.prune(
                loss, params, data, sparsity=0.5, stages=3, schedule=cubic(1, 9),
                key=KEY,
            )  # fmt: skip

    @pytest.mark.parametrize("rule", [gmp(), set_(), rigl(), granet(), ste()], ids=str)
    def test_no_schedule(self, rule):
        with pytest.raises(ValueError, match=f"schedule: {rule.name} changes masks"):
            brief(rule, schedule=None)

    @pytest.mark.parametrize("steps", [0, -1, 2.5])
    def test_steps_that_do_not_count(self, steps):
        with pytest.raises(ValueError, match="steps must be"):
            brief(steps=steps)

    @pytest.mark.parametrize("rule", [gmp, "granet", None.__class__, optax.adam(0.1)])
    def test_a_rule_that_is_none(self, rule):
        with pytest.raises(ValueError, match="rule must be what a function like"):
            sparse(ADAM, rule, sparsity=0.5, schedule=cubic(1, 3, initial=0.3), key=KEY)

    @pytest.mark.parametrize("value", [-0.1, 1.0, 7, math.nan, math.inf, None, "half"])
    def test_fractions_out_of_range(self, value):
        for rule in (set_, rigl, granet, granet_st):
            with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\)"):
                rule(fraction=value)
        for rule in (rigl, granet, granet_st):
            with pytest.raises(ValueError, match=r"last must be in \[0, 1\)"):
                rule(last=value)

    def test_growth_of_no_kind(self):
        with pytest.raises(ValueError, match="grow must be 'gradient' or 'random'"):
            granet(grow="momentum")

    @pytest.mark.parametrize("value", [-1.0, math.nan])
    def test_a_decay_that_grows(self, value):
        with pytest.raises(ValueError, match="decay must be 0 or more"):
            ste(decay=value)

    @pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
    def test_a_sparsity_out_of_range(self, value):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
            brief(sparsity=value).init(initial())

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"name": 3}, "name must be a string that names the rule, got 3"),
            ({"name": ""}, "name must be a string that names the rule, got ''"),
            (
                {"choose": 7},
                "choose must be a function of a MaskStep, or None .* got 7",
            ),
            ({"begin": "dense"}, "begin must be one of 'magnitude', 'random', got 'de"),
            (
                {"allocation": "fair"},
                "allocation must be one of 'global', 'uniform', 'e",
            ),
            ({"levels": (0.5,)}, r"levels must be a function, got \(0.5,\)"),
            ({"fraction": 0.3}, "fraction must be a function, got 0.3"),
            (
                {"grows": "large"},
                "grows must be one of 'gradient', 'random', None, got",
            ),
            ({"decay": -1.0}, "decay must be 0 or more, got -1.0"),
            ({"decay": "some"}, "decay must be 0 or more, got 'some'"),
            (
                {"settings": {"a": 1}},
                "settings must be a tuple of pairs, a hyper-param",
            ),
            ({"settings": ("ab",)}, "settings must be a tuple of pairs, a hyper-param"),
            ({"settings": (("a", 1, 2),)}, "settings must be a tuple of pairs"),
            ({"goes_on": 1}, "goes_on must be True or False, got 1"),
            ({"skips": None}, "skips must be True or False, got None"),
            ({"straight_through": "no"}, "straight_through must be True or False, g"),
            ({"draws": "yes"}, "draws must be True or False, got 'yes'"),
        ],
    )
    def test_fields_of_a_rule(self, fields, said):
        with pytest.raises(ValueError, match=f"^{said}"):
            Rule(**({"name": "mine", "choose": lambda step: step.masks} | fields))

    @pytest.mark.parametrize(
        ("choose", "got"),
        [
            (lambda step: step.masks[:1], r"\(bool\[6, 9\]\)"),
            (lambda step: step.weights, r"\(float32\[6, 9\], float32\[9, 2\]\)"),
            (lambda step: [m.T for m in step.masks], r"\(bool\[9, 6\], bool\[2, 9\]\)"),
            (lambda step: None, r"\(a NoneType\)"),
        ],
    )
    def test_what_a_rule_of_one_s_own_returns(self, choose, got):
        tx, params = brief(Rule("mine", choose)), initial()
        said = (
            r"rule mine: choose must return masks \(bool\[6, 9\], bool\[9, 2\]\), one"
        )
        with pytest.raises(
            ValueError, match=f"^{said} for each prunable leaf, got {got}"
        ):
            tx.update(params, tx.init(params), params)

    @pytest.mark.parametrize("value", [None, (), "0.5", 0.5, np.zeros(0)])
    def test_levels_that_are_none(self, value):
        rule = Rule("mine", lambda s: s.masks, levels=lambda schedule, final: value)
        with pytest.raises(ValueError, match=r"^rule mine: levels must return sparsi"):
            brief(rule).init(initial())

    @pytest.mark.parametrize("value", ["0.5", None, 1.0, -0.1, math.nan])
    def test_levels_out_of_range(self, value):
        levels = lambda schedule, final: (0.5, value)  # noqa: E731
        rule = Rule("mine", lambda s: s.masks, levels=levels)
        with pytest.raises(ValueError, match=r"^rule mine: levels\[1\] must be .* got"):
            brief(rule).init(initial())

    @pytest.mark.parametrize("value", [1.1, -0.1, math.nan, None, "half", (0.1, 0.2)])
    def test_fractions_of_a_rule_of_one_s_own(self, value):
        rule = Rule("mine", lambda s: s.masks, fraction=lambda t, last: value)
        with pytest.raises(ValueError, match=r"^rule mine: fraction must return numb"):
            brief(rule).init(initial())

    def test_a_rule_that_draws_and_does_not_say_so(self):
        rule = Rule("mine", lambda step: jax.random.split(step.key))
        tx, params = brief(rule, key=None), initial()
        with pytest.raises(TypeError) as e:
            tx.update(params, tx.init(params), params)
        assert e.value.__notes__[0].startswith("rule mine: the key of the step is None")
        assert "draws=True" in e.value.__notes__[0]


class TestParams:
    """When params are there."""

    def test_no_params(self):
        tx, params = brief(), initial()
        with pytest.raises(ValueError, match="params: sparse training needs them"):
            tx.update(params, tx.init(params))

    def test_a_state_of_something_else(self):
        params = initial()
        with pytest.raises(ValueError, match=r"state: must be what tx\.init gave"):
            brief().update(params, ADAM.init(params), params)

    def test_a_plan_of_other_params(self):
        plan = swapjax.plan({"kernel": jnp.ones((6, 9))}, 0.5)
        with pytest.raises(ValueError, match="params: the tree is not the one"):
            brief(plan=plan).init(initial())
        plan = swapjax.plan(initial(wide=7), 0.5)
        with pytest.raises(
            ValueError, match=r"fc1/kernel has shape \(6, 9\), planned f"
        ):
            brief(plan=plan).init(initial())

    @pytest.mark.parametrize("rule", [gmp(), ste()], ids=str)
    def test_a_state_of_other_params(self, rule):
        tx, params = brief(rule), initial()
        other = initial(wide=7)
        with pytest.raises(ValueError, match=r"state.masks: fc1/kernel must be bool"):
            tx.update(params, tx.init(other), params)
        with pytest.raises(ValueError, match=r"state.masks: must have the tree"):
            tx.update(params, tx.init({"kernel": jnp.ones((2, 2))}), params)

    def test_gradients_of_other_params(self):
        tx, params = brief(), initial()
        with pytest.raises(
            ValueError, match=r"gradients: fc1/kernel must .* got \(7, 9\)"
        ):
            tx.update(initial(wide=7), tx.init(params), params)
        with pytest.raises(ValueError, match="gradients: must have the tree of params"):
            tx.update({"fc2": params["fc2"]}, tx.init(params), params)

    def test_params_that_are_no_arrays(self):
        with pytest.raises(ValueError, match="params: no leaf is known as a matrix"):
            brief().init({"kernel": [1.0, 2.0]})

    def test_a_state_of_another_rule(self):
        params = initial()
        full = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
        for tx, name in ((brief(ste()), "dense"), (brief(within=full), "within")):
            said = rf"state: must be of the same rule .* keeps {name}, got every, first"
            with pytest.raises(ValueError, match=said):
                tx.update(params, brief(gmp()).init(params), params)

    def test_a_restored_state_of_other_params(self):
        """With a plan, and where only the params are new."""
        params, other = initial(), initial(wide=7)
        tx = brief(plan=swapjax.plan(params, 0.5))
        state = tx.init(params)
        with pytest.raises(
            ValueError, match=r"params: fc1/kernel has shape \(7, 9\), plan"
        ):
            tx.update(other, state, other)
        less = {"fc1": params["fc1"]}
        with pytest.raises(ValueError, match="params: the tree is not the one"):
            tx.update(less, state, less)

    def test_integers(self):
        params = initial() | {"steps": jnp.zeros((2, 2), jnp.int32)}
        state = brief().init(params)
        assert masks_of(state)["steps"].shape == ()
        params = {"kernel": jnp.ones((3, 3), jnp.int32)}
        with pytest.raises(TypeError, match="kernel holds int32"):
            brief().init(params)

    def test_leaves_without_entries(self):
        params = initial() | {"fc3": {"kernel": jnp.zeros((0, 4))}}
        tx = brief(granet())
        step = by_gradients(tx, compiler_options=QUICK)
        given = [g | {"fc3": {"kernel": jnp.zeros((0, 4))}} for g in gradients(4)]
        _, state = follow(step, params, tx.init(params), given)[-1]
        assert swapjax.density(masks_of(state)) == 0.5
        with pytest.raises(ValueError, match="params: nothing to prune"):
            brief().init({"kernel": jnp.zeros((0, 4))})

    def test_nothing_prunable(self):
        with pytest.raises(ValueError, match="params: no leaf is known as a matrix"):
            brief().init({"bias": jnp.ones(3)})

    def test_within_of_another_tree_or_too_small(self):
        params = initial()
        full = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
        for within, said in (
            ({"kernel": full["fc1"]["kernel"]}, "within: must have the tree of params"),
            (jax.tree.map(jnp.float32, full), "within: fc1/bias must be bool"),
            (
                full | {"fc2": {"kernel": jnp.ones((2, 9), bool)}},
                "within: fc2/kernel must",
            ),
            (jax.tree.map(jnp.zeros_like, full), "within: has 0 entries in all, 36"),
        ):
            with pytest.raises(ValueError, match=said):
                brief(within=within).init(params)

    def test_static_masks_of_another_tree(self):
        with pytest.raises(ValueError, match="masks: must have the tree of params"):
            brief(static({"kernel": jnp.ones((2, 2), bool)})).init(initial())

    def test_no_state_or_two(self):
        params = initial()
        state = brief().init(params)
        for found, states in ((0, ADAM.init(params)), (2, (state, state))):
            with pytest.raises(ValueError, match=f"state: one .* found {found}"):
                masks_of(states)
            with pytest.raises(ValueError, match=f"state: one .* found {found}"):
                check_state(states)


class TestMasksFromBefore:
    """Masks that are given to `static`."""

    def test_as_many_as_the_sparsity_says(self):
        params, masks = {"kernel": jnp.ones((4, 4))}, {"kernel": jnp.eye(4, dtype=bool)}
        tx = sparse(optax.sgd(0.1), static(masks), sparsity=0.5, key=jax.random.key(0))
        with pytest.raises(ValueError, match=r"masks: keep 4 of the 16 .* keeps 8"):
            tx.init(params)

    def test_inside_of_within(self):
        params, masks = {"kernel": jnp.ones((4, 4))}, {"kernel": jnp.eye(4, dtype=bool)}
        within = {"kernel": jnp.arange(16).reshape(4, 4) < 8}
        tx = sparse(optax.sgd(0.1), static(masks), sparsity=0.75, within=within,
                    key=jax.random.key(0))  # fmt: skip
        with pytest.raises(ValueError, match="masks: have entries outside of within"):
            tx.init(params)


def test_a_key_and_an_optimizer_are_what_they_should_be():
    for key, message in ((0, "a JAX PRNG key"), (jax.random.split(KEY), "one PRNG")):
        with pytest.raises(ValueError, match=f"key must be {message}"):
            brief(key=key)
    with pytest.raises(ValueError, match="optimizer must be an Optax transformation"):
        sparse("adam", static(), sparsity=0.5, key=KEY)


@pytest.mark.parametrize(
    "rule",
    [static(), set_(), rigl(), granet_st(), granet(grow="random"),
     Rule("mine", lambda step: step.masks, draws=True)],
    ids=str,
)  # fmt: skip
def test_a_rule_that_draws_needs_a_key(rule):
    with pytest.raises(
        ValueError, match=f"^key: {rule.name} draws at random and needs a PRNG key, got"
    ):
        brief(rule, key=None)


def test_given_masks_need_no_key():
    params, masks = {"kernel": jnp.ones((4, 4))}, {"kernel": jnp.eye(4, dtype=bool)}
    tx = sparse(optax.sgd(0.1), static(masks), sparsity=0.75)
    updates, state = tx.update(params, tx.init(params), params)
    check_state(state, optax.apply_updates(params, updates))
    assert masks_of(state)["kernel"].tolist() == masks["kernel"].tolist()


def test_a_state_that_cannot_be_told_by_params_is_explained():
    tx = sparse(optax.sm3(0.1), static(), sparsity=0.5, key=KEY)
    params = initial()
    with pytest.raises(ValueError, match="optimizer: its state does not have the tr"):
        tx.update(params, tx.init(params), params)


PARAMS = {"kernel": jnp.ones((4, 4))}
PLAN = swapjax.plan(PARAMS, 0.5)


@pytest.mark.parametrize("make", [
    lambda **goal: sparse(ADAM, static(), key=KEY, **goal), swapjax.gsm,
])  # fmt: skip
@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "sparsity or plan: give one of the two, got neither"),
        ({"sparsity": 0.5, "plan": PLAN}, "sparsity or plan: .* got sparsity=0.5 and"),
        ({"sparsity": PLAN}, "sparsity: got a Plan; hand it over as plan="),
        ({"plan": 0.5}, "plan must be what swapjax.plan makes, got 0.5"),
        ({"sparsity": 1.5}, r"sparsity must be in \[0, 1\), got 1.5"),
        ({"sparsity": math.nan}, r"sparsity must be in \[0, 1\), got nan"),
        *(
            ({"sparsity": value}, r"sparsity must be a number in \[0, 1\), got ")
            for value in ("0.5", [0.5], True, np.False_, jnp.ones(1), 10**400, NM(2, 4))
        ),
        ({"sparsity": NM(2, 4)}, r"; hand a pattern to swapjax.plan\(params, pattern="),
    ],
    ids=str,
)  # fmt: skip
def test_one_of_sparsity_and_plan_is_asked_for_before_there_are_params(
    make, goal, message
):
    with pytest.raises(ValueError, match=message):
        make(**goal)


def test_a_schedule_is_one_of_ours():
    with pytest.raises(ValueError, match=r"schedule must be .* got 500"):
        sparse(optax.sgd(0.1), gmp(), sparsity=0.5, schedule=500, key=jax.random.key(0))
