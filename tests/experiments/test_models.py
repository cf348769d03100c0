"""The networks: shapes, counts, batch norm."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import swapjax
from swapjax import recalibrate_batchnorm
from swapjax.core import trees
from swapjax.experiments import datasets, models, runner
from swapjax.experiments.models import hypersphere, resnet, vgg
from swapjax.robust import Hypersphere


def shapes_of(model):
    return jax.tree.map(jnp.shape, model.params)


def test_mlpnet_is_784_40_20_10_without_biases():
    model = models.create("mlpnet", (28, 28), 10)
    assert shapes_of(model) == {
        "fc1": {"kernel": (784, 40)},
        "fc2": {"kernel": (40, 20)},
        "fc3": {"kernel": (20, 10)},
    }
    x = np.random.default_rng(0).normal(size=(3, 28, 28)).astype(np.float32)
    hidden = x.reshape(3, -1)
    for layer in ("fc1", "fc2"):
        hidden = np.maximum(hidden @ np.asarray(model.params[layer]["kernel"]), 0)
    logits = hidden @ np.asarray(model.params["fc3"]["kernel"])
    np.testing.assert_allclose(model.apply(model.params, x), logits, atol=1e-5)


def test_lenet300_starts_with_the_variance_of_he():
    model = models.create("lenet300", (28, 28), 10)
    shapes = [(784, 300), (300, 100), (100, 10)]
    kernels = [model.params[f"fc{i}"]["kernel"] for i in (1, 2, 3)]
    assert [k.shape for k in kernels] == shapes
    assert sum(k.size for k in kernels) == 266_200
    for kernel in kernels[:2]:
        np.testing.assert_allclose(jnp.var(kernel) * len(kernel), 2, rtol=0.05)


@pytest.mark.parametrize(("shape", "channels"), [((8, 12), 1), ((8, 12, 3), 3)])
def test_cnn_takes_images_with_and_without_channels(shape, channels):
    model = models.create("cnn", shape, 7)
    assert shapes_of(model) == {
        "conv1": {"kernel": (3, 3, channels, 16), "bias": (16,)},
        "conv2": {"kernel": (3, 3, 16, 32), "bias": (32,)},
        "fc1": {"kernel": (32 * 2 * 3, 64), "bias": (64,)},
        "fc2": {"kernel": (64, 7), "bias": (7,)},
    }
    assert model.apply(model.params, jnp.ones((2, *shape))).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlpnet", "cnn"])
def test_a_seed_decides_the_weights(name):
    one, same, other = (
        models.create(name, (8, 8), 3, seed=s).params for s in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernels = [p["fc1"]["kernel"] for p in (one, other)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("name", ["mlpnet", "cnn"])
def test_the_loss_is_the_mean_cross_entropy(name):
    model = models.create(name, (4, 4), 3)
    x = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    y = np.array([0, 1, 2, 1, 0])
    logits = np.asarray(model.apply(model.params, x), np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    expected = np.mean(log_sums - logits[np.arange(5), y])
    loss = model.loss_fn(model.params, (x, y))
    assert loss.shape == ()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_networks_that_are_not_known_or_do_not_fit_are_errors():
    with pytest.raises(ValueError, match=r"model must be one of mlpnet, .*, got 'vgg'"):
        models.create("vgg", (8, 8), 10)
    for shape in [(8,), (8, 6), (7, 8), (8, 8, 3, 1)]:
        with pytest.raises(ValueError, match=r"cnn takes images of .* divisible by 4"):
            models.create("cnn", shape, 10)

    for shape in [(8,), (4, 8, 3)]:
        with pytest.raises(ValueError, match=r"resnet20 takes .* sides of 8 or more"):
            models.create("resnet20", shape, 10)


# Convolutional networks of the papers.

PUBLISHED = {
    "resnet20": (272_474, 10),
    "resnet18": (11_689_512, 1000),
    "resnet50": (25_557_032, 1000),
    "mobilenet_v1": (4_231_976, 1000),
    "mobilenet_v1_half": (1_331_592, 1000),
    "vgg16": (138_357_544, 1000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_have_as_many_weights_as_published(name):
    weights, classes = PUBLISHED[name]
    build, _ = models._IMAGE_NETWORKS[name]
    network = nnx.eval_shape(lambda: build(3, classes, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == weights


def test_strides_start_where_those_of_pytorch_do():
    layer = resnet.convolution(2, 3, 3, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 2))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = jnp.stack(
        [padded[:, i : i + 3, j : j + 3] for i in (0, 2) for j in (4, 6)]
    )
    expected = jnp.einsum("pnhwc,hwco->pno", windows, layer.kernel[...])
    got = layer(x)[:, [0, 0, 1, 1], [2, 3, 2, 3]]
    np.testing.assert_allclose(got, jnp.swapaxes(expected, 0, 1), atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 7, 14, 10])
def test_sides_are_averaged_to_seven(side):
    matrix = vgg._averaging(side)
    assert matrix.shape == (7, side)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    if side in (7, 14):
        np.testing.assert_allclose(
            matrix, np.repeat(np.eye(7), side // 7, 1) * 7 / side
        )


class Tiny(nnx.Module):
    """A convolution, its batch norm, a classifier."""

    def __init__(self, rngs, channels=3):
        self.conv1 = resnet.convolution(channels, 4, 3, rngs=rngs)
        self.bn1 = resnet.batch_norm(4, rngs=rngs)
        self.fc = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.bn1(self.conv1(x))).mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def small():
    """A network with statistics that are not those of its start."""
    model = models._as_functions("tiny", Tiny(nnx.Rngs(0)), {})
    x = jax.random.normal(jax.random.key(1), (32, 8, 8, 3)) + 0.3
    params = recalibrate_batchnorm(model.statistics, model.params, [x])
    return model._replace(params=params), x


def test_images_without_channels_get_one():
    network = Tiny(nnx.Rngs(0), channels=1)
    model = models._as_functions("tiny", network, {}, flat=True)
    x = jax.random.normal(jax.random.key(1), (5, 8, 8))
    assert model.apply(model.params, x).shape == (5, 3)
    assert model.training_apply(model.params, x).shape == (5, 3)
    there = model.statistics(model.params, x)
    assert trees.paths(there) == trees.paths(model.params)


def test_cosines_are_trained_by_statistics_of_the_batch():
    network = Tiny(nnx.Rngs(0))
    kernel = hypersphere.with_cosines(network, ("fc",))
    model = models._as_functions("tiny", network, {})._replace(cosines=kernel)
    model = hypersphere.with_sphere(model, Hypersphere(scale=10.0, margin=0.2))
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 3)) + 0.3
    batch, there = (x, jnp.arange(16) % 3), model.statistics(model.params, x)
    trained = model.training_loss(model.params, batch)
    np.testing.assert_allclose(trained, model.loss_fn(there, batch), rtol=1e-4)


class TestBatchNorm:
    """Running statistics among params."""

    def test_training_takes_the_statistics_of_the_batch(self, small):
        model, x = small
        y = jnp.zeros(len(x), jnp.int32)
        there = model.statistics(model.params, x)
        np.testing.assert_allclose(
            model.training_loss(model.params, (x, y)),
            model.loss_fn(there, (x, y)),
            rtol=1e-4,
        )
        slopes = jax.grad(model.training_loss)(model.params, (x[:2], y[:2]))
        assert not np.any(slopes["bn1"]["mean"])

    def test_no_gradient_reaches_them_and_examples_stay_apart(self, small):
        model, x = small
        y = jnp.zeros(32, jnp.int32)
        both = jax.grad(model.loss_fn)(model.params, (x[:2], y[:2]))
        alone = [
            jax.grad(model.loss_fn)(model.params, (x[i : i + 1], y[:1])) for i in (0, 1)
        ]
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *alone)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both, mean
        )
        for path, g in zip(trees.paths(both), jax.tree.leaves(both), strict=True):
            assert jnp.any(g != 0) != path.endswith(("/mean", "/var"))

    def test_they_become_averages_over_batches(self, small):
        model, x = small
        found = recalibrate_batchnorm(model.statistics, model.params, [x[:8], x[8:]])
        stem = jax.lax.conv_general_dilated(
            x, model.params["conv1"]["kernel"], (1, 1), [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        parts = [stem[:8], stem[8:]]
        for name, of in (("mean", jnp.mean), ("var", jnp.var)):
            a, b = (of(part, axis=(0, 1, 2)) for part in parts)
            np.testing.assert_allclose(
                found["bn1"][name], (8 * a + 24 * b) / 32, rtol=1e-4, atol=1e-5
            )
        for path, new, old in zip(
            trees.paths(found),
            *map(jax.tree.leaves, (found, model.params)),
            strict=True,
        ):
            if not path.endswith(("/mean", "/var")):
                np.testing.assert_array_equal(new, old)

    def test_after_pruning_they_make_up_for_lost_activations(self, small):
        model, x = small
        y = jnp.argmax(model.apply(model.params, x), axis=1)
        run = {"sparsity": 0.5, "method": swapjax.magnitude(), "samples": 32}
        run |= {"key": jax.random.key(0)}
        plain = swapjax.prune(model.loss_fn, model.params, (x, y), **run)
        again = swapjax.prune(
            model.loss_fn, model.params, (x, y), **run,
            recalibrate=lambda p: recalibrate_batchnorm(model.statistics, p, [x]),
        )  # fmt: skip
        kernels = [p.params["conv1"]["kernel"] for p in (plain, again)]
        np.testing.assert_array_equal(*kernels)
        variances = [p.params["bn1"]["var"] for p in (plain, again)]
        np.testing.assert_array_equal(variances[0], model.params["bn1"]["var"])
        assert not np.allclose(*variances)

    def test_they_tell_the_harm_of_rows(self, small):
        model, x = small
        data = datasets.load("digits")
        setting = runner.Setting(data, model, model.params)
        method = swapjax.kfac_regression()
        criterion = runner.judge(setting, method, 8)
        batch = x, jnp.zeros(32, jnp.int32)
        emptied = jax.tree.map(jnp.zeros_like, model.params)
        assert criterion(model.params, batch) == 0
        assert 0 < criterion(emptied, batch) < 1
        # Whatever the running statistics are.
        moved = jax.tree.map(lambda x: x, model.params)
        moved["bn1"]["var"] = 9 * moved["bn1"]["var"]
        assert criterion(moved, batch) == 0
        assert runner.judge(setting, method, 4) is None
        assert runner.judge(setting, swapjax.chita(), 8) is None
        plain = model._replace(training_losses=None)
        assert (
            runner.judge(dataclasses.replace(setting, model=plain), method, 8) is None
        )

    def test_what_cannot_be_is_named(self, small):
        model, x = small
        with pytest.raises(ValueError, match="batches: there are none"):
            recalibrate_batchnorm(model.statistics, model.params, [])
        with pytest.raises(ValueError, match="no batch norm"):
            recalibrate_batchnorm(None, model.params, [x])
        with pytest.raises(ValueError, match=r"statistics: NaN or infinite .*bn1/mean"):
            recalibrate_batchnorm(
                model.statistics, model.params, [x.at[0].set(jnp.nan)]
            )


@pytest.mark.parametrize("name", ["cnn", "mlpnet"])
def test_a_head_of_cosines_has_the_kernel_of_the_linear_one_projected(name):
    shape = (8, 8, 3)
    plain, embedded = (
        models.create(name, shape, 4, head=head) for head in ("linear", "cosines")
    )
    assert plain.cosines is None
    layer = embedded.cosines.removesuffix("/kernel")
    assert list(embedded.params[layer]) == ["kernel"]
    kernel = plain.params[layer]["kernel"]
    unit = kernel / jnp.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(embedded.params[layer]["kernel"], unit, rtol=1e-5)
    x = jax.random.uniform(jax.random.key(0), (5, *shape))
    found = embedded.apply(embedded.params, x)
    bias = plain.params[layer].get("bias", 0)
    logits = (plain.apply(plain.params, x) - bias) / jnp.linalg.norm(kernel, axis=0)
    # A row of cosines is one of logits, divided by the norm of the features.
    ratios = found / logits
    np.testing.assert_allclose(ratios, ratios[:, :1] + 0 * ratios, rtol=1e-3)
    assert float(jnp.max(jnp.abs(found))) <= 1 + 1e-6


def test_outputs_in_training_mode_are_those_of_the_training_loss():
    model = models.create("resnet20", (8, 8, 3), 4, head="cosines")
    assert model.cosines == "fc/kernel"
    x, y = jax.random.uniform(jax.random.key(0), (5, 8, 8, 3)), jnp.arange(5) % 4
    logits = jax.jit(model.training_apply)(model.params, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    loss = jax.jit(model.training_loss)(model.params, (x, y))
    np.testing.assert_allclose(jnp.mean(losses), loss, rtol=1e-5)
    assert float(jnp.max(jnp.abs(logits))) <= 1 + 1e-6
    assert models.create("cnn", (8, 8), 4).training_apply is None


def test_an_unknown_head_is_an_error():
    with pytest.raises(ValueError, match="head must be 'linear', or 'cosines' for"):
        models.create("cnn", (8, 8), 4, head="sphere")
