"""Pruned back-propagation as an objective: state, keys, thresholds, transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax import backward
from swapjax.backward import rates
from swapjax.training import Objective, fit

KEY = jax.random.key(5)
FACTOR = 1.6448536 * np.sqrt(np.pi / 2)  # thresholds at 0.9, in means of magnitudes


def loss_fn(params, batch):
    x, y = batch
    h = jax.nn.relu(backward.site(x @ params["in"], "in"))

    def block(h, kernel):
        return jnp.tanh(backward.site(h @ kernel, "stack")), None

    h, _ = jax.lax.scan(jax.checkpoint(block), h, params["stack"])
    return jnp.mean((h @ params["out"] - y) ** 2)


def marked(rate=0.9, **settings):
    return backward.prune_backward(loss_fn, rate=rate, sites="marked", **settings)


def step_of(objective):
    return jax.jit(objective.value_and_grad)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"in": (6, 16), "out": (16, 2), "stack": (3, 16, 16)}
    return {
        name: 0.3 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.fixture(scope="module")
def data():
    x = jax.random.normal(jax.random.key(1), (64, 6))
    return x, x[:, :2] ** 2


@pytest.fixture(scope="module")
def fifo(params, data):
    """An objective, its step, and the states after each of some steps."""
    objective = marked(depth=2, per_site=True)
    traces = []

    @jax.jit
    def step(state, key):
        traces.append(0)
        return objective.value_and_grad(params, state, data, key)

    found, state = [], objective.init(params, data)
    for i in range(5):
        found.append(step(state, jax.random.fold_in(KEY, i)))
        state = found[-1][2]
    assert len(traces) == 1
    return objective, step, found


def test_nothing_is_pruned_until_the_fifo_is_full(params, data, fifo):
    _, _, found = fifo
    wanted = jax.jit(jax.grad(loss_fn))(params, data)
    for gradients, _, _, told in found[:2]:
        assert told["zeros before stack"] == told["zeros after stack"]
        assert told["prediction error"] == 0
        for got, exact in zip(*map(jax.tree.leaves, (gradients, wanted)), strict=True):
            np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
    for _, loss, _, told in found[2:]:
        assert loss == pytest.approx(float(loss_fn(params, data)))
        assert told["zeros after stack"] > told["zeros before stack"] + 0.4


def test_the_fifo_holds_the_last_deviations_and_their_mean_predicts(params, data, fifo):
    _, _, found = fifo
    states = [x[2] for x in found]
    newest = [np.asarray(s.sites["stack"].deviations[:, -1]) for s in states]
    for before, after in zip(states[1:-1], newest[2:], strict=True):
        held = before.sites["stack"]
        np.testing.assert_array_equal(held.filled, 2)
        assert held.deviations.shape == (3, 2)
        assert after.shape == (3,)
    np.testing.assert_array_equal(
        states[-1].sites["stack"].deviations, np.stack(newest[-2:], axis=-1)
    )
    # What a step changes its own gradient to is the predicted threshold.
    g = jax.random.normal(KEY, (5000,))
    levels = FACTOR / np.sqrt(np.pi / 2) * np.mean([[1.0, 3.0]], axis=-1)

    def one_site(p, _):
        return jnp.vdot(g, backward.site(p * 1.0, "a"))

    single = backward.prune_backward(one_site, depth=2, sites="marked")
    state = single.init(g, ())
    site = state.sites["a"]
    full = type(site)(jnp.asarray([1.0, 3.0]), jnp.asarray(2), site.zeros)
    state = type(state)({"a": full}, state.step, state.key, state.repeated)
    pruned = np.asarray(step_of(single)(g, state, (), KEY)[0])
    changed = (pruned != g) & (pruned != 0)
    np.testing.assert_allclose(np.abs(pruned[changed]), levels[0], rtol=1e-5)


def test_running_zeros(fifo):
    _, _, found = fifo
    told = [x[3] for x in found]
    mean = None
    for step in told:
        now = float(step["zeros after in"])
        mean = now if mean is None else 0.9 * mean + 0.1 * now
    assert float(found[-1][2].sites["in"].zeros[1]) == pytest.approx(mean, rel=1e-5)


def test_sites_steps_and_scans_draw_their_own():
    g = jnp.full((3, 400), 0.5)

    def loss(p, _):
        def body(c, row):
            x, weight = row
            return c + jnp.vdot(weight, backward.site(x * 1.0, "scan")), None

        value, _ = jax.lax.scan(body, 0.0, (p["scan"], g))
        for name in ("a", "b"):
            value += jnp.vdot(g[0], backward.site(p[name] * 1.0, name))
        return value

    objective = backward.prune_backward(loss, threshold="exact", sites="marked")
    params = {"a": g[0], "b": g[0], "scan": g}
    state = objective.init(params, ())
    rows, step = [], step_of(objective)
    for i in range(2):
        pruned, _, state, _ = step(params, state, (), jax.random.fold_in(KEY, i))
        rows += [pruned["a"], pruned["b"], *pruned["scan"]]
    correlation = np.corrcoef(np.asarray(rows) != 0) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / np.sqrt(400)


def test_the_gradient_is_without_bias(params, data):
    objective = marked(threshold="exact")
    state = objective.init(params, data)
    keys = jax.random.split(jax.random.key(9), 500)
    pull = lambda key: objective.value_and_grad(params, state, data, key)[0]  # noqa: E731
    every = jax.jit(lambda keys: jax.lax.map(pull, keys, batch_size=100))(keys)
    wanted = jax.jit(jax.grad(loss_fn))(params, data)
    for name in ("in", "out", "stack"):
        seen = np.asarray(every[name], np.float64)
        error = seen.std(axis=0) / np.sqrt(len(keys))
        assert np.all(np.abs(seen.mean(axis=0) - wanted[name]) <= 5 * error + 1e-6)
    hard = marked(threshold="exact", pruning="hard")
    biased = step_of(hard)(params, state, data, KEY)[0]
    cosine = lambda a, b: float(  # noqa: E731
        jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    )
    mean = jnp.mean(every["in"], axis=0)
    assert cosine(mean, wanted["in"]) > cosine(biased["in"], wanted["in"])


def test_a_schedule_and_rates_by_site(params, data):
    objective = marked(
        {"^in$": lambda step: jnp.where(step < 1, 0.0, 0.9), "st.*ck": 0.5},
        threshold="exact", per_site=True,
    )  # fmt: skip
    traces = []

    @jax.jit
    def step(state, key):
        traces.append(0)
        return objective.value_and_grad(params, state, data, key)[2:]

    state, told = step(objective.init(params, data), KEY)
    assert told["zeros after in"] == told["zeros before in"]
    assert 0.2 < told["zeros after stack"] < 0.5
    state, told = step(state, jax.random.fold_in(KEY, 1))
    assert told["zeros after in"] > told["zeros before in"] + 0.15
    assert len(traces) == 1
    one = marked({"in": 0.9})
    assert list(one.init(params, data).sites) == ["in"]
    outside = marked(lambda step: jnp.asarray(0.5) + step, threshold="exact")
    state = outside.init(params, data)
    step = step_of(outside)
    *_, state, told = step(params, state, data, KEY)
    assert told["zeros after"] > told["zeros before"]
    *_, told = step(params, state, data, jax.random.key(1))
    assert told["zeros after"] == told["zeros before"]  # 1.5 is no rate


def deep(params, x):
    for name in ("a", "b", "c"):
        x = jax.nn.relu(x @ params[name])
    return jnp.mean((x @ params["d"]) ** 2)


@pytest.fixture(scope="module")
def network():
    keys = jax.random.split(jax.random.key(2), 5)
    names = zip("abcd", keys, strict=False)
    return {name: jax.random.normal(key, (32, 32)) / 6 for name, key in names}, (
        jax.random.normal(keys[4], (16, 32))
    )


def test_inputs_alone_see_what_is_pruned(network):
    params, x = network
    objective = backward.prune_backward(
        deep, threshold="exact", where="inputs", per_site=True
    )
    state = objective.init(params, x)
    assert list(state.sites) == ["b"]  # what comes back to c passes the classifier
    gradients, _, new, told = step_of(objective)(params, state, x, KEY)
    wanted = jax.jit(jax.grad(deep))(params, x)
    for name in "bcd":
        np.testing.assert_allclose(gradients[name], wanted[name], rtol=1e-5, atol=1e-7)
    assert not np.allclose(gradients["a"], wanted["a"], rtol=1e-2)
    # The threshold is that of the entries that the activation has let through.
    before, after = (float(told[f"zeros {when} b"]) for when in ("before", "after"))
    fraction = (after - before) / (1 - before)
    assert fraction == pytest.approx(backward.expected_zeros(0.9), abs=0.15)
    assert new.sites["b"].filled == 1
    with pytest.raises(ValueError, match="other zeros for its two products"):
        backward.measure(objective, params, state, x, KEY)


def test_a_branch_that_is_not_taken_tells_nothing(data):
    def loss(p, batch):
        x, _ = batch
        h = jax.lax.cond(
            jnp.sum(x) > 1e9,
            lambda h: backward.site(h @ p, "never"),
            lambda h: backward.site(h @ p.T, "always"),
            x,
        )
        return jnp.mean(jnp.sin(h) ** 2)

    objective = backward.prune_backward(loss, sites="marked")
    p = jax.random.normal(KEY, (6, 6))
    state = step_of(objective)(p, objective.init(p, data), data, KEY)[2]
    assert {name: int(x.filled) for name, x in state.sites.items()} == {
        "always": 1,
        "never": 0,
    }


def test_members_of_an_ensemble(params, data):
    objective = marked(threshold="exact")
    state = objective.init(params, data)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    step = jax.jit(jax.vmap(objective.value_and_grad, (0, None, None, None)))
    gradients, losses, new, _ = step(twice, state, data, KEY)
    assert losses[0] == losses[1]
    assert not np.array_equal(*gradients["in"])  # masks of their own
    np.testing.assert_allclose(*new.sites["stack"].deviations[..., -1], rtol=0.5)


def test_devices_with_parts_of_a_batch(params, data):
    """Under jit sums are global; under shard_map with an axis_name, too."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.PartitionSpec(*axes) for axes in (("d",), ()))
    place = lambda x: jax.device_put(  # noqa: E731
        x, jax.sharding.NamedSharding(mesh, rows)
    )
    alone = marked(threshold="exact")
    state = alone.init(params, data)
    step = jax.jit(alone.value_and_grad)
    single = step(params, state, data, KEY)
    sharded = step(params, state, jax.tree.map(place, data), KEY)
    for a, b in zip(*map(jax.tree.leaves, (single, sharded)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    objective = marked(threshold="exact", axis_name="d")

    def step_of_part(params, state, batch, key):
        params = jax.tree.map(lambda x: jax.lax.pcast(x, "d", to="varying"), params)
        gradients, loss, new, told = objective.value_and_grad(params, state, batch, key)
        return jax.lax.pmean((gradients, loss), "d"), new, told

    apart = jax.shard_map(
        step_of_part, mesh=mesh, in_specs=(whole, whole, rows, whole), out_specs=whole
    )
    (_, loss), new, told = jax.jit(apart)(params, state, data, KEY)
    assert loss == pytest.approx(float(single[1]), rel=1e-5)
    for name in ("zeros before", "zeros after"):
        assert told[name] == pytest.approx(float(single[3][name]), abs=0.03)
    # Means over parts of a batch are of losses twice as large.
    np.testing.assert_allclose(
        new.sites["stack"].deviations[:, -1],
        2 * single[2].sites["stack"].deviations[:, -1], rtol=0.1,
    )  # fmt: skip


def test_sparse_weights_and_pruned_gradients_in_one_loop(params, data, tmp_path):
    """And a run that was stopped ends bit for bit as one that was not."""
    tx = swapjax.sparse(
        optax.adam(1e-2), swapjax.gmp(),
        plan=swapjax.plan(params, sparsity=0.75, include="stack"),
        schedule=swapjax.cubic(0, 12, every=4),
    )  # fmt: skip
    objective = marked(0.7, per_site=True)

    def run(path=None, stop=None):
        def callback(epoch):
            if epoch.epoch == stop:
                raise InterruptedError

        return fit(
            objective, params, tx, data, epochs=6, batch=16, key=KEY,
            checkpoint=path, callback=callback,
        )  # fmt: skip

    fitted = run()
    kernel = np.asarray(fitted.params["stack"])
    assert (kernel == 0).sum() == 0.75 * kernel.size
    np.testing.assert_array_equal(kernel != 0, swapjax.masks_of(fitted.state)["stack"])
    first, *_, last = fitted.history
    assert first.told["zeros after"] == first.told["zeros before"]
    assert last.told["zeros after stack"] > last.told["zeros before stack"] + 0.2
    assert last.loss < first.loss
    with pytest.raises(InterruptedError):
        run(tmp_path / "run", stop=2)
    resumed = run(tmp_path / "run")
    for a, b in zip(*map(jax.tree.leaves, (fitted[:2], resumed[:2])), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [e.told for e in resumed.history] == [e.told for e in fitted.history]


def test_an_objective_that_draws_keeps_what_it_draws(params, data):
    def drops(params, state, batch, key):
        x, y = batch
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        loss = loss_fn(params, (jnp.where(kept, x, 0), y))
        return loss, state + 1, {"kept": jnp.mean(kept)}

    inner = Objective(drops, init=lambda params, batch: jnp.zeros((), jnp.int32))
    outer = backward.prune_backward(inner, rate=0.0, sites="marked")
    state = outer.init(params, data)
    got = step_of(outer)(params, state, data, KEY)
    wanted = step_of(inner)(params, state.inner, data, KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got[:2], wanted[:2]
    )
    assert got[2].inner == 1
    assert got[3]["kept"] == pytest.approx(float(wanted[3]["kept"]))
    alone, after, _ = outer.loss(params, state, data, KEY)
    assert (alone, after.inner) == (pytest.approx(float(wanted[1])), 1)
    again = Objective(drops, gradient=inner.value_and_grad)
    with pytest.raises(ValueError, match="a gradient of its own"):
        backward.prune_backward(again)


def test_a_key_for_two_steps_is_found(params, data, fifo):
    objective, step, found = fifo
    state = found[-1][2]
    backward.require_fresh_keys(state)
    last = jax.random.fold_in(KEY, 4)
    with pytest.raises(ValueError, match="key: it is that of the step before"):
        objective.value_and_grad(params, state, data, last)
    with pytest.raises(ValueError, match="key: 1 of 6 steps had the key of the step"):
        backward.require_fresh_keys(step(state, last)[2])


def test_a_schedule_that_leaves_its_range_is_told(params, data):
    rate = {"a": lambda step: 0.6 * (step + 1), "b": 0.5}
    assert rates.outside(rate, jnp.int32(0)) == 0
    assert rates.outside(rate, jnp.int32(1)) == 1
    assert rates.outside({**rate, "c": lambda step: 0.1}, jnp.int32(1)) == 0.5
    assert rates.outside(0.5, jnp.int32(1)) is None


def test_no_derivative_of_a_pruned_gradient(params, data):
    objective = marked(threshold="exact")
    state = objective.init(params, data)
    pruned = lambda p: objective.value_and_grad(p, state, data, KEY)[0]  # noqa: E731
    norm = lambda p: jnp.sum(pruned(p)["in"] ** 2)  # noqa: E731
    with pytest.raises(ValueError, match="do not pass where gradients are pruned"):
        jax.eval_shape(lambda p: jax.jvp(pruned, (p,), (p,)), params)
    with pytest.raises(ValueError, match="do not pass where gradients are pruned"):
        jax.eval_shape(jax.grad(norm), params)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"rate": -0.1}, r"rate must be in \[0, 1\), got -0.1"),
        ({"rate": lambda step: 1.0 + step}, r"rate at step 0 must be in \[0, 1\)"),
        ({"rate": lambda step: jnp.zeros(2)}, "a schedule must return one number"),
        ({"rate": {}}, "rate: a mapping needs a pattern"),
        ({"rate": {"in": 2}}, r"rate\['in'\] must be in \[0, 1\), got 2"),
        ({"rate": "much"}, r"rate must be in \[0, 1\), got 'much'"),
        ({"depth": 0}, "depth must be 1 or more"),
        ({"threshold": "mean"}, "threshold must be 'fifo' or 'exact', got 'mean'"),
        ({"pruning": "soft"}, "pruning must be 'stochastic' or 'hard'"),
        ({"where": "weights"}, "where must be 'both' or 'inputs'"),
        ({"where": "inputs", "sites": "marked"}, "not for marks"),
        ({"sites": ()}, "sites must be 'auto', 'marked' or regular expressions"),
    ],
)
def test_bad_arguments(settings, said):
    with pytest.raises(ValueError, match=said):
        backward.prune_backward(loss_fn, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": {"none": 0.5}}, "rate: 'none' matches none of the sites in, stack"),
        ({"rate": {"in": 0.5, "i": 0.6}}, "'in' and 'i' both match the site in"),
        ({"rate": {"(": 0.5}}, r"rate: '\(' is not a regular expression"),
    ],
)
def test_bad_patterns(settings, said, params, data):
    with pytest.raises(ValueError, match=said):
        marked(**settings).init(params, data)


