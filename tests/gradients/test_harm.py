"""What examples lose by other weights, against NumPy."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swapjax
from swapjax.gradients.build import recipe
from swapjax.gradients.harm import Mark, harm, harm_of
from swapjax.gradients.matrix_free import each_loss


def rows_of(params, data):
    return recipe(network.loss_fn, params, data, swapjax.plan(params, 0.5))


def moved(leaves, by, key=7):
    keys = jax.random.split(jax.random.key(key), len(leaves))
    draw = jax.random.normal
    return tuple(
        w + by * draw(k, w.shape, w.dtype) for w, k in zip(leaves, keys, strict=True)
    )


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 40),
    by=st.floats(0, 3),
    unit=st.floats(0.1, 10),
    seed=st.integers(0, 9),
)
def test_against_numpy(n, by, unit, seed):
    params = network.make(seed)
    rows = rows_of(params, network.data(n, seed))
    trained = rows.layout.take(params)
    leaves = moved(trained, by, seed)
    mark = Mark(jnp.float32(unit), each_loss(rows, trained))
    before, after = (
        1 - np.exp(-np.asarray(each_loss(rows, w), float) / unit)
        for w in (trained, leaves)
    )
    wanted = np.mean(np.maximum(after - before, 0))
    found = float(jax.jit(harm)(rows, leaves, mark))
    assert 0 <= found <= 1
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_lost_where_no_loss_rises(dtype):
    params = network.make(0, dtype)
    x, _ = network.data(12, 0, dtype)
    rows = rows_of(params, (x, network.apply(params, x)))
    leaves = rows.layout.take(params)
    unit = jnp.float32(1)
    losses = each_loss(rows, leaves)
    assert harm(rows, leaves, Mark(unit, losses)) == 0
    # As if the network had been worse: what weights repair does not count.
    assert harm(rows, moved(leaves, 0.1), Mark(unit, losses + 100)) == 0


def test_an_example_counts_one_at_most():
    params = network.make(0)
    rows = rows_of(params, network.data(10))
    leaves = rows.layout.take(params)
    mark = Mark(jnp.float32(1), jnp.zeros(10))
    far = tuple(1e3 * w for w in leaves)
    assert harm(rows, far, mark) == pytest.approx(1)


def test_small_differences_survive_rounding():
    params = network.make(0)
    rows = rows_of(params, network.data(10))
    leaves = rows.layout.take(params)
    losses = each_loss(rows, leaves)
    before = losses * (1 - 1e-3)
    unit = 1e5 * float(losses.max())
    wanted = np.mean(
        np.exp(-np.asarray(before, float) / unit)
        - np.exp(-np.asarray(losses, float) / unit)
    )
    found = float(harm(rows, leaves, Mark(jnp.float32(unit), before)))
    assert found == pytest.approx(wanted, rel=1e-2)


def test_losses_below_zero_count_one_at_most():
    losses = jnp.array([-200.0, -200.0, -100.0])
    mark = Mark(jnp.float32(1), jnp.full(3, -200.0))
    assert harm_of(losses, mark) == pytest.approx(1 / 3)


def test_what_was_not_finite_cannot_be_lost_and_what_becomes_so_is():
    mark = Mark(jnp.float32(1), jnp.array([jnp.inf, jnp.nan, 0.0, 0.0]))
    found = harm_of(jnp.array([jnp.inf, 1.0, 0.0, 1.0]), mark)
    assert found == pytest.approx((1 - np.exp(-1)) / 4)
    assert harm_of(jnp.array([0.0, 0.0, jnp.inf, 0.0]), mark) == pytest.approx(1 / 4)
    assert jnp.isnan(harm_of(jnp.array([0.0, 0.0, jnp.nan, 0.0]), mark))


def normalised(params, batch):
    """Losses of outputs that are standardised by the batch, as batch norm does."""
    x, y = batch
    h = x @ params["kernel"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3)
    return -jax.nn.log_softmax(h)[jnp.arange(len(y)), y]


@pytest.mark.parametrize("unit", [0.3, 1.15])
def test_harm_in_batches_against_numpy(unit):
    key = jax.random.split(jax.random.key(3), 3)
    trained = {"kernel": jax.random.normal(key[0], (5, 4))}
    changed = {"kernel": trained["kernel"] + jax.random.normal(key[1], (5, 4))}
    batch = jax.random.normal(key[2], (16, 5)), jnp.arange(16) % 4
    criterion = swapjax.harm_in_batches(normalised, trained, unit=unit)
    before, after = (
        1 - np.exp(-np.asarray(normalised(p, batch), np.float64) / unit)
        for p in (trained, changed)
    )
    wanted = np.mean(np.maximum(after - before, 0))
    assert jax.jit(criterion)(changed, batch) == pytest.approx(wanted, rel=1e-5)
    assert criterion(trained, batch) == 0


def test_harm_in_batches_judges_a_prune():
    params = {"kernel": jax.random.normal(jax.random.key(0), (5, 4))}
    data = jax.random.normal(jax.random.key(1), (96, 5)), jnp.arange(96) % 4
    seen = []

    def losses(params, batch):
        seen.append(batch[0].shape)
        return normalised(params, batch)

    pruned = swapjax.prune(
        lambda p, b: normalised(p, b).mean(), params, data, sparsity=0.5, samples=12,
        batch=8, key=jax.random.key(2),
        criterion=swapjax.harm_in_batches(losses, params, unit=0.7),
    )  # fmt: skip
    assert set(seen) == {(8, 5)}
    assert 0 <= pruned.history[-1].details["loss"] <= 1


@pytest.mark.parametrize("unit", [0, -1.0, float("nan"), float("inf")])
def test_harm_in_batches_wants_a_unit(unit):
    with pytest.raises(ValueError, match="unit: must be a number above 0, got"):
        swapjax.harm_in_batches(normalised, {}, unit=unit)


def test_harm_in_batches_wants_a_loss_for_each_example():
    criterion = swapjax.harm_in_batches(lambda p, b: b.mean(), {}, unit=1.0)
    with pytest.raises(ValueError, match="losses: must return one number for each"):
        criterion({}, jnp.ones((8, 3)))
