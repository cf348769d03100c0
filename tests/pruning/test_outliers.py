"""Outlier weighed sparsities, against the formula in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.pruning.outliers import _block_of

KEYS = jax.random.split(jax.random.key(0), 6)
HEAVY = lambda key, *shape: jax.random.normal(key, shape) ** 3  # noqa: E731
PARAMS = {
    "layers": [
        {"up": jax.random.normal(KEYS[0], (6, 16)), "down": HEAVY(KEYS[1], 16, 6)},
        {"up": HEAVY(KEYS[2], 6, 16), "down": HEAVY(KEYS[3], 16, 6)},
    ],
    "head": jax.random.normal(KEYS[4], (6, 4)),
}
X = np.asarray(jax.random.normal(KEYS[5], (40, 6)) * jnp.arange(1.0, 7))


def loss_fn(params, x):
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return jnp.mean((x @ params["head"]) ** 2)


def reference(sparsity, outlier=5.0, width=0.08):
    """D of each block, and what follows from it."""
    x, blocks = X.astype(np.float64), []
    for layer in PARAMS["layers"]:
        up, down = (np.asarray(layer[name], np.float64) for name in ("up", "down"))
        hidden = np.tanh(x @ up)
        read = [np.sqrt((v**2).mean(0))[:, None] for v in (x, hidden)]
        blocks.append([abs(up) * read[0], abs(down) * read[1]])
        x = x + hidden @ down
    head = np.asarray(PARAMS["head"], np.float64)
    blocks.append([abs(head) * np.sqrt((x**2).mean(0))[:, None]])
    flat = [np.concatenate([m.ravel() for m in block]) for block in blocks]
    ratios = np.array([(m > outlier * m.mean()).mean() for m in flat])
    moves = 2 * width * (ratios - ratios.min()) / (ratios.max() - ratios.min())
    moves -= np.average(moves, weights=[len(m) for m in flat])
    return sparsity - moves


def owl(sparsity, **options):
    return swapjax.owl(
        loss_fn, PARAMS, X, sparsity, samples=40, key=KEYS[0],
        plan=swapjax.plan(PARAMS, 0.5, loss_fn=loss_fn, batch=X), **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"outlier": 3.0, "width": 0.05}])
def test_sparsities_follow_the_outliers_of_blocks(options):
    found = owl(0.7, **options)
    wanted = reference(0.7, **options)
    by_block = [found["layers/0/up"], found["layers/1/down"], found["head"]]
    np.testing.assert_allclose(by_block, wanted, atol=1e-6)
    assert found["layers/0/up"] == found["layers/0/down"]
    target = swapjax.plan(PARAMS, 0.7, loss_fn=loss_fn, batch=X, allocation=found)
    sizes = dict(zip(target.layout.layers, target.sizes, strict=True))
    kept = [round(sizes[name] * (1 - s), 3) for name, s in found.items()]
    assert np.max(np.abs(np.array(kept) - target.keep)) < 1
    assert target.kept == round(408 * 0.3)


def test_no_layer_keeps_less_than_half_its_share():
    found = owl(0.95)
    assert max(found.values()) == pytest.approx(0.975)
    assert min(found.values()) > 0


def test_blocks_may_be_named():
    found = owl(0.5, blocks=lambda name: "one")
    assert set(found.values()) == {0.5}
    apart = owl(0.5, blocks=str)
    assert apart["layers/0/up"] != apart["layers/0/down"]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder/layer/11/attention/query", "encoder/layer/11"),
        ("blocks_3/mlp/kernel", "blocks_3"),
        ("blocks/mlp/kernel[3]", "[3]"),
        ("stack/experts[3,1]", "[3,1]"),
        ("head/kernel", "head/kernel"),
        ("3", "3"),
    ],
)
def test_blocks_are_read_off_names(name, block):
    assert _block_of(name) == block


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ({"outlier": 0.0}, "outlier must be a number above 0"),
        ({"width": 1.5}, r"width must be in \[0, 1\)"),
        ({"blocks": lambda name: 3}, "blocks must tell the name of the block of"),
        ({"blocks": "layers"}, "blocks must be a function of a layer's name, got 'la"),
    ],
)
def test_values_out_of_range_are_an_error(options, saying):
    with pytest.raises(ValueError, match=saying):
        owl(0.5, **options)
