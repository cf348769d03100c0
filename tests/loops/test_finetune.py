"""Fine-tuning, and where its examples come from."""

import itertools
import math

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from network import loss_fn

from swapjax.loops.examples import Source
from swapjax.loops.finetune import FineTune, finetune
from swapjax.sparsity.planning import plan

KEY = jax.random.key(0)
OPTIMIZERS = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "momentum": optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(1e-2, momentum=0.9, nesterov=True)
    ),
}


def make(n=24, dtype=jnp.float32):
    params = network.make(0, dtype, inputs=5, hidden=6, outputs=3)
    return params, network.data(n, 0, dtype, inputs=5, outputs=3)


def pruned(dtype=jnp.float32):
    """Params with some zeros, the masks of those, and data."""
    params, data = make(dtype=dtype)
    target = plan(params, 0.5)
    masks = target.layout.masks(tuple(leaf > 0 for leaf in target.layout.split(params)))
    zeroed = jax.tree.map(lambda p, m: jnp.where(m, p, 0).astype(dtype), params, masks)
    return zeroed, masks, data


def seen_by(data, steps, batch, key=KEY):
    """How often each example was seen: w has a gradient of -1 at each."""
    counting = lambda w, i: -jnp.sum(w[i])  # noqa: E731
    settings = FineTune(optax.sgd(1.0), steps, batch)
    seen = finetune(counting, jnp.zeros(len(data)), data, settings, key=key)
    return np.asarray(seen).astype(int)


# Fine-tuning.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_exactly_zero_and_the_rest_trains(name, dtype):
    params, masks, data = pruned(dtype)
    settings = FineTune(OPTIMIZERS[name], steps=20, batch=8)
    trained = finetune(loss_fn, params, data, settings, masks=masks, key=KEY)
    assert loss_fn(trained, data) < loss_fn(params, data)
    for before, after, mask in zip(
        *map(jax.tree.leaves, (params, trained, masks)), strict=True
    ):
        assert after.dtype == before.dtype
        mask = np.broadcast_to(mask, after.shape)
        assert np.all(np.asarray(after)[~mask] == 0)
        # In bfloat16 a weight may come back to where it was.
        assert np.mean(np.asarray(after)[mask] != np.asarray(before)[mask]) > 0.8


def test_a_weight_that_is_not_masked_may_leave_zero():
    params, masks, data = pruned()
    settings = FineTune(optax.sgd(1e-2), steps=1, batch=8)
    trained = finetune(loss_fn, params, data, settings, key=KEY)
    assert not np.any(np.asarray(trained["fc1"]["kernel"]) == 0)
    assert not np.all(np.asarray(masks["fc1"]["kernel"]))


def test_takes_the_steps_of_a_plain_optax_loop():
    params, data = make()
    settings = FineTune(optax.adam(1e-2), steps=5, batch=4)
    batches = [jax.tree.map(lambda a, i=i: a[i : i + 4], data) for i in range(0, 20, 4)]
    trained = finetune(loss_fn, params, iter(batches), settings, key=KEY)

    state = settings.optimizer.init(params)
    for batch in batches:
        grads = jax.grad(loss_fn)(params, batch)
        updates, state = settings.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), trained, params
    )


