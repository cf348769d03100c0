"""Something else than the loss judges."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from prune_runs import KEY, prune
from trees import equal

import swapjax
from swapjax import Status

DAMPINGS = (1e-4, 1e-1, 10.0)
BY_HARM = swapjax.linear_regression(ridge="kfac", kappa=1.0, first_order=False)


def errors(params, batch):
    x, y = batch
    return jnp.mean(jnp.argmax(network.apply(params, x), 1) != jnp.argmax(y, 1))


def test_the_loss_as_a_criterion_changes_nothing(problem):
    method = swapjax.linear_regression(damping=DAMPINGS)
    plain = prune(problem, method=method, stages=2)
    same = prune(problem, method=method, stages=2, criterion=network.loss_fn)
    assert equal(plain.masks, same.masks)
    for a, b in zip(*map(jax.tree.leaves, (plain.params, same.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_criterion_chooses_and_is_what_details_tell(problem):
    _, data = problem
    method = swapjax.linear_regression(damping=DAMPINGS, first_order=False)
    each = [
        prune(problem, samples=200, criterion=errors, method=one)
        for one in (
            swapjax.linear_regression(damping=lam, first_order=False)
            for lam in DAMPINGS
        )
    ]
    best = prune(problem, samples=200, criterion=errors, method=method)
    rates = [float(errors(p.params, data)) for p in (*each, best)]
    assert rates[-1] == pytest.approx(min(rates))
    assert best.history[0].details["loss"] == pytest.approx(rates[-1])


def test_a_refit_that_the_criterion_finds_worse_is_not_taken(problem):
    def zero(params, batch):
        return sum(
            jnp.sum(jnp.abs(w)) for w in jax.tree.leaves(params)
        ) + 0 * network.loss_fn(params, batch)

    def double(problem, budget):
        found = swapjax.magnitude().solve(problem, budget)
        return found._replace(weights=tuple(2 * w for w in found.weights))

    method = swapjax.pruning.Method("doubled", (), double, needs_rows=False)
    judged = prune(problem, method=method, criterion=zero)
    assert judged.history[0].status is Status.NOT_REFITTED
    assert equal(judged.params, prune(problem, method=swapjax.magnitude()).params)


def losses_of_examples(params, data):
    x, y = data
    each = [
        network.loss_fn(params, (x[i : i + 1], y[i : i + 1])) for i in range(len(x))
    ]
    return np.array(each, float)


def harm_of(params, trained, data, unit):
    """What examples lose, the obvious way."""
    before, after = (
        1 - np.exp(-losses_of_examples(p, data) / unit) for p in (trained, params)
    )
    return np.mean(np.maximum(after - before, 0))


def without_kernels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, w: w * (path[-1].key != "kernel"), params
    )


@pytest.mark.parametrize("validation", [None, 0.3])
def test_harm_takes_examples_one_by_one(problem, validation):
    """Against NumPy, whatever the number of examples in a row, in any unit."""
    params, (x, y) = problem
    wrong = y.copy()
    wrong[::3] *= -20
    found = {}
    for unit in (1.0, 1e3):

        def loss_fn(params, batch, unit=unit):
            return unit * network.loss_fn(params, batch)

        options = {"samples": 50, "batch": 4, "key": KEY, "sparsity": 0.8}
        pruned = swapjax.prune(
            loss_fn, params, (x, wrong), method=BY_HARM, validation=validation,
            **options,
        )  # fmt: skip
        found[unit] = pruned
        details, record = pruned.history[0].details, pruned.history[0]
        assert 0 < details["loss"] < 1
        assert record.loss > unit  # of wrong labels, and still that of loss_fn
    assert equal(found[1.0].masks, found[1e3].masks)
    if validation is None:
        data = x, wrong
        unit = float(network.loss_fn(without_kernels(params), data)) / 2
        value = harm_of(found[1.0].params, params, data, unit)
        assert details["loss"] == pytest.approx(value, rel=1e-4)
        assert details["harm_unit"] == pytest.approx(1e3 * unit, rel=1e-4)


@pytest.mark.parametrize("trains", [False, True])
def test_harm_is_against_the_network_as_it_was_last_trained(problem, trains):
    """What an earlier stage took may be given back; what training gave may be lost."""
    params, data = problem
    seen = [params]

    def keep(params):
        seen.append(params)
        return params

    pruned = prune(
        problem, samples=50, batch=4, method=BY_HARM, stages=2, recalibrate=keep,
        # At a rate of zero weights are what the stage made of them.
        finetune=swapjax.FineTune(optax.sgd(0.0), steps=1) if trains else None,
    )  # fmt: skip
    for i, stage in enumerate(pruned.history):
        unit = float(stage.details["harm_unit"])
        whole = float(network.loss_fn(without_kernels(seen[i]), data))
        assert unit == pytest.approx(whole / 2, rel=1e-4)
        value = harm_of(seen[i + 1], seen[i if trains else 0], data, unit)
        assert stage.details["loss"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("method", [swapjax.layerwise_obs(), swapjax.alps()])
def test_wrong_labels_leave_methods_that_look_at_none_as_they_are(digits, method):
    """By the loss they would not be re-fitted: it is lower where outputs are small."""
    x, y = digits.data.train
    flipped, _ = swapjax.corruptions.flip_labels(KEY, y, 0.4, classes=10)
    right, wrong, by_loss = (
        swapjax.prune(
            digits.model.loss_fn, digits.params, (x, labels), sparsity=0.9,
            method=method, samples=300, batch=4, key=KEY, criterion=criterion,
        )
        for labels, criterion in ((y, None), (flipped, None), (flipped, "loss"))
    )  # fmt: skip
    assert right.history[0].status is Status.CONVERGED
    assert equal(right.params, wrong.params)
    assert by_loss.history[0].status is Status.NOT_REFITTED


def test_a_loss_that_compares_examples_judges_itself(problem):
    params, data = problem

    def spread(params, batch):
        outputs = network.apply(params, batch[0])
        return network.loss_fn(params, batch) / (0.1 + jnp.var(outputs))

    found = swapjax.prune(
        spread, params, data, method=BY_HARM, sparsity=0.8, samples=30, batch=4,
        key=KEY,
    )  # fmt: skip
    assert found.history[0].details["loss"] == pytest.approx(found.history[0].loss)
    assert "harm_unit" not in found.history[0].details


def test_what_is_no_criterion_is_named(problem):
    with pytest.raises(
        ValueError, match="criterion must be 'loss', 'harm' or a function, got 3"
    ):
        prune(problem, criterion=3)
    with pytest.raises(ValueError, match="criterion must return one scalar"):
        prune(problem, criterion=lambda params, batch: jnp.zeros(2))
    with pytest.raises(ValueError, match="criterion: there is nothing to judge by"):
        swapjax.prune(
            None, problem[0], None, sparsity=0.5, method=swapjax.magnitude(),
            criterion=errors,
        )  # fmt: skip


def test_a_run_goes_on_with_the_criterion_that_it_began_with(problem, tmp_path):
    state = tmp_path / "state"
    options = {"method": swapjax.magnitude(), "checkpoint": state, "samples": 20}
    first = prune(problem, criterion=errors, **options)
    assert equal(prune(problem, criterion=errors, **options).params, first.params)
    for another in (None, "harm", network.loss_fn):
        with pytest.raises(ValueError, match=r"another run \(criterion"):
            prune(problem, criterion=another, **options)


def test_a_method_names_what_it_is_judged_by():
    with pytest.raises(ValueError, match="criterion must be 'loss' or 'harm', got"):
        swapjax.pruning.Method("one", (), lambda p, b: None, criterion="error")
