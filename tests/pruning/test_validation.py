"""Other examples judge than those that gradients are taken of."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from interrupts import stop_at
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from prune_runs import KEY, LR, prune
from trees import equal

import swapjax
from swapjax import Status
from swapjax.pruning import stage

DAMPINGS = (1e-4, 1e-1, 10.0)
CHOOSERS = {
    "linear_regression": {"damping": DAMPINGS, "support": "magnitude"},
    "swap": {"damping": DAMPINGS, "support": "magnitude", "target": "smoothed"},
    "chita": {"damping": DAMPINGS, "first_order": True},
    "woodfisher": {"damping": DAMPINGS, "first_order": True},
    "cbs": {"damping": DAMPINGS, "start": "obd"},
}


def own(params, n=37, seed=5):
    """Examples of another teacher, so that its choices are others."""
    x, noise = network.data(n, seed, outputs=3)
    return np.asarray(x), np.asarray(-network.apply(params, x) + 0.1 * noise)


@pytest.fixture
def seen(problem, monkeypatch):
    """Run OBD, and look at the problem of each stage."""
    found, solve = [], stage.solve

    def look(method, given, budget, functions):
        found.append(given)
        return solve(method, given, budget, functions)

    def run(**options):
        found.clear()
        pruned = prune(problem, method=swapjax.obd(), **options)
        return tuple(found), pruned

    monkeypatch.setattr(stage, "solve", look)
    return run


@pytest.mark.parametrize("storage", ["stored", "matrix-free"])
def test_a_fraction_is_held_out_of_each_stage(seen, storage):
    options = {"samples": 20, "batch": 3, "stages": 2, "storage": storage}
    whole, _ = seen(**options)
    parts, pruned = seen(validation=0.3, **options)
    for all_of_it, part, record in zip(whole, parts, pruned.history, strict=True):
        rows, judge = (getattr(part.rows, "source", part.rows), part.validation)
        assert (rows.n, judge.n, judge.batch) == (14, 6, 3)
        assert all_of_it.validation is None
        drawn = getattr(all_of_it.rows, "source", all_of_it.rows).examples
        for x, a, b in zip(drawn, rows.examples, judge.examples, strict=True):
            np.testing.assert_array_equal(x, np.concatenate([a, b]))
        x, y = (np.concatenate(part) for part in judge.examples)
        before = network.loss_fn(rows.params, (x, y))
        assert record.loss_before == pytest.approx(float(before), rel=1e-5)


def test_a_share_is_one_row_at_least_and_leaves_one(seen):
    for fraction, held in ((1e-9, 1), (0.999, 4)):
        (found,), _ = seen(samples=5, validation=fraction)
        assert (found.rows.n, found.validation.n) == (5 - held, held)


@pytest.mark.parametrize("name", CHOOSERS)
def test_a_method_chooses_by_examples_of_ones_own(problem, name):
    data = own(problem[0])
    make = getattr(swapjax, name)

    def run(damping, **options):
        method = make(**CHOOSERS[name] | {"damping": damping})
        pruned = prune(problem, method=method, **options)
        return pruned, float(network.loss_fn(pruned.params, data))

    judged, loss = run(DAMPINGS, validation=data)
    record = judged.history[-1]
    assert record.loss == pytest.approx(loss, rel=1e-5)
    assert record.details["loss"] == pytest.approx(loss, rel=1e-5)
    assert loss < run(DAMPINGS)[1]
    if name == "linear_regression":
        losses = [run(lam, validation=data)[1] for lam in DAMPINGS]
        assert loss == pytest.approx(min(losses), rel=1e-5)


def test_a_refit_that_only_the_rows_like_is_not_taken(problem):
    params, (x, y) = problem
    plain = prune(problem, method=swapjax.magnitude())

    def halve(problem, budget):
        found = swapjax.magnitude().solve(problem, budget)
        return found._replace(weights=tuple(w / 2 for w in found.weights))

    method = swapjax.pruning.Method("halved", (), halve, needs_rows=False)
    small = x, np.zeros_like(y)
    taken = prune((params, small), method=method)
    assert taken.history[0].status is Status.CONVERGED
    data = x, np.asarray(network.apply(plain.params, x))
    judged = prune((params, small), method=method, validation=data)
    assert judged.history[0].status is Status.NOT_REFITTED
    assert equal(judged.params, plain.params)


def test_sets_give_whole_rows_and_no_more_than_a_stage_draws(problem, seen):
    params, _ = problem
    sizes = {37: (12, 3), 2: (1, 2), 500: (20, 3)}
    for total, wanted in sizes.items():
        data = own(params, total)
        (found,), _ = seen(samples=20, batch=3, validation=data)
        assert (found.validation.n, found.validation.batch) == wanted
        drawn = np.concatenate(np.asarray(found.validation.examples[0]))
        assert len(np.unique(drawn[:, 0])) == len(drawn)
        assert np.isin(drawn, data[0]).all()
    streamed = (params, iter([problem[1]]))
    method = swapjax.magnitude()
    pruned = prune(streamed, method=method, validation=own(params), key=None)
    assert np.isfinite(pruned.history[0].loss_before)


def test_what_judges_is_compiled_once_for_all_stages(problem):
    params, data = problem
    traced = []

    def loss_fn(params, batch):
        traced.append(1)
        return network.loss_fn(params, batch)

    def count(stages, validation):
        traced.clear()
        swapjax.prune(
            loss_fn, params, data, sparsity=0.8, method=LR, samples=30, key=KEY,
            stages=stages, validation=validation,
        )  # fmt: skip
        return len(traced)

    for validation in (0.25, own(params)):
        count(1, validation)
        assert count(4, validation) == 1  # a look at what the loss holds


@pytest.mark.parametrize("kind", ["fraction", "set"])
def test_a_killed_run_goes_on_with_the_same_judge(problem, tmp_path, kind):
    judges = {"fraction": (0.25, 0.5), "set": (own(problem[0]), own(problem[0], 36))}
    state, (judge, other) = tmp_path / "state", judges[kind]
    options = {"stages": 3, "validation": judge}
    whole = prune(problem, **options)
    with pytest.raises(KeyboardInterrupt):
        prune(problem, checkpoint=state, callback=stop_at(stage=2), **options)
    assert equal(prune(problem, checkpoint=state, **options).params, whole.params)
    for another in (other, None):
        with pytest.raises(ValueError, match=r"another run \(validation"):
            prune(problem, checkpoint=state, **options | {"validation": another})


def test_examples_over_devices_judge_alike():
    params, data = network.to_shard()
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("d",))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    others = network.data(31, 3, inputs=8, outputs=4)

    def run(params, data, validation):
        return swapjax.prune(
            network.loss_fn, params, data, sparsity=0.6, samples=30, key=KEY,
            method=LR, validation=validation,
        )  # fmt: skip

    spread = jax.device_put(params, everywhere), jax.device_put(data, rows)
    for validation in (0.3, others):
        here, there = run(params, data, validation), run(*spread, validation)
        assert there.history[0].loss == pytest.approx(here.history[0].loss, rel=1e-4)
        for a, b in zip(
            *map(network.kernels, (here.params, there.params)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


X = jnp.ones((8, 6)), jnp.ones((8, 3))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (0.0, r"must be a fraction in \(0, 1\) .* got 0.0"),
        (1, r"must be a fraction in \(0, 1\) .* got 1"),
        (True, "got True"),
        (float("nan"), "got nan"),
        (X[0], "must have the tree of data"),
        ({"x": X[0]}, "must have the tree of data"),
        ((X[0][:, :5], X[1]), r"0 must have the shape \('any', 6\) of data, got"),
        ((jnp.float32(1), X[1]), r"0 must have the shape .*, got \(\)"),
        ((X[0], X[1].astype(int)), "1 must be float32 as in data, got int32"),
        ((X[0], X[1][:5]), "arrays with one leading axis of examples"),
        ((X[0][:0], X[1][:0]), "there are no examples in it"),
        ((X[0] * jnp.nan, X[1]), r"NaN or infinite entries in 0"),
        (iter([X]), "no iterator"),
    ],
)
def test_what_cannot_judge_is_an_error(problem, validation, message):
    with pytest.raises(ValueError, match=f"^validation:? .*{message}"):
        prune(problem, validation=validation)


def test_a_judge_without_data_or_of_one_row_is_an_error(problem):
    with pytest.raises(ValueError, match=r"^validation: there is no loss to ask"):
        swapjax.prune(
            None, problem[0], sparsity=0.5, method=swapjax.magnitude(), validation=0.5
        )
    with pytest.raises(ValueError, match=r"^validation: .* draws 1 of them"):
        prune(problem, samples=1, validation=0.5)


def test_a_set_may_hold_keys(problem):
    """As data do whose weights are read from analog memory."""
    params, (x, y) = problem
    batch = x, y, jax.random.split(KEY, len(x))
    own = jax.tree.map(lambda a: a[:10], batch)

    def run(validation):
        return swapjax.prune(
            lambda params, batch: network.loss_fn(params, batch[:2]), params, batch,
            sparsity=0.5, method=swapjax.magnitude(), validation=validation,
        )  # fmt: skip

    assert np.isfinite(run(own).history[0].loss)
    with pytest.raises(ValueError, match="validation: 2 must be key<fry> as in data"):
        run((*own[:2], np.zeros(10, np.uint32)))
