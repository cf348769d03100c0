"""Scores of architectures against plain evaluations of their own networks."""

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

OPS = ("none", "skip_connect", "nor_conv_1x1")
CELLS = (
    "|nor_conv_1x1~0|+|skip_connect~0|nor_conv_1x1~1|",
    "|nor_conv_1x1~0|+|skip_connect~0|none~1|",  # a convolution that leads nowhere
    "|none~0|+|none~0|none~1|",
)


@pytest.fixture(scope="module")
def mini():
    ops = {name: nasbench201.OPS[name] for name in OPS}
    return search.cell_space("mini", ops, nodes=3, channels=2, cells=2, stages=1)


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    return x, jnp.arange(4) % CLASSES


def score(mini, name, **options):
    key = jax.random.key(0)
    return search.score_architectures(
        mini, CELLS, name, key, shape=SHAPE, classes=CLASSES, **options
    )


@pytest.fixture(scope="module")
def plainly(mini, batch):
    """Weights and gradients of the first cell in a supernet, and its apply."""
    theta, alpha = mini.init(jax.random.key(0), SHAPE, CLASSES), mini.one_hot(CELLS[0])

    def apply(params, x, *, norm):
        return mini.apply(params, alpha, x, norm=norm)

    def loss(params):
        logits = apply(params, batch[0], norm="train")
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return each.mean()

    return theta, apply, loss


def test_scores_by_gradients_are_sums_over_kernels(mini, plainly, batch):
    theta, _, loss = plainly
    pairs = list(
        zip(*map(kernels.kernels, (theta, jax.grad(loss)(theta))), strict=True)
    )
    told = {"images": batch[0], "labels": batch[1]}
    wanted = sum(float(jnp.abs(w * g).sum()) for w, g in pairs)
    found = score(mini, "snip", together=2, **told)
    assert found.dtype == np.float64
    assert found.shape == (3,)
    assert found[0] == pytest.approx(wanted, rel=1e-4)
    layers = (g[i] for w, g in pairs for i in range(len(g)) if g.ndim == 5)
    rest = (g for w, g in pairs if g.ndim != 5)
    wanted = sum(float(jnp.linalg.norm(g.ravel())) for g in (*layers, *rest))
    assert score(mini, "grad_norm", **told)[0] == pytest.approx(wanted, rel=1e-4)


def test_what_reaches_no_output_does_not_count(mini):
    """The second cell differs from one without its convolution by nothing."""
    key, told = jax.random.key(0), {"shape": SHAPE, "classes": CLASSES}
    cells = (CELLS[1], "|none~0|+|skip_connect~0|none~1|", CELLS[2])
    for name in "l2_norm", "decorrelation":
        found = search.score_architectures(mini, cells, name, key, **told)
        assert found[0] == found[1]
        assert found[1] > found[2] == 0 or name == "l2_norm"


def test_relus_are_seen_in_scans_and_shut(plainly, batch):
    theta, apply, _ = plainly
    run = lambda x: apply(theta, x, norm="train")  # noqa: E731
    out, seen = watch(run, batch[0], lambda v: v.shape[-1] + 0 * v.sum())
    np.testing.assert_allclose(out, run(batch[0]), rtol=1e-5, atol=1e-6)
    assert [s.shape for s in seen] == [(2,), (2,), (2,), ()]  # three edges, the head
    assert all((s == 2).all() for s in seen)
    shut = [0 * gate for gate in gates_of(run, batch[0])]
    np.testing.assert_array_equal(watch(run, batch[0], gates=shut)[0], 0)


def test_decorrelation_is_the_least_eigenvalue(mini, batch):
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
    assert found.tolist() == [2 + 4, 2 + 2, 2]
    assert score(mini, "params")[0] > score(mini, "params")[1]


def test_perturbation_keeps_what_the_value_needs(mini):
    weights = np.random.default_rng(0).random((3, 3))

    def value(alpha):
        return float((weights * alpha["cell"]).sum())

    found = perturbation.propose(mini, value, np.random.default_rng(1))
    weights[:, 0] = -1
    assert found == mini.genotype({"cell": weights})


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
