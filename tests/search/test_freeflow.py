"""Flow through operations: conserved, blind to signs and data, exact in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_spaces import CLASSES, SHAPE

from swapjax import search
from swapjax.search import nasbench201

OPS = ("none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3")


@pytest.fixture(scope="module")
def tiny():
    """Three edges and four operations in one stage of two cells."""
    ops = {name: nasbench201.OPS[name] for name in OPS}
    return search.cell_space("mini", ops, nodes=3, channels=2, cells=2, stages=1)


@pytest.fixture(scope="module")
def theta(tiny):
    return tiny.init(jax.random.key(0), SHAPE, CLASSES)


@pytest.fixture(scope="module")
def score(tiny):
    return search.freeflow(tiny, shape=SHAPE)


@pytest.fixture(scope="module")
def flows(score, tiny, theta):
    return score(theta, tiny.alpha())["cell"]


def test_what_flows_into_a_node_flows_out_of_it(flows):
    assert flows.dtype == np.float64
    (into, direct, out) = flows.sum(1)  # edges 0-1, 0-2, 1-2
    assert abs(into - out) < 1e-10 * out
    assert direct > 0


def test_flow_is_that_of_a_plain_evaluation(flows, tiny, theta):
    """By differences: R is a polynomial of alpha of the degree of the cells' number."""

    def total(alpha):
        ones = jnp.ones((1, *SHAPE))
        return tiny.apply(jax.tree.map(jnp.abs, theta), alpha, ones).sum()

    with jax.enable_x64(True):
        theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), theta)
        alpha, step = tiny.alpha(dtype=jnp.float64)["cell"], 1e-4
        total = jax.jit(total)
        for edge, op in (0, 2), (1, 3), (2, 1):
            up = total({"cell": alpha.at[edge, op].add(step)})
            down = total({"cell": alpha.at[edge, op].add(-step)})
            slope = float(up - down) / (2 * step)
            assert flows[edge, op] == pytest.approx(slope, rel=1e-6)


def test_signs_do_not_count_and_dead_operations_score_zero(score, flows, tiny, theta):
    alive = np.random.default_rng(0).random(flows.shape) < 0.7
    alive[:, 1] = True
    alpha = {"cell": alive * 1.0}
    found = score(theta, alpha)["cell"]
    rng = np.random.default_rng(1)
    flipped = jax.tree.map(lambda x: x * rng.choice([-1, 1], x.shape), theta)
    again = score(flipped, {"cell": -alpha["cell"]})["cell"]
    np.testing.assert_array_equal(again, found)
    assert not found[~alive].any()
    assert not flows[:, 0].any()  # none
    assert (found[:, 1:][alive[:, 1:]] > 0).all()


def test_scaling_what_all_paths_go_through_leaves_the_ranking(score, flows, theta):
    block = jax.tree.map(lambda x: 8 * x, theta["stem"])
    found = score({**theta, "stem": block}, {"cell": np.ones_like(flows)})["cell"]
    np.testing.assert_allclose(found, 8 * flows, rtol=1e-12)


def test_rescaled_kernels_hand_on_what_they_get(tiny, theta):
    score = search.freeflow(tiny, shape=SHAPE, rescale=True)
    found = score(theta, tiny.alpha())["cell"][:, 1:]
    assert (found.max(1) / found.min(1) < 1.5).all()
    grown = jax.tree.map(lambda x: 3 * x, theta)
    np.testing.assert_allclose(score(grown, tiny.alpha())["cell"][:, 1:], found)


def test_nothing_asks_for_data():
    for fn in search.freeflow, search.remove, search.synflow_ops:
        assert not {"data", "batch", "images", "labels"} & set(
            inspect.signature(fn).parameters
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "batch"}, "norm must be one of none, train, eval, got 'batch'"),
        ({"dtype": "float16"}, "dtype must be one of float64, float32, got 'float16'"),
        ({"shape": (8, 8)}, "shape must be"),
    ],
)
def test_bad_options_are_told(tiny, options, match):
    with pytest.raises(ValueError, match=match):
        search.freeflow(tiny, **{"shape": SHAPE, **options})