@pytest.mark.parametrize("steps", [4, 7])
def test_arrays_and_an_iterator_of_the_same_batches_train_the_same(steps):
    params, masks, data = pruned()
    seen = [seen_by(np.arange(24), n, 6) for n in range(1, steps + 1)]
    orders = [np.flatnonzero(d) for d in np.diff([0 * seen[0], *seen], axis=0)]
    batches = [jax.tree.map(lambda a, o=o: np.asarray(a)[o], data) for o in orders]

    settings = FineTune(OPTIMIZERS["adamw"], steps, batch=6)
    options = {"masks": masks, "key": KEY}
    one = finetune(loss_fn, params, data, settings, **options)
    other = finetune(loss_fn, params, iter(batches), settings, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def test_every_epoch_sees_every_example_of_whole_batches_once():
    examples = np.arange(24)
    for epochs in (1, 2, 3):
        assert set(seen_by(examples, 4 * epochs, 6)) == {epochs}
    # 24 examples make two batches of 10; which four are left out changes.
    first, second = seen_by(examples, 2, 10), seen_by(examples, 4, 10)
    for epoch in (first, second - first):
        assert sorted(epoch) == [0] * 4 + [1] * 20
    assert not np.array_equal(first, second - first)


def test_epochs_go_on_over_many_steps():
    assert set(seen_by(np.arange(8), 250, 4)) == {125}


def test_the_key_decides_the_order():
    orders = [seen_by(np.arange(24), 1, 6, jax.random.key(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@pytest.mark.parametrize(("forever", "steps"), [(False, 130), (True, 13)])
def test_the_callback_hears_of_progress_up_to_the_end(forever, steps):
    params, data = make()
    heard = []
    finetune(
        loss_fn,
        params,
        itertools.repeat(data) if forever else data,
        FineTune(optax.sgd(1e-3), steps, batch=4),
        key=KEY,
        callback=lambda done, total: heard.append((done, total)),
    )
    assert heard[-1] == (steps, steps)
    assert heard == sorted(set(heard))
    assert len(heard) > 1


@pytest.mark.parametrize(
    ("rate", "wanted", "source", "message"),
    [
        (0.1, 25, lambda d: d, r"finetune batch: 25 examples .* data has 24"),
        (0.1, 8, lambda d: iter([d, d]), "the iterator ended after 2 of 20 batches"),
        (1e20, 8, lambda d: d, r"the loss became (nan|inf); take a smaller"),
        (1e20, 8, itertools.repeat, r"the loss became (nan|inf); take a smaller"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error(rate, wanted, source, message):
    params, data = make()
    settings = FineTune(optax.sgd(rate), 20, wanted)
    with pytest.raises(ValueError, match=message):
        finetune(loss_fn, params, source(data), settings, key=KEY)


@pytest.mark.parametrize("name", ["steps", "batch"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_steps_or_an_empty_batch_are_an_error(name, value):
    settings = {"steps": 1, "batch": 1, name: value}
    with pytest.raises(ValueError, match=f"finetune {name} must be 1 or more, got"):
        FineTune(optax.sgd(0.1), **settings)


def test_settings_describe_themselves():
    described = FineTune(optax.sgd(0.1), 7, 32).describe()
    assert described.startswith("steps=7, batch=32, optimizer=")
    assert FineTune(optax.sgd(0.1), 7, 32).describe() == described
    assert FineTune(optax.sgd(0.2), 7, 32).describe() != described
    assert FineTune(optax.adam(0.1), 7, 32).describe() != described


# Sources.


def test_a_draw_of_arrays_is_of_distinct_examples_and_up_to_its_key():
    data = {"x": np.arange(40).reshape(20, 2), "y": np.arange(20)}
    source = Source(data, 12)
    drawn = source.draw(KEY)
    assert (drawn["x"].shape, drawn["y"].shape) == ((12, 2), (12,))
    assert len(set(np.asarray(drawn["y"]))) == 12
    np.testing.assert_array_equal(drawn["x"][:, 0], 2 * drawn["y"])
    np.testing.assert_array_equal(source.draw(KEY)["y"], drawn["y"])
    other = source.draw(jax.random.key(1))
    assert not np.array_equal(other["y"], drawn["y"])
    everything = Source(data, 20).draw(KEY)["y"]
    np.testing.assert_array_equal(np.sort(everything), np.arange(20))
    assert source.taken == 0


def test_a_draw_of_an_iterator_joins_its_batches():
    batches = [(np.full((n, 2), n), np.full(n, n)) for n in (3, 4, 5, 6)]
    source = Source(iter(batches), 8)
    x, y = source.draw(KEY)
    np.testing.assert_array_equal(y, [3, 3, 3, 4, 4, 4, 4, 5])
    np.testing.assert_array_equal(x[:, 1], y)
    assert source.taken == 3
    with pytest.raises(ValueError, match="data: the iterator ended"):
        source.draw(KEY)


def test_skipping_passes_over_batches_of_an_iterator_only():
    source = Source((np.full(2, i) for i in range(9)), 2)
    source.skip(3)
    assert source.taken == 3
    np.testing.assert_array_equal(source.draw(KEY), [3, 3])
    np.testing.assert_array_equal(next(source.stream), [4, 4])
    assert source.taken == 5
    with pytest.raises(ValueError, match="ended after 4 of 5 batches"):
        source.skip(5)

    arrays = np.arange(6.0)
    source = Source(arrays, 4)
    before = source.draw(KEY)
    source.skip(100)
    np.testing.assert_array_equal(source.draw(KEY), before)
    assert source.stream is arrays


def test_a_source_tells_its_data_from_others():
    assert Source(iter([]), 1).digest() == "iterator"
    data = np.zeros((4, 2), np.float32), np.zeros(4, np.int32)
    other = np.ones((4, 2), np.float32), np.zeros(4, np.int32)
    assert Source(data, 1).digest() == Source(data, 1).digest()
    assert Source(data, 1).digest() != Source(other, 1).digest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.ones((5, 2)), np.ones(4)), r"one leading axis of examples.*\(5, 2\), \(4"),
        ((np.ones(5), 3.0), "one leading axis of examples"),
        ({}, r"one leading axis of examples, got shapes \[\]"),
        (np.ones((4, 2)), "4 examples, fewer than the 5 that samples"),
        ({"x": np.full((6, 2), math.nan)}, r"data: NaN .* in x \(12 of 12\)"),
        ((np.ones(6), np.full(6, np.inf)), r"data: NaN or infinite .* in 1 \(6 of 6\)"),
    ],
)
def test_data_that_cannot_be_drawn_from_is_an_error(data, message):
    with pytest.raises(ValueError, match=message):
        Source(data, 5)


def test_bad_batches_are_found_when_they_are_drawn():
    bad = np.array([1.0, math.nan])
    with pytest.raises(ValueError, match=r"data: NaN or infinite .* \(1 of 2\)"):
        Source(iter([bad]), 2).draw(KEY)
    with pytest.raises(ValueError, match="one leading axis of examples"):
        Source(iter([(bad, bad[:1])]), 2).draw(KEY)
