"""ADMM and ELSA against loops with NumPy, and what both ask for."""

import functools
import math

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
import unit_network
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from network import kernels
from rule_runs import strongest
from sparse_runs import (
    QUICK,
    batches,
    by_gradients,
    by_loss,
    follow,
    gradients,
    initial,
)
from trees import equal

import swapjax
from swapjax.training import (
    admm,
    check_state,
    elsa,
    masks_of,
    residuals,
    until_mask_step,
)

RATE, BETA, DECAY, TOP, EVERY, STEPS = 0.05, 0.9, 0.01, 0.7, 5, 12
KEPT = 22  # of 72 entries at a sparsity of 0.7


def momentum():
    """Its decay and its momentum see the penalty as they see the gradient."""
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=BETA))


def adam():
    return optax.adam(RATE, b1=0.9, b2=0.99)


@functools.cache
def trail(kind, dtype="float64"):
    """Params and states after 0, 1, ... updates along known gradients."""
    make, inner = {"admm": (admm, momentum), "elsa": (elsa, adam)}[kind]
    tx = make(inner(), sparsity=0.7, steps=STEPS, penalty=TOP, every=EVERY)
    step = by_gradients(tx, compiler_options=QUICK)
    params = initial(dtype)
    given = [jax.tree.map(lambda g: g.astype(dtype), g) for g in gradients()]
    found = follow(step, params, tx.init(params), given)
    assert step._cache_size() == 1
    return found


def slopes_of(gradient):
    return [np.float64(g) for g in kernels(gradient)]


class Loop:
    """The variables of ADMM one by one, over a step of SGD or Adam."""

    def __init__(self, weighs):
        self.x = [np.float64(w) for w in kernels(initial("float64"))]
        self.weighs = weighs
        self.first = [np.zeros_like(w) for w in self.x]
        self.second = [np.zeros_like(w) for w in self.x]
        self.u = [np.zeros_like(w) for w in self.x]
        self.z = self.project(self.x, np.ones_like(self.x[0]) * 0)
        self.t = 0

    def project(self, values, weigh):
        scores = values
        if self.weighs and np.any(weigh):
            pairs = zip(self.second, values, strict=True)
            scores = [np.sqrt(v) * x for v, x in pairs]
        everywhere = [np.ones(v.shape, bool) for v in values]
        self.masks = strongest(scores, everywhere, KEPT)
        return [v * m for v, m in zip(values, self.masks, strict=True)]

    def step(self, slopes):
        ramp = (1 - math.cos(math.pi * self.t / STEPS)) / 2
        strength = TOP if self.weighs else TOP * ramp
        self.t += 1
        for i, g in enumerate(slopes):
            x, z, u = self.x[i], self.z[i], self.u[i]
            pulled = g + strength * (x - z + u)
            if self.weighs:
                self.first[i] = 0.9 * self.first[i] + 0.1 * pulled
                self.second[i] = 0.99 * self.second[i] + 0.01 * pulled**2
                mean = self.first[i] / (1 - 0.9**self.t)
                square = self.second[i] / (1 - 0.99**self.t)
                self.x[i] = x - RATE * mean / (np.sqrt(square) + 1e-8)
            else:
                self.first[i] = pulled + DECAY * x + BETA * self.first[i]
                self.x[i] = x - RATE * self.first[i]
        if (STEPS - self.t) % EVERY == 0:
            if self.t == STEPS:
                self.u = [np.zeros_like(u) for u in self.u]
            both = [x + u for x, u in zip(self.x, self.u, strict=True)]
            self.z = self.project(both, self.second[0])
            self.u = [u + x - z for u, x, z in zip(self.u, self.x, self.z, strict=True)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["admm", "elsa"])
def test_it_is_a_loop_over_three_variables(kind):
    loop, moved = Loop(kind == "elsa"), 0
    found = trail(kind)
    for t, (params, state) in enumerate(found):
        if t:
            before = loop.masks
            loop.step(slopes_of(gradients()[t - 1]))
            moved += any(
                (a != b).any() for a, b in zip(before, loop.masks, strict=True)
            )
        for name, tree, wanted in (
            ("x", params, loop.x), ("z", state.split, loop.z), ("u", state.dual, loop.u)
        ):  # fmt: skip
            for a, b in zip(kernels(tree), wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)
        for a, b in zip(kernels(masks_of(state)), loop.masks, strict=True):
            np.testing.assert_array_equal(a, b)
        # No entry has both, which is why one array can hold them.
        for z, u in zip(kernels(state.split), kernels(state.dual), strict=True):
            assert not np.any((z != 0) & (u != 0))
    assert moved >= 2
    # What is not prunable has no penalty, and a scalar for a sum.
    assert found[-1][1].sums["fc1"]["bias"].shape == ()


