"""What is taken for arrays, and what for batches one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.loops import feed, streams
from swapjax.loops.examples import Source
from swapjax.loops.streams import Stream, take_data, taken_by

KEY = jax.random.key(0)
X, Y = np.arange(24.0).reshape(12, 2), np.arange(12)
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)]
PARAMS = {"w": jnp.ones((2, 3))}


def of_pairs(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"]) ** 2) + jnp.mean(y.astype(jnp.float32))


def of_arrays(params, batch):
    return jnp.mean((batch @ params["w"]) ** 2)


class Tensor:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, "theirs"

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __iter__(self):
        return map(Tensor, self.array)


class Loader:
    """A data loader: it has a length, and begins anew."""

    def __init__(self, batches):
        self.batches, self.begun = batches, 0

    def __iter__(self):
        self.begun += 1
        return iter(self.batches)


def generator():
    yield from BATCHES


@pytest.mark.parametrize(
    ("data", "loss", "is_stream"),
    [
        ((X, Y), of_pairs, False),
        ([X, Y], of_pairs, False),
        (X, of_arrays, False),
        (Tensor(X), of_arrays, False),
        ((Tensor(X), Tensor(Y)), of_pairs, False),
        (iter(BATCHES), of_pairs, True),
        (Loader(BATCHES), of_pairs, True),
        (generator, of_pairs, True),
        (BATCHES, of_pairs, True),
        (BATCHES[:2], of_pairs, True),
        (tuple(BATCHES), of_pairs, True),
        (BATCHES, of_arrays, True),  # which says itself that it takes no pairs
        ([X[:4], X[4:6]], of_arrays, True),
        ([X], of_arrays, True),
    ],
)
def test_the_loss_decides_what_structure_leaves_open(data, loss, is_stream):
    found = take_data(data, taken_by(loss, PARAMS), 2)
    assert isinstance(found, Stream) == is_stream
    if is_stream:
        first = next(found)
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(first))
    else:
        leaves = jax.tree.leaves(found)
        assert all(len(x) == 12 for x in leaves)
        np.testing.assert_array_equal(leaves[0], X)


def test_a_list_that_may_be_either_is_an_error():
    either = lambda p, b: jnp.mean(jnp.asarray(b) ** 2) * jnp.sum(p["w"])  # noqa: E731
    with pytest.raises(ValueError, match=r"one pytree and its elements .* tuple\(data"):
        take_data([X, X], taken_by(either, PARAMS))
    with pytest.raises(ValueError, match="data: there are no batches in it"):
        take_data([], taken_by(either, PARAMS))
    with pytest.raises(ValueError, match="data: a str is no array"):
        take_data({"x": ["a"]}, None)


def test_mappings_and_tensors_in_batches_become_arrays():
    class Record(dict):
        """No pytree, as what tokenisers return."""

    (batch,) = Stream([Record(x=Tensor(X), y=Y)])
    assert type(batch) is dict
    assert type(batch["x"]) is np.ndarray


def test_passes_follow_each_other_and_are_counted():
    loader = Loader(BATCHES)
    stream = Stream(loader)
    assert stream.peek()[1][0] == 0
    assert [batch[1][0] for batch in stream.take(7)] == [0, 4, 8, 0, 4, 8, 0]
    assert (stream.taken, loader.begun, stream.is_fresh) == (7, 3, False)
    stream.restart()
    assert next(stream)[1][0] == 0
    assert stream.count() == 3  # by going through them
    assert Stream(BATCHES).count() == 3


@pytest.mark.parametrize(
    ("data", "saying"),
    [
        (lambda: 3, "data: the function must return an iterable of batches, got 3"),
        ([X, X[:, :1]], r"data: batches must be alike .* batch 1 has .*\[any, 1\]"),
        ([X, (X, Y)], "data: batches must be alike"),
        ([X, X[:0]], "a batch of data: number 1 has no examples in it"),
        ([(X, Y[:3])], "a batch of data: must be a pytree of arrays with one leading"),
        ([{"x": object()}], "a batch of data: a object is no array"),
        ([], "data: the iterable ended after 0 of 4 batches"),
        (iter([X]), "data: the iterator ended after 1 of 4 batches"),
    ],
)
def test_what_is_no_stream_of_batches_is_an_error(data, saying):
    with pytest.raises(ValueError, match=saying):
        list(Stream(data).take(4))


def refilled():
    """Give all batches in the same memory, as some loaders do."""
    x, y = np.empty((4, 2)), np.empty(4, int)
    for batch in BATCHES:
        x[...], y[...] = batch
        yield x, y


def test_a_loader_may_fill_the_same_memory_again():
    np.testing.assert_array_equal(Source(refilled, 12).draw(None)[1], Y)
    ((laid, index),) = feed.from_batches(Stream(refilled))
    np.testing.assert_array_equal(laid[1][index.ravel()], Y)


def test_counting_batches_for_long_says_how_to_do_without(monkeypatch):
    monkeypatch.setattr(streams, "_PATIENCE", 0)
    with pytest.warns(UserWarning, match="1 so far; steps_per_epoch= says"):
        assert Stream(generator).count() == 3


def test_draws_go_on_through_passes_and_stay_distinct():
    source = Source(Loader(BATCHES), 8)
    assert source.digest() == "batches"
    drawn = [np.asarray(source.draw(None)[1]) for _ in range(3)]
    np.testing.assert_array_equal(drawn[0], np.arange(8))
    np.testing.assert_array_equal(drawn[1], [*range(8, 12), *range(4)])
    np.testing.assert_array_equal(drawn[2], np.arange(4, 12))
    again = Source(Loader(BATCHES), 8)
    again.skip(4)
    np.testing.assert_array_equal(again.draw(None)[1], drawn[2])


@pytest.mark.parametrize("data", [Loader(BATCHES), iter(BATCHES), generator])
def test_too_few_examples_in_all_batches_are_an_error(data):
    saying = r"ended after 3 batches of 12 examples, fewer than the 13 that samples \*"
    with pytest.raises(ValueError, match=saying):
        Source(data, 13).draw(None)


def test_arrays_of_the_host_are_sent_in_parts_and_found_finite_there(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    data = np.load(path, mmap_mode="r"), Y
    source = Source(data, 5)
    mine, theirs = source.draw(KEY), Source((jnp.asarray(X), jnp.asarray(Y)), 5)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs.draw(KEY))
    with pytest.raises(ValueError, match=r"data: NaN .* in 0 \(24 of 24\)"):
        Source((np.full_like(X, np.nan), Y), 5)


@pytest.mark.parametrize("replays", [1, 2])
def test_feeds_of_the_host_hold_the_batches_of_the_device(replays, monkeypatch):
    monkeypatch.setattr(feed, "_BYTES", 100)  # two steps at a time
    fed = [
        list(take((X, Y), KEY, 2, 0, 8, replays))
        for take in (feed.from_device, feed.from_host)
    ]
    assert len(fed[1]) > len(fed[0])
    rows = [np.concatenate([np.asarray(d[1])[i] for d, i in each]) for each in fed]
    np.testing.assert_array_equal(*rows)
    assert rows[0].shape == (8 * replays, 2)


def test_batches_of_one_size_are_fed_together():
    sizes = [4, 4, 4, 2, 4]
    batches = [np.full(n, i) for i, n in enumerate(sizes)]
    fed = list(feed.from_batches(batches, replays=2))
    assert [index.shape for _, index in fed] == [(6, 4), (2, 2), (2, 4)]
    seen = [x for data, index in fed for x in np.asarray(data)[index][::2, 0]]
    assert seen == [0, 1, 2, 3, 4]


def test_what_stays_on_the_host():
    assert not feed.stays_on_host((X, Y), None)  # no memory is known here, or it fits
    assert feed.stays_on_host((X, Y), True)
    with pytest.raises(ValueError, match="on_host: arrays of NumPy can stay"):
        feed.stays_on_host((jnp.asarray(X), Y), True)
