"""Every rule of sparse training with every optimizer, wherever params come from."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from network import kernels
from sparse_runs import (
    FINAL,
    KEY,
    QUICK,
    STEPS,
    batches,
    by_gradients,
    by_loss,
    choose,
    counts,
    follow,
    gradients,
    initial,
    one_of,
)
from trees import equal

import swapjax
from swapjax import constant, cubic
from swapjax.training import check_state, masks_of, rigl, sparse
from swapjax.training.rule import follow as rises
from swapjax.training.rule import stay
from swapjax.training.rules import RULES as TABLE

RULES = {name: entry.factory() for name, entry in TABLE.items()}

RULES["rigl skipping"] = rigl(skip_update=True)

OPTIMIZERS = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(0.02),
    "adamw": optax.adamw(0.02, weight_decay=0.1),
    "lion": optax.lion(0.01),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.02)),
    "muon": optax.contrib.muon(0.02),
    "adafactor": optax.adafactor(0.02, min_dim_size_to_factor=2),
}

MASK_STEPS = 2, 4, 6, 8


def schedule_of(name):
    if RULES[name].levels is rises:
        return cubic(2, 8, every=2, initial=0.4)
    return None if RULES[name].choose is None else constant(2, 8, every=2)


def make(name, optimizer, key=KEY, **options):
    settings = {"sparsity": FINAL, "schedule": schedule_of(name), "steps": STEPS}
    return sparse(optimizer, RULES[name], key=key, **(settings | options))


def expected(name, params):
    """The plan of each number of updates, by formulas."""
    target = swapjax.plan(params, FINAL)
    final, first = Fraction(7, 10), Fraction(4, 10)
    plans, now = [], target.at(0)
    stays = RULES[name].levels is stay
    if RULES[name].begin == "random":
        layered = swapjax.plan(params, FINAL, allocation="erk")
        now = layered if stays else layered.at(first)
    for t in range(STEPS + 1):
        if t in MASK_STEPS and not stays:
            i = MASK_STEPS.index(t)
            level = final + (first - final) * (1 - Fraction(i, 3)) ** 3
            if name == "acdc":
                level = final if i % 2 else Fraction(0)
            now = target.at(level)
        plans.append(now)
    return plans


def by_group(plan, state):
    found = [0] * len(plan.keep)
    for group, count in zip(plan.groups, counts(state), strict=True):
        found[group] += count
    return tuple(found)


def avals(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), x.dtype), tree)


@functools.cache
def start():
    """Params of two precisions, so that each rule meets both in one program."""
    params = initial()
    narrow = params["fc2"]["kernel"].astype(jnp.bfloat16)
    return params | {"fc2": {"kernel": narrow}}


@functools.cache
def table(rule):
    """The trajectory of every optimizer, by one compiled step."""
    params = start()
    tx = make(rule, one_of(list(OPTIMIZERS.values())))
    state = tx.init(params)
    assert avals(state) == avals(jax.eval_shape(tx.init, params))
    step = by_loss(tx, compiler_options=QUICK)
    trails = {
        name: follow(step, params, choose(state, i), batches())
        for i, name in enumerate(OPTIMIZERS)
    }
    assert step._cache_size() == 1
    return trails, step


@pytest.mark.parametrize("rule", RULES)
class TestContract:
    """Rule by rule, each with all optimizers, in float32 and bfloat16."""

    def test_counts_are_exact_and_zeros_are_zeros(self, rule):
        trails, _ = table(rule)
        plans = expected(rule, start())
        for name, trail in trails.items():
            for t, (params, state) in enumerate(trail):
                masks = masks_of(state)
                assert by_group(plans[t], state) == plans[t].keep, (name, t)
                assert jax.tree.map(jnp.shape, masks)["fc1"]["bias"] == ()
                assert {m.dtype.name for m in jax.tree.leaves(masks)} == {"bool"}
                assert avals(params) == avals(start())
                assert int(state.count) == t
                for p, m in zip(kernels(params), kernels(masks), strict=True):
                    assert np.isfinite(p.astype(np.float32)).all(), (name, t)
                    if t:
                        assert not p[~m].any(), (name, t)
            check_state(trail[-1][1])

    def test_masks_change_at_mask_steps_and_only_there(self, rule):
        trails, _ = table(rule)
        plans = expected(rule, start())
        for name, trail in trails.items():
            masks = [kernels(masks_of(state)) for _, state in trail]
            moved = {
                t for t in range(1, STEPS + 1) if not equal(masks[t - 1], masks[t])
            }
            due = set() if rule == "static" else set(MASK_STEPS)
            if RULES[rule].goes_on:
                due |= {10, 12}
            assert moved <= due, name
            assert {t for t in due if plans[t].keep != plans[t - 1].keep} <= moved, name
            assert bool(moved) == (rule != "static"), name

    def test_active_weights_move_and_what_is_not_prunable_does(self, rule):
        trails, _ = table(rule)
        for name, trail in trails.items():
            for t in range(1, STEPS + 1):
                (old, before), (new, after) = trail[t - 1], trail[t]
                same = [
                    bool(((a == b) | ~(m & n)).all())
                    for a, b, m, n in zip(
                        kernels(old),
                        kernels(new),
                        kernels(masks_of(before)),
                        kernels(masks_of(after)),
                        strict=True,
                    )
                ]
                still = rule == "rigl skipping" and t in MASK_STEPS
                assert all(same) == still, (name, t)
                assert equal(old["fc1"]["bias"], new["fc1"]["bias"]) == still, (name, t)

    def test_the_key_is_all_that_is_random(self, rule):
        trails, step = table(rule)
        params = start()
        first = next(iter(trails.values()))
        for key, same in ((jax.random.key(0), True), (jax.random.key(5), False)):
            tx = make(rule, one_of(list(OPTIMIZERS.values())), key=key)
            trail = follow(step, params, tx.init(params), batches())
            if same:
                assert equal(trail[-1], first[-1])
            else:
                alike = equal(masks_of(trail[-1][1]), masks_of(first[-1][1]))
                assert alike == (not RULES[rule].needs_key)
        assert step._cache_size() == 1

    def test_a_key_is_needed_where_it_decides_and_nowhere_else(self, rule):
        trails, _ = table(rule)
        if RULES[rule].needs_key:
            said = f"key: {RULES[rule].name} draws at random and needs a PRNG key, got "
            with pytest.raises(ValueError, match=said + "None"):
                make(rule, one_of(list(OPTIMIZERS.values())), key=None)
            return
        params = start()
        tx = make(rule, one_of(list(OPTIMIZERS.values())), key=None)
        assert avals(tx.init(params)) == avals(trails["momentum"][0][1])
        keyless = by_loss(tx, compiler_options=QUICK)
        trail = follow(keyless, params, tx.init(params), batches())
        for (p, s), (q, r) in zip(trail, trails["momentum"], strict=True):
            assert equal(p, q)
            assert equal(s._replace(key=r.key), r)

    def test_a_run_goes_on_from_a_file_as_if_nothing_were(self, rule, tmp_path):
        trails, step = table(rule)
        # Another optimizer with each rule; files take longer than all else here.
        turn = list(RULES).index(rule)
        trail = trails[list(OPTIMIZERS)[turn % len(OPTIMIZERS)]]
        restored = through_a_file(trail[5], tmp_path, trail[5])
        assert equal(restored, trail[5])
        # Arrays of no device in particular, as those that the step was compiled for.
        restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), restored)
        rest = follow(step, *restored, batches()[5:])
        assert equal(rest[-1], trail[-1])
        assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [("rigl skipping", "momentum"), ("granet", "adam"), ("ste", "muon")],
)
def test_one_of_many_optimizers_is_as_that_one_alone(rule, optimizer):
    tx = make(rule, OPTIMIZERS[optimizer])
    params = start()
    step = by_loss(tx)
    alone = follow(step, params, tx.init(params), batches())
    assert step._cache_size() == 1
    for (p, s), (q, r) in zip(alone, table(rule)[0][optimizer], strict=True):
        assert equal(masks_of(s), masks_of(r))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), p, q)


def test_compiled_or_not_it_is_the_same():
    tx = make("granet-st", optax.adam(0.02), schedule=cubic(1, 2, initial=0.4))
    params = initial()
    state = tx.init(params)
    one = follow(by_loss(tx), params, state, batches()[:2])
    other = follow(by_loss(tx).__wrapped__, params, state, batches()[:2])
    for (p, s), (q, r) in zip(one, other, strict=True):
        assert equal(masks_of(s), masks_of(r))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), p, q)
    assert not equal(masks_of(one[0][1]), masks_of(one[2][1]))


SPECS = {
    "fc1": {"kernel": PartitionSpec("model"), "bias": PartitionSpec()},
    "fc2": {"kernel": PartitionSpec(None, "model")},
}


def put_as(x, like):
    return jax.device_put(x, like.sharding)


@pytest.mark.usefixtures("x64")
class TestSharded:
    """Params over one axis of a mesh, examples over the other."""

    def lay(self, kind):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        placed = jax.tree.map(put, initial("float64"), SPECS)
        rows = PartitionSpec("data")
        return placed, [(put(x, rows), put(y, rows)) for x, y in batches("float64")]

    @pytest.mark.parametrize("rule", RULES)
    def test_sharded_is_unsharded(self, rule):
        tx = make(rule, optax.adam(0.02))
        step = by_loss(tx, compiler_options=QUICK)
        params = initial("float64")
        one = follow(step, params, tx.init(params), batches("float64"))
        placed, data = self.lay(AxisType.Auto)
        step = by_loss(tx, compiler_options=QUICK)
        many = follow(step, placed, tx.init(placed), data)
        assert step._cache_size() == 1
        for (p, s), (q, r) in zip(one, many, strict=True):
            assert equal(masks_of(s), masks_of(r))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), p, q)
            for x, m in zip(
                jax.tree.leaves(q), jax.tree.leaves(masks_of(r)), strict=True
            ):
                assert m.ndim == 0 or m.sharding.is_equivalent_to(x.sharding, m.ndim)

    @pytest.mark.parametrize("rule", ["granet", "acdc"])
    def test_a_mesh_with_explicit_axes_will_do(self, rule):
        """Optax alone compiles a second time there, after its first step."""
        tx = make(rule, optax.adam(0.02))
        params, (placed, _) = initial("float64"), self.lay(AxisType.Explicit)
        given = jax.tree.map(lambda g: g.astype("float64"), gradients())
        spread = [jax.tree.map(put_as, g, placed) for g in given]
        ends = []
        for start, slopes in ((params, given), (placed, spread)):
            step = by_gradients(tx, compiler_options=QUICK)
            ends.append(follow(step, start, tx.init(start), slopes)[-1])
            assert step._cache_size() <= 2
        (p, s), (q, r) = ends
        assert equal(masks_of(s), masks_of(r))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), p, q)
        for name in ("fc1", "fc2"):
            mask = masks_of(r)[name]["kernel"]
            assert mask.sharding.is_equivalent_to(placed[name]["kernel"].sharding, 2)


def through_a_file(tree, folder, like):
    """Save by orbax, and restore."""
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like
    )
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder / "run", tree)
        return saver.restore(folder / "run", target)


@pytest.mark.parametrize("rule", ["granet-st", "ste"])
def test_a_transformation_that_has_seen_no_params_goes_on_from_a_file(rule, tmp_path):
    """As in a new process, with masks to stay within."""
    within = jax.tree.map(lambda x: jnp.ones(x.shape, bool), initial())
    tx, again = (make(rule, optax.adamw(0.02), within=within) for _ in range(2))
    params = initial()
    step = by_loss(tx, compiler_options=QUICK)
    whole = follow(step, params, tx.init(params), batches())
    like = jax.eval_shape(lambda p: (p, again.init(p)), initial())
    restored = through_a_file(whole[5], tmp_path, like)
    assert equal(restored, whole[5])
    step = by_loss(again, compiler_options=QUICK)
    assert equal(follow(step, *restored, batches()[5:])[-1], whole[-1])
