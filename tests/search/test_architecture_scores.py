"""Scores of architectures against plain evaluations of their own networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_spaces import CLASSES, SHAPE

from swapjax import search
from swapjax.search import architecture_scores as scores
from swapjax.search import kernels, nasbench201, perturbation
from swapjax.search.watch import gates_of, watch

OPS = ("none", "nor_conv_1x1")
CELLS = (
    "|nor_conv_1x1~0|+|nor_conv_1x1~0|nor_conv_1x1~1|",
    "|nor_conv_1x1~0|+|nor_conv_1x1~0|none~1|",  # a convolution that leads nowhere
    "|none~0|+|none~0|none~1|",
)


@pytest.fixture(scope="module")
def mini():
    ops = {name: nasbench201.OPS[name] for name in OPS}
    return search.cell_space("mini", ops, nodes=3, channels=2, cells=2, stages=1)


def score(mini, name, **options):
    key = jax.random.key(0)
    return search.score_architectures(
        mini, CELLS, name, key, shape=SHAPE, classes=CLASSES, **options
    )


@pytest.fixture(scope="module")
def params():
    """Two dense layers in one leaf, and one more; no kernel is called scale."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(
        jnp.float32,
        {
            "stack": {"kernel": draw((2, 5, 5)), "scale": draw(5)},
            "last": {"kernel": draw((5, 3))},
        },
    )


def apply(params, x, *, norm):
    """Run a network of three dense layers, two of them in a scan."""
    del norm
    step = lambda h, k: (jax.nn.relu(h @ k), None)  # noqa: E731
    h = x.reshape(len(x), -1)[:, :5] * params["stack"]["scale"]
    h, _ = jax.lax.scan(step, h, params["stack"]["kernel"])
    return h @ params["last"]["kernel"]


def test_scores_by_gradients_are_sums_over_layers(params):
    x, y = jax.random.normal(jax.random.key(1), (4, *SHAPE)), jnp.arange(4) % 3
    first, second, last = (*params["stack"]["kernel"], params["last"]["kernel"])

    def loss(kernels):
        h = x.reshape(4, -1)[:, :5] * params["stack"]["scale"]
        h = jax.nn.relu(jax.nn.relu(h @ kernels[0]) @ kernels[1]) @ kernels[2]
        return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()

    layers = [first, second, last]
    slopes = jax.jit(jax.grad(loss))(layers)
    half = [g / 2 for g in slopes]
    moved = (
        [w + s * g for w, g in zip(layers, half, strict=True)] for s in (1e-2, -1e-2)
    )
    up, down = map(jax.jit(jax.grad(loss)), moved)
    products = [(u - d) / 1e-2 for u, d in zip(up, down, strict=True)]
    pairs = list(zip(layers, slopes, products, strict=True))
    wanted = {
        "snip": sum(jnp.abs(w * g).sum() for w, g, _ in pairs),
        "plain": sum((w * g).sum() for w, g, _ in pairs),
        "grad_norm": sum(jnp.linalg.norm(g) for _, g, _ in pairs),
        "grasp": -sum((w * h).sum() for w, _, h in pairs),
    }
    found = jax.jit(
        lambda p: {name: getattr(scores, name)(apply, p, x, y) for name in wanted}
    )(params)
    for name in wanted:
        assert float(found[name]) == pytest.approx(float(wanted[name]), rel=5e-3), name


def test_scores_by_flow_and_fisher(params):
    positive = jax.tree.map(jnp.abs, params)
    total = float(apply(positive, jnp.ones((1, *SHAPE)), norm="none").sum())
    found, norms = jax.jit(
        lambda p: (scores.synflow(apply, p, SHAPE), scores.l2_norm(apply, p, SHAPE))
    )(params)
    assert float(found) == pytest.approx(np.log(3 * total), rel=1e-5)
    layers = (*params["stack"]["kernel"], params["last"]["kernel"])
    assert float(norms) == pytest.approx(sum(map(np.linalg.norm, layers)), rel=1e-5)
    x, y = jax.random.normal(jax.random.key(1), (4, *SHAPE)), jnp.arange(4) % 3

    def loss(gates):
        h = x.reshape(4, -1)[:, :5] * params["stack"]["scale"]
        for kernel, gate in zip(params["stack"]["kernel"], gates, strict=True):
            h = gate * jax.nn.relu(h @ kernel)
        logits = h @ params["last"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    slopes = jax.jit(jax.grad(loss))(jnp.ones((2, 4, 5)))
    found = jax.jit(lambda p: scores.fisher(apply, p, x, y))(params)
    assert float(found) == pytest.approx(float((slopes**2).sum()) / 8, rel=1e-4)


def test_together_is_one_after_another(mini):
    row = search.Proxy(lambda run, p, x: run(p, x, norm="train").sum(), "images")
    one, three = score(mini, row), score(mini, row, together=2)
    assert one.shape == (3,)
    assert one.dtype == np.float64
    np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-4)


def test_what_reaches_no_output_does_not_count(mini):
    """The second cell differs from one without its convolution by nothing."""
    key, told = jax.random.key(0), {"shape": SHAPE, "classes": CLASSES}
    cells = (CELLS[1], "|none~0|+|nor_conv_1x1~0|none~1|", CELLS[2])
    for name in "l2_norm", "decorrelation":
        found = search.score_architectures(mini, cells, name, key, **told)
        assert found[0] == found[1]
        assert found[1] > found[2] == 0 or name == "l2_norm"


