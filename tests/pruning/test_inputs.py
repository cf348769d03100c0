"""What `prune` refuses, and what it says of it."""

import jax
import jax.numpy as jnp
import optax
import pytest
from network import loss_fn
from prune_runs import KEY, LR, prune

import swapjax
from swapjax import FineTune


def spoil(tree, value):
    return jax.tree.map(lambda x: jnp.asarray(x).at[(0,) * x.ndim].set(value), tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"sparsity": float("nan")}, r"sparsity must be in \[0, 1\), got nan"),
        ({"sparsity": 0.999}, "min_keep"),
        ({"stages": 0}, "stages must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"samples": 201}, "200 examples, fewer than the 201"),
        ({"samples": 101, "batch": 2}, "200 examples, fewer than the 202"),
        ({"storage": "disk"}, "storage must be 'auto'"),
        (
            {"within": {"fc1": jnp.ones(3, bool)}},
            "within: must have the tree of params",
        ),
    ],
)
def test_bad_arguments_are_named(problem, options, message):
    with pytest.raises(ValueError, match=message):
        prune(problem, **options)


def test_masks_with_too_little_room_are_refused(problem):
    masks = prune(problem, sparsity=0.9, method=swapjax.magnitude()).masks
    with pytest.raises(ValueError, match="within: has 9 entries in all, 18 are to be"):
        prune(problem, within=masks)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_named(problem, value):
    params, (x, y) = problem
    bad = {**params, "fc2": spoil(params["fc2"], value)}
    with pytest.raises(ValueError, match=r"params: NaN.* in fc2/kernel \(1 of 30\)"):
        prune((bad, (x, y)))
    with pytest.raises(ValueError, match=r"data: NaN.* in 1 \(1 of 600\)"):
        prune((params, (x, spoil(y, value))))


def test_gradients_that_are_not_finite_leave_nothing_behind(problem, tmp_path):
    def overflows(params, batch):
        return loss_fn(params, batch) + jnp.sqrt(jnp.sum(0 * params["fc1"]["kernel"]))

    with pytest.raises(ValueError, match=r"gradients: NaN.*fc1/kernel"):
        swapjax.prune(
            overflows, *problem, sparsity=0.5, method=LR, samples=60, key=KEY,
            checkpoint=tmp_path / "state.safetensors",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_names_that_are_unknown_ask_for_a_rule(problem):
    with pytest.raises(ValueError, match="say with include what to prune of theta"):
        swapjax.prune(
            lambda p, b: jnp.sum(p["theta"]), {"theta": jnp.ones((3, 3))}, problem[1],
            sparsity=0.5, key=KEY,
        )  # fmt: skip


def test_an_iterator_that_ends_is_an_error(problem):
    params, (x, y) = problem
    with pytest.raises(ValueError, match="the iterator ended"):
        prune((params, iter([(x[:20], y[:20])])))


def test_recalibration_that_fails_is_named(problem):
    broken = lambda p: jax.tree.map(lambda x: x * jnp.nan, p)  # noqa: E731
    with pytest.raises(
        ValueError, match="recalibrate: NaN or infinite entries in fc1/bias"
    ):
        prune(problem, recalibrate=broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "data: the method linear-regression needs examples, got"),
        ({"key": None}, "key: examples are drawn for the method linear-regression"),
        ({"loss_fn": None}, "loss_fn must be a function of params and a batch"),
        (
            {
                "data": None,
                "method": swapjax.magnitude(),
                "finetune": FineTune(optax.sgd(1e-3), 1),
            },
            "data: finetune needs examples, got None",
        ),
    ],
)
def test_what_is_missing_is_named(problem, options, message):
    params, data = problem
    given = {
        "loss_fn": loss_fn, "params": params, "data": data, "sparsity": 0.8,
        "method": LR, "samples": 60, "key": KEY,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        swapjax.prune(**{**given, **options})
