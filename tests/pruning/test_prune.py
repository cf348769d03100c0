"""The driver: stages, fine-tuning, streams of batches and trees of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import loss_fn
from prune_runs import KEY, LR, prune
from trees import equal

import swapjax
from swapjax import FineTune, GradientNoise, Status


def test_stages_climb_to_the_sparsity_and_tell_how(problem):
    seen = []
    pruned = prune(problem, stages=4, callback=seen.append)
    assert seen == list(pruned.history)
    assert [stage.stage for stage in seen] == [1, 2, 3, 4]
    table = swapjax.exponential().table(0.8, 4)
    assert [s.kept for s in seen] == [round(90 * (1 - float(level))) for level in table]
    assert seen[-1].sparsity == pytest.approx(0.8)
    for stage in seen:
        assert stage.objective[1] <= stage.objective[0]
        assert stage.seconds > 0
        assert stage.status in (Status.CONVERGED, Status.NOT_REFITTED)
        assert np.isfinite([stage.loss, stage.loss_before]).all()
    # What is not prunable is not touched, and has the scalar mask True.
    params, _ = problem
    assert equal(pruned.params["fc1"]["bias"], params["fc1"]["bias"])
    assert pruned.masks["fc1"]["bias"].shape == ()
    assert jax.tree.structure(pruned.masks) == jax.tree.structure(params)
    assert equal(swapjax.apply_masks(pruned.params, pruned.masks), pruned.params)


def test_several_stages_lose_less_than_one(problem):
    _, data = problem
    once, often = prune(problem), prune(problem, stages=6)
    assert loss_fn(often.params, data) < loss_fn(once.params, data)


def test_the_default_method_is_the_regression_that_resists_noise(problem):
    default = prune(problem, method=None)
    named = prune(problem, method=swapjax.kfac_regression())
    assert equal(default.params, named.params)


def test_the_same_key_gives_the_same_result(problem):
    first = prune(problem, stages=2, noise=GradientNoise(1.0, 0.5))
    again = prune(problem, stages=2, noise=GradientNoise(1.0, 0.5))
    other = prune(
        problem, stages=2, noise=GradientNoise(1.0, 0.5), key=jax.random.key(7)
    )
    assert equal(first.params, again.params)
    assert not equal(first.params, other.params)


def test_a_plan_brings_its_own_rules(problem):
    params, _ = problem
    rule = swapjax.plan(params, 0.5, include="fc1/kernel", allocation="uniform")
    pruned = prune(problem, plan=rule)
    assert int(jnp.sum(pruned.params["fc1"]["kernel"] != 0)) == 30
    assert equal(pruned.params["fc2"], params["fc2"])


def test_rows_may_average_several_examples(problem):
    pruned = prune(problem, samples=20, batch=5)
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)


def test_matrix_free_and_stored_end_alike(problem):
    stored = prune(problem, stages=2, storage="stored")
    free = prune(problem, stages=2, storage="matrix-free")
    assert equal(stored.masks, free.masks)
    for a, b in zip(
        jax.tree.leaves(stored.params), jax.tree.leaves(free.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


def test_fine_tuning_trains_and_keeps_zeros(problem):
    params, data = problem
    tune = FineTune(optax.adamw(1e-2), steps=30, batch=20)
    plain, tuned = prune(problem), prune(problem, finetune=tune)
    assert equal(plain.masks, tuned.masks)
    assert loss_fn(tuned.params, data) < loss_fn(plain.params, data)
    assert equal(swapjax.apply_masks(tuned.params, tuned.masks), tuned.params)
    assert not equal(tuned.params["fc1"]["bias"], params["fc1"]["bias"])


def test_recalibration_comes_last_and_is_masked(problem):
    shifted = prune(problem, recalibrate=lambda p: jax.tree.map(lambda x: x + 1.0, p))
    plain = prune(problem)
    kept = plain.masks["fc1"]["kernel"]
    np.testing.assert_allclose(
        shifted.params["fc1"]["kernel"],
        jnp.where(kept, plain.params["fc1"]["kernel"] + 1.0, 0.0),
    )


def test_within_keeps_what_was_pruned_before(problem):
    first = prune(problem, sparsity=0.5, method=swapjax.magnitude())
    second = prune((first.params, problem[1]), within=first.masks, stages=3)
    assert int(sum(map(jnp.sum, map(jnp.ravel, jax.tree.leaves(second.masks))))) > 0
    inside = jax.tree.map(lambda new, old: new & ~old, second.masks, first.masks)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(inside))
    assert swapjax.density(second.masks) == pytest.approx(0.2)


def test_an_iterator_serves_stages_and_fine_tuning(problem):
    params, (x, y) = problem
    batches = ((x[i : i + 20], y[i : i + 20]) for i in range(0, 200, 20))
    tune = FineTune(optax.sgd(1e-3), steps=2)
    pruned = prune((params, batches), stages=2, samples=60, finetune=tune)
    # Two stages of three batches, and two steps after each.
    assert len(list(batches)) == 10 - 2 * (3 + 2)
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)


def test_any_tree_of_arrays_is_taken(problem):
    """An nnx state, and a module of Equinox's kind."""
    from flax import nnx

    layer = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def loss(state, batch):
        return jnp.mean(jnp.square(nnx.merge(graph, state)(batch[0]) - batch[1]))

    pruned = swapjax.prune(
        loss, state, problem[1], sparsity=0.5, method=LR, samples=60, key=KEY
    )
    assert isinstance(pruned.params, nnx.State)
    assert int(jnp.sum(pruned.params["kernel"][...] != 0)) == 9


def test_bfloat16_stays_bfloat16(problem):
    params, data = problem
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    pruned = prune((narrow, data), dtype=jnp.bfloat16)
    assert {p.dtype.name for p in jax.tree.leaves(pruned.params)} == {"bfloat16"}


def test_a_leaf_without_entries_is_left_alone(problem):
    params, data = problem
    params = {**params, "none": {"kernel": jnp.zeros((0, 3))}}
    pruned = prune((params, data))
    assert pruned.params["none"]["kernel"].shape == (0, 3)
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)


class TestWithoutExamples:
    """What looks at weights alone needs no loss, no data and no key."""

    def test_magnitude_of_params_in_hand(self, problem):
        params, _ = problem
        method = swapjax.magnitude()
        pruned = swapjax.prune(None, params, sparsity=0.8, method=method, stages=2)
        other = prune(problem, method=method, stages=2)
        assert equal(pruned.params, other.params)
        assert [stage.kept for stage in pruned.history] == [
            stage.kept for stage in other.history
        ]
        assert np.isnan(pruned.history[-1].loss)
        assert pruned.history[-1].status is swapjax.Status.CONVERGED

    def test_few_examples_and_no_key_tell_the_loss(self, problem):
        params, (x, y) = problem
        few = (x[:7], y[:7])
        pruned = swapjax.prune(
            loss_fn, params, few, sparsity=0.5, method=swapjax.magnitude(), batch=2
        )
        wanted = loss_fn(pruned.params, (x[:6], y[:6]))
        np.testing.assert_allclose(pruned.history[0].loss, wanted, rtol=1e-6)

    def test_batches_of_an_iterator_need_no_key(self, problem):
        params, (x, y) = problem
        batches = lambda: iter([(x[:60], y[:60])])  # noqa: E731
        options = {"sparsity": 0.8, "method": LR, "samples": 60}
        first = swapjax.prune(loss_fn, params, batches(), **options)
        again = swapjax.prune(loss_fn, params, batches(), key=KEY, **options)
        assert equal(first.params, again.params)