def test_relus_are_seen_in_scans_and_branches_and_shut(params):
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))

    def run(x):
        out = apply(params, x, norm="none").sum()
        more = lambda x: jax.nn.relu(x).sum()  # noqa: E731
        return out + jax.lax.cond(out > -1e9, more, lambda x: -more(-x), x)

    def shut(gates):
        return watch(run, x, gates=gates)[0]

    out, seen = jax.jit(lambda x: watch(run, x, lambda v: 1 + 0 * v.sum()))(x)
    assert float(out) == pytest.approx(float(run(x)), rel=1e-5)
    assert [s.shape for s in seen] == [(2,), (), ()]
    assert sorted(map(float, seen[1:])) == [0, 1]  # one branch is taken
    assert seen[0].tolist() == [1, 1]
    gates = gates_of(run, x)
    assert float(jax.jit(shut)([0 * gate for gate in gates])) == 0
    wide = gates_of(run, x, channels=True)
    assert [gate.shape for gate in wide] == [(2, 4, 5), *[(4, 1, 1, SHAPE[-1])] * 2]


def test_scores_by_images_are_those_of_numpy():
    def apply(params, x, *, norm):
        return jax.nn.relu(x * params["kernel"]).sum((1, 2))

    def run(score, images=None):
        images = x if images is None else images
        return float(jax.jit(lambda x: score(apply, params, x))(images))

    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 5))
    params = {"kernel": jnp.ones((5, 5))[0] * jnp.ones((1, 1))}
    rows = np.asarray(x, np.float64).reshape(-1, 5).T
    wanted = np.linalg.eigvalsh(np.corrcoef(rows))[0]
    assert run(scores.decorrelation) == pytest.approx(wanted, rel=1e-4)
    same = x.at[..., 1].set(-2 * x[..., 0])
    assert float(scores.decorrelation(apply, params, same)) == pytest.approx(
        0, abs=1e-5
    )
    on = (np.asarray(x) > 0).reshape(3, -1)
    agree = (on[:, None] == on[None]).mean(-1)
    wanted = np.linalg.slogdet(agree + 1e-5 * np.eye(3))[1]
    assert run(scores.naswot) == pytest.approx(wanted, rel=1e-4)
    slopes = np.asarray(x > 0, np.float64).reshape(3, -1)
    v = np.linalg.eigvalsh(np.corrcoef(slopes)) + 1e-5
    wanted = -(np.log(v) + 1 / v).sum()
    assert run(scores.jacob_cov) == pytest.approx(wanted, rel=1e-4)


def test_counts_are_those_of_networks(mini):
    found = score(mini, "layers")
    assert found.tolist() == [2 + 6, 2 + 4, 2]
    assert score(mini, "params")[0] > score(mini, "params")[1]


@pytest.mark.parametrize("make", [search.nb201, search.darts, search.mobilenet])
def test_all_weights_of_layers_are_kernels(make):
    space, rng = make(), np.random.default_rng(0)
    table = {k: rng.random((len(e), len(space.ops))) for k, e in space.edges.items()}
    network = space.network(space.genotype(table))
    params = jax.eval_shape(network.init, jax.random.key(0))
    found = kernels.kernels(params)
    assert [x.shape for x in found] == [
        x.shape for x in jax.tree.leaves(params) if x.ndim > 1
    ]
    leaves = jax.tree.leaves_with_path(params)
    others = sum(x.size for path, x in leaves if path[-1].key in ("scale", "bias"))
    assert sum(x.size for x in found) == network.weights - others


def test_each_convolution_of_a_block_is_a_layer():
    space, key = search.mobilenet(), jax.random.key(0)
    cells = [space.decode({"layer": np.full(8, op)}) for op in (0, 2)]
    found = search.score_architectures(space, cells, "layers", key)
    assert found.tolist() == [3 + 3, 3 + 3 * 8]  # stem, last and dense layer beside


def test_perturbation_keeps_what_the_value_needs(tiny):
    weights = np.random.default_rng(0).random((6, 5))
    space = dataclasses.replace(tiny, kept=2, never=("none",))

    def value(alpha):
        return float((weights * alpha["cell"]).sum())

    found = perturbation.propose(tiny, value, np.random.default_rng(1))
    some = perturbation.propose(space, value, np.random.default_rng(1))
    weights[:, 0] = -1
    assert found == tiny.genotype({"cell": weights})
    assert some == space.genotype({"cell": weights})


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("accuracy", {}, "proxy must be one of params, flops"),
        ("snip", {}, "snip needs images and labels, got none"),
        ("naswot", {"images": np.zeros((2, 3, 3, 1))}, "images must have the shape"),
        ("naswot", {"examples": 0}, "examples must be 1 or more, got 0"),
        (search.Proxy(scores.snip, "money"), {}, "needs must be one of"),
    ],
)
def test_bad_input_is_told(mini, name, options, match):
    with pytest.raises(ValueError, match=match):
        score(mini, name, **options)
    with pytest.raises(ValueError, match="genotypes must be one architecture or more"):
        search.score_architectures(mini, [], "params", jax.random.key(0))
    with pytest.raises(ValueError, match="images must be 16 or more of shape"):
        search.perturb(mini, jax.random.key(0), images=np.zeros((2, 8, 8, 1)))