def test_bad_losses(params, data, network):
    weights, x = network
    with pytest.raises(ValueError, match="loss_fn must be a function"):
        backward.prune_backward(3)
    for loss in (lambda p, x: jnp.sum(p["a"]), lambda p, x: jnp.sum(x)):
        with pytest.raises(ValueError, match="loss_fn: must multiply a leaf of params"):
            backward.prune_backward(loss).init(weights, x)
    with pytest.raises(ValueError, match="no site to prune gradients at"):
        backward.prune_backward(lambda p, x: jnp.sum(x @ p["a"])).init(weights, x)
    with pytest.raises(ValueError, match=r"no site .* mark some"):
        backward.prune_backward(deep, sites="marked").init(weights, x)
    with pytest.raises(ValueError, match="sites: 'z' matches none of the sites b"):
        backward.prune_backward(deep, sites="z").init(weights, x)

    def twice(p, x):
        return jnp.sum(backward.site(backward.site(x @ p["a"], "a"), "a"))

    with pytest.raises(ValueError, match="a is used twice"):
        backward.prune_backward(twice, sites="marked").init(weights, x)
    one = marked()
    state = backward.prune_backward(deep).init(weights, x)
    with pytest.raises(ValueError, match="state: it is of another network, with"):
        one.value_and_grad(params, state, data, KEY)
    with pytest.raises(ValueError, match="another network or depth, in has"):
        one.value_and_grad(params, marked(depth=3).init(params, data), data, KEY)
    reports = Objective(lambda p, s, b, k: (loss_fn(p, b), s, {"zeros after": 1.0}))
    both = backward.prune_backward(reports, sites="marked")
    state = both.init(params, data)
    with pytest.raises(ValueError, match="reports what is reported here, zeros after"):
        jax.eval_shape(both.value_and_grad, params, state, data, KEY)