@pytest.mark.usefixtures("x64")
def test_what_is_cut_is_told():
    for t, (params, state) in enumerate(trail("admm")):
        assert sum(int(m.sum()) for m in kernels(masks_of(state))) == KEPT
        check_state(state)
        pairs = zip(kernels(params), kernels(state.split), strict=True)
        far = math.sqrt(sum(np.sum((x - z) ** 2) for x, z in pairs))
        total = math.sqrt(sum(np.sum(x**2) for x in kernels(params)))
        found = residuals(state, params)
        assert found.primal == pytest.approx(far / total)
        after = swapjax.apply_masks(params, masks_of(state))
        pairs = zip(kernels(params), kernels(after), strict=True)
        lost = math.sqrt(sum(np.sum((x - y) ** 2) for x, y in pairs))
        assert found.cut == pytest.approx(lost / total)
        left = until_mask_step(state)
        assert left == (math.inf if t == STEPS else (1 - t) % EVERY)
        if t < STEPS:
            with pytest.raises(ValueError, match="fc1/kernel"):
                check_state(state, params)
        check_state(state, after)
    # In the end it goes by the weights alone: the cut could take no less.
    want = swapjax.magnitude_masks(params, 0.7)
    assert equal(masks_of(state), want)
    assert found.primal == pytest.approx(found.cut)


def test_the_penalty_is_a_ramp_or_a_schedule():
    params = {"kernel": jnp.asarray([[3.0, 1.0]])}
    still = jax.tree.map(jnp.zeros_like, params)

    def pulls(**options):
        """How far a step of size 1 without gradient moves the entry that would go."""
        tx, found = admm(optax.sgd(1.0), sparsity=0.5, steps=8, **options), []
        step = jax.jit(tx.update, compiler_options=QUICK)
        state = tx.init(params)
        for _ in range(10):
            # Weights stay where they are, and so does z: u is zero until the fourth.
            updates, state = step(still, state, params)
            found.append(-np.asarray(updates["kernel"]))
        return np.concatenate(found)

    ramp = (1 - np.cos(np.pi * np.minimum(np.arange(10), 8) / 8)) / 2
    found = pulls(penalty=0.6, every=100)
    np.testing.assert_allclose(found[:8, 1], 0.6 * ramp[:8], rtol=1e-5)
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-6)
    # By default 78 a run; a schedule is taken as it is.
    np.testing.assert_allclose(pulls(every=100)[4, 1], 78 / 8 / 2, rtol=1e-5)
    given = pulls(penalty=optax.linear_schedule(0.0, 0.7, 7), every=100)
    np.testing.assert_allclose(given[:8, 1], np.arange(8) / 10, rtol=1e-5, atol=1e-7)
    assert not np.any(pulls(penalty=0.0, every=2))
    # That of ELSA stays.
    tx = elsa(optax.adam(1.0), sparsity=0.5, steps=8)
    _, state = tx.update(still, tx.init(params), params)
    want = 0.001 * (78 / 8) ** 2
    np.testing.assert_allclose(state.inner[0].nu["kernel"][0, 1], want, rtol=1e-5)


@pytest.mark.parametrize("make", [admm, elsa])
def test_budgets_are_exact_for_every_plan(make):
    params = initial()
    for plan in (
        swapjax.plan(params, 0.8, overrides={"fc2/kernel": 0.5}),
        swapjax.plan(params, pattern=swapjax.NM(1, 3), include="kernel"),
    ):
        tx = make(optax.adam(0.05), plan=plan, steps=4, every=2)
        step = by_gradients(tx, compiler_options=QUICK)
        for _, state in follow(step, params, tx.init(params), gradients(4)):
            kept = plan.layout.leaf_masks(masks_of(state))
            assert plan.kept_in(masks_of(state)) == plan.kept_in(
                swapjax.magnitude_masks(params, plan=plan)
            )
            for mask, pattern in zip(kept, plan.patterns, strict=True):
                if pattern is not None:
                    groups = np.asarray(mask).reshape(-1, 3, mask.shape[1]).sum(1)
                    assert np.all(groups == 1)


def test_whole_heads_are_cut():
    target = swapjax.plan(
        unit_network.params(), 0.5, pattern=swapjax.Head(), include="attn",
        axes=unit_network.AXES,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, unit_network.params())
    tx = admm(optax.sgd(0.1), plan=target, steps=2, every=1)
    slopes = jax.tree.map(jnp.sin, params)
    step = by_gradients(tx, compiler_options=QUICK)
    _, state = follow(step, params, tx.init(params), [slopes] * 2)[-1]
    leaves = target.layout.leaf_masks(masks_of(state))
    unit_network.require_whole(target.units, leaves)
    assert sum(int(m.sum()) for m in leaves) == target.kept


def test_two_programs_do_what_one_does():
    tx = admm(momentum(), sparsity=0.7, steps=6, every=3, penalty=TOP)
    params = initial()
    one = follow(
        by_gradients(tx, compiler_options=QUICK), params, tx.init(params), gradients(6)
    )
    step = jax.jit(tx.update, static_argnames="mask_step", compiler_options=QUICK)
    state, due = tx.init(params), []
    for gradient, (want, told) in zip(gradients(6), one[1:], strict=True):
        due.append(until_mask_step(state) == 0)
        updates, state = step(gradient, state, params, mask_step=due[-1])
        params = optax.apply_updates(params, updates)
        # Sums are rounded otherwise where XLA fuses them otherwise.
        assert equal(masks_of(state), masks_of(told))
        pairs = zip(*map(jax.tree.leaves, ((params, state), (want, told))), strict=True)
        for found, wanted in pairs:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert due == [False, False, True] * 2


