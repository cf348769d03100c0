"""One-shot methods on sizes, dtypes and arguments at the edge of what is sensible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax import Status, by_score, cbs, chita, obd, saliency, woodfisher


def run(method, params, sparsity=0.5, scale=1.0, **options):
    x = jax.random.normal(jax.random.key(1), (40, 16))

    def loss(params, batch):
        kernel = params["a"]["kernel"].astype(jnp.float32)
        return scale * jnp.mean(jnp.square(batch @ kernel - 1))

    return swapjax.prune(
        loss, params, x, sparsity=sparsity, method=method, samples=40,
        key=jax.random.key(0), **options,
    )  # fmt: skip


@pytest.mark.parametrize("step", [0.0, 0.7, 0.98])
@pytest.mark.parametrize("kept", [1, 2, 60])
def test_shrinking_ends_however_few_are_kept(kept, step):
    params = {"a": {"kernel": jax.random.normal(jax.random.key(0), (16, 4))}}
    method = chita(damping=0.01, step=step, iterations=1)
    pruned = run(method, params, sparsity=1 - kept / 64)
    assert pruned.history[0].kept == kept


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "method",
    [obd(), saliency(), woodfisher(damping=1e-5), cbs(start="obd")],
    ids=lambda method: method.name,
)
def test_narrow_weights_are_chosen_as_wide_ones(method, dtype):
    """Scores far from 1 leave the range of float16, and must not be in it."""
    wide = 1e-2 * jax.random.normal(jax.random.key(0), (16, 4))
    narrow = {"a": {"kernel": wide.astype(dtype)}}
    same = jax.tree.map(lambda w: w.astype(jnp.float32), narrow)
    pruned, expected = (run(method, p, scale=1e-2) for p in (narrow, same))
    jax.tree.map(np.testing.assert_array_equal, pruned.masks, expected.masks)
    assert pruned.params["a"]["kernel"].dtype == dtype


@pytest.mark.parametrize(
    "method",
    [woodfisher(), cbs(), chita(), chita(search="magnitude", polish="descent")],
    ids=str,
)
def test_empty_leaves_do_no_harm(method):
    params = {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (16, 4))},
        "b": {"kernel": jnp.zeros((0, 4))},
    }
    assert run(method, params).history[0].kept == 32


def test_scores_beyond_all_numbers_are_told():
    params = {"a": {"kernel": jnp.ones((16, 4))}}
    steep = by_score(
        "steep", lambda problem: [jnp.exp(1e4 * w) for w in problem.weights]
    )
    assert run(steep, params).history[0].status == Status.NOT_FINITE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": swapjax.chita}, "method must be what a function like"),
        (
            {"noise": (4, 0.5)},
            r"noise must be a function of rows, .* got \(4, 0.5\)",
        ),
        ({"samples": 4.0}, "samples must be a whole number, got 4.0"),
        ({"dtype": jnp.int32}, "dtype must be one of floats, got int32"),
        ({"params": {"kernel": jnp.ones((2, 2)), "f": "x"}}, "params: f is a str"),
        ({"loss_fn": lambda p, b: b[:, 0]}, r"must return one scalar, .*\[1\]"),
        ({"method": woodfisher(output_axis=7)}, "output_axis: 7 is no axis of a"),
    ],
)
def test_bad_arguments_are_named(options, message):
    given = {
        "loss_fn": lambda p, b: jnp.mean(b @ p["kernel"]),
        "params": {"kernel": jnp.ones((4, 3))},
        "data": jnp.ones((9, 4)),
        "sparsity": 0.5,
        "samples": 4,
        "key": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=message):
        swapjax.prune(**(given | options))
