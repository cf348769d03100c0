"""What checkpoints recover, against the same by hand, and its picture."""

import functools

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from network import kernels

import swapjax
from swapjax import NM, FineTune
from swapjax.experiments import plot
from swapjax.training import Recovery, Trainer, pruning_plasticity

KEY = jax.random.key(0)


def draw(seed):
    return network.make(seed, hidden=10, outputs=3)


CHECKPOINTS = {1: draw(1), 3: draw(2)}
GRADIENT = draw(9)


def total(params):
    return float(sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params)))


class Record:
    """A train that adds one to what is not masked, and remembers."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, masks, key):
        self.calls.append((params, masks, key))
        return jax.tree.map(lambda p, m: jnp.where(m, p + 1, 0), params, masks)


def measure(train=None, **options):
    defaults = {
        "evaluate": total,
        "rates": (0.5, 0.9),
        "gradient": lambda params: GRADIENT,
        "key": KEY,
    }
    train = Record() if train is None else train
    return pruning_plasticity(train, CHECKPOINTS, **{**defaults, **options})


def largest(values, places, k):
    order = sorted(places, key=lambda i: (-values[i], i))[:k]
    marked = np.zeros(values.size, bool)
    marked[order] = True
    return marked


def by_hand(params, rate, regrown, uniform):
    """Masks by sorting: of all layers or of each, then drop and grow in each."""
    weights = [np.abs(w).ravel() for w in kernels(params)]
    keep = round(90 * (1 - rate))
    if uniform:
        counts = [round(w.size * (1 - rate)) for w in weights]
        masks = [
            largest(w, range(w.size), k) for w, k in zip(weights, counts, strict=True)
        ]
    else:
        chosen = largest(np.concatenate(weights), range(90), keep)
        masks = [chosen[:60], chosen[60:]]
    if regrown:
        for i, (w, g) in enumerate(zip(weights, kernels(GRADIENT), strict=True)):
            drop = -(-int(masks[i].sum()) // 2)
            left = largest(w, np.flatnonzero(masks[i]), int(masks[i].sum()) - drop)
            grown = largest(np.abs(g).ravel(), np.flatnonzero(~left), drop)
            masks[i] = left | grown
    return [masks[0].reshape(6, 10), masks[1].reshape(10, 3)]


@pytest.mark.parametrize("uniform", [False, True])
def test_prunes_and_regrows_what_sorting_would(uniform):
    train = Record()
    rule = functools.partial(swapjax.plan, allocation="uniform")
    results = measure(train, **({"plan": rule} if uniform else {}))
    assert len(train.calls) == len(results) == 2 * 2 * 2
    for result, (params, masks, key) in zip(results, train.calls, strict=True):
        start = CHECKPOINTS[result.epoch]
        wanted = by_hand(start, result.rate, result.regrown, uniform)
        pruned = by_hand(start, result.rate, False, uniform)
        for mask, used, old, plain, new in zip(
            kernels(masks), kernels(params), kernels(start), pruned, wanted, strict=True
        ):
            np.testing.assert_array_equal(mask, new)
            # What grows starts from zero, what was dropped and came back does not.
            np.testing.assert_array_equal(used, np.where(plain & new, old, 0))
        np.testing.assert_array_equal(params["fc1"]["bias"], start["fc1"]["bias"])
        assert key == KEY
        trained = jax.tree.map(lambda p, m: jnp.where(m, p + 1, 0), params, masks)
        assert result.before == total(start)
        assert result.after == total(trained)
        assert result.plasticity == result.after - result.before
        assert result.kept == round(90 * (1 - result.rate))


def test_the_grid_comes_in_order_with_both_accuracies():
    seen = []
    results = measure(callback=seen.append)
    assert tuple(seen) == results
    cells = [(r.epoch, r.rate, r.regrown) for r in results]
    grid = [(e, q, on) for e in (1, 3) for q in (0.5, 0.9) for on in (False, True)]
    assert cells == grid
    told = results[0].to_dict()
    assert told["plasticity"] == told["after"] - told["before"]
    assert told["seconds"] > 0


def test_rate_zero_only_trains_on():
    (result,) = pruning_plasticity(
        Record(), {2: draw(1)}, evaluate=total, rates=[0.0], regrow=[False], key=KEY
    )
    trained = jax.tree.map(lambda p: p + 1, draw(1))
    assert (result.kept, result.after) == (90, total(trained))


def test_regenerating_nothing_is_pruning_only():
    train = Record()
    measure(train, rates=[0.7], regeneration=0.0)
    for (plain, _, _), (regrown, _, _) in zip(
        train.calls[::2], train.calls[1::2], strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, plain, regrown)


def test_a_pattern_holds_after_regrowth_too():
    train = Record()
    rule = lambda params, rate: swapjax.plan(params, pattern=NM(1, 2))  # noqa: E731
    measure(train, rates=[0.5], plan=rule)
    for _, masks, _ in train.calls:
        for mask in kernels(masks):
            assert np.all(mask.reshape(-1, 2, mask.shape[1]).sum(axis=1) == 1)


def test_regrowth_finds_what_pruning_cannot():
    """A checkpoint whose largest weights are not those that the data asks for."""
    x = np.asarray(jax.random.normal(KEY, (64, 10)))
    data = x, 2 * x[:, :3] @ np.ones((3, 1), np.float32)

    def loss_fn(params, batch):
        return jnp.mean(jnp.square(batch[0] @ params["kernel"] - batch[1]))

    wrong = {"kernel": jnp.where(jnp.arange(10)[:, None] < 5, 0.01, 1.0)}
    plain, regrown = pruning_plasticity(
        Trainer(loss_fn, data, FineTune(optax.sgd(0.05), steps=100, batch=16)),
        {1: wrong},
        evaluate=lambda p: -float(loss_fn(p, data)),
        rates=[0.4],
        gradient=lambda p: jax.grad(loss_fn)(p, data),
        key=KEY,
    )
    assert plain.kept == regrown.kept == 6
    assert plain.before == regrown.before < -5
    assert plain.after < -1 < -1e-3 < regrown.after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": []}, "rates: must be a sequence that holds one at least"),
        ({"rates": 0.5}, "rates: must be a sequence that holds one at least"),
        ({"rates": "0.5"}, "rates: must be a sequence that holds one at least"),
        ({"regrow": True}, "regrow: must be a sequence that holds one at least"),
        ({"rates": [0.5, 1.0]}, r"rates must be in \[0, 1\), got 1.0"),
        ({"rates": ["half"]}, r"rates must be in \[0, 1\), got 'half'"),
        ({"gradient": None}, "gradient: is needed to regrow"),
        ({"regeneration": 1.5}, r"regeneration must be in \[0, 1\], got 1.5"),
        (
            {"gradient": lambda p: jax.tree.map(lambda x: x * jnp.nan, p)},
            "gradient: NaN",
        ),
        ({"gradient": lambda p: p["fc1"]}, "gradient: must return the tree of params"),
        (
            {"train": lambda p, m, k: jax.tree.map(lambda x: x + 1, p)},
            "train: moved .* entries of fc1/kernel",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        measure(**options)


def test_no_checkpoints_are_an_error():
    with pytest.raises(ValueError, match="checkpoints: must hold one at least"):
        pruning_plasticity(Record(), {}, evaluate=total, rates=[0.5], key=KEY)


def test_the_picture_has_accuracies_and_their_difference(tmp_path):
    results = [
        Recovery(epoch, rate, regrown, 10, 90.0, 90.0 + epoch + regrown + seed, 0.1)
        for epoch in (3, 1)
        for rate in (0.5, 0.9)
        for regrown in (False, True)
        for seed in (0, 2)
    ]
    figure = plot.plasticity_figure(results, title="what is recovered")
    accuracy, difference = figure.axes
    before, *after = accuracy.lines
    assert list(before.get_ydata()) == [90.0, 90.0]
    assert [line.get_label() for line in after] == [
        "0.5, pruned only", "0.5, regrown", "0.9, pruned only", "0.9, regrown",
    ]  # fmt: skip
    assert list(after[1].get_ydata()) == [93.0, 95.0]
    lines = [line for line in difference.lines if len(line.get_xdata()) == 2][1:]
    assert [list(line.get_ydata()) for line in lines] == [[2, 4], [3, 5]] * 2
    assert list(lines[0].get_xdata()) == [1, 3]
    plot.save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_one_kind_of_results_is_drawn_alone():
    figure = plot.plasticity_figure(
        [Recovery(1, 0.5, False, 10, 90.0, 91.0, 0.1)], title="one"
    )
    assert len(figure.axes[0].lines) == 2