def test_what_one_program_leaves_out_the_next_makes_up_for():
    tx = admm(momentum(), sparsity=0.7, steps=4, every=2, penalty=TOP)
    params, (gradient,) = initial(), gradients(1)
    state = tx.init(params)
    update = jax.jit(tx.update, static_argnames="mask_step", compiler_options=QUICK)
    for _ in range(2):
        assert until_mask_step(state) == (1 if state.count == 0 else 0)
        updates, state = update(gradient, state, params, mask_step=False)
        params = optax.apply_updates(params, updates)
    assert until_mask_step(state) == 0
    before = masks_of(state)
    updates, state = update(gradient, state, params, mask_step=True)
    params = optax.apply_updates(params, updates)
    assert not equal(masks_of(state), before)
    assert until_mask_step(state) == 0  # that of the fourth update


def test_half_precision_sums_in_single():
    tx = admm(optax.sgd(0.1), sparsity=0.5, steps=4, every=1)
    params = initial("bfloat16")
    step = by_gradients(tx, compiler_options=QUICK)
    given = [jax.tree.map(lambda g: g.astype("bfloat16"), g) for g in gradients(4)]
    after, state = follow(step, params, tx.init(params), given)[-1]
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("bfloat16")}
    assert state.sums["fc2"]["kernel"].dtype == jnp.float32
    check_state(state)


def test_members_of_an_ensemble_are_on_their_own():
    tx = elsa(optax.adam(0.05), sparsity=0.7, steps=4, every=2, penalty=TOP)
    nets = [network.make(seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *nets)

    def train(params):
        def step(carry, batch):
            return by_loss(tx).__wrapped__(*carry, batch), None

        data = jax.tree.map(lambda *x: jnp.stack(x), *batches()[:4])
        return jax.lax.scan(step, (params, tx.init(params)), data)[0]

    many, states = jax.jit(jax.vmap(train), compiler_options=QUICK)(stacked)
    kept = masks_of(states)
    assert kept["fc2"]["kernel"].shape == (2, 9, 2)
    alone = jax.jit(train, compiler_options=QUICK)
    for i, net in enumerate(nets):
        params, state = alone(net)
        assert equal(masks_of(state)["fc1"]["kernel"], kept["fc1"]["kernel"][i])
        own = jax.tree.map(lambda x, i=i: x[i], many)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            own, params,
        )  # fmt: skip


SPECS = {
    "fc1": {"kernel": PartitionSpec("model"), "bias": PartitionSpec()},
    "fc2": {"kernel": PartitionSpec(None, "model")},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_is_unsharded(kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    lay = functools.partial(
        jax.tree.map, lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    )
    wide = lambda tree: jax.tree.map(lambda x: x.astype("float64"), tree)  # noqa: E731
    tx = elsa(adam(), sparsity=0.7, steps=STEPS, penalty=TOP, every=EVERY)
    params = lay(initial("float64"), SPECS)
    step = by_gradients(tx, compiler_options=QUICK)
    given = [lay(wide(g), SPECS) for g in gradients()]
    found, state = follow(step, params, tx.init(params), given)[-1]
    assert step._cache_size() <= 2
    want, told = trail("elsa")[-1]
    assert equal(masks_of(state), masks_of(told))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, want)
    for name in ("fc1", "fc2"):
        x = params[name]["kernel"].sharding
        for tree in (masks_of(state), state.sums, found):
            assert tree[name]["kernel"].sharding.is_equivalent_to(x, 2)


def test_parts_of_a_network_have_theirs():
    tx = optax.partition(
        {"a": admm(optax.sgd(0.1), sparsity=0.5, steps=2, every=1),
         "b": elsa(optax.adam(0.1), sparsity=0.75, steps=2, every=1)},
        {"fc1": "a", "fc2": "b"},
    )  # fmt: skip
    params = initial()
    step = by_gradients(tx, compiler_options=QUICK)
    _, state = follow(step, params, tx.init(params), gradients(2))[-1]
    kept = masks_of(state, params)
    assert [int(m.sum()) for m in kernels(kept)] == [27, 5]
    assert kept["fc1"]["bias"].ndim == 0


def test_what_has_no_gradient_is_passed_over():
    tx = elsa(optax.adamw(0.1), sparsity=0.5, steps=2, every=1)
    params = {"kernel": jnp.ones((4, 2)), "steps": jnp.int32(3)}
    slopes = {"kernel": jnp.arange(8.0).reshape(4, 2), "steps": jnp.int32(0)}
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(slopes, state, params)
    assert int(updates["steps"]) == 0
    assert int(masks_of(state)["kernel"].sum()) == 4
