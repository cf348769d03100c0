"""PyTorch's weights in: names, layouts, files, and what real ones score."""

import builtins
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from swapjax.core import trees
from swapjax.experiments import datasets, models, runner
from swapjax.io import checkpoint

SHARED = Path(__file__).parents[3] / "shared"

# As PyTorch names what is named otherwise here.
NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


def as_torch(model):
    """The state dict that PyTorch would have of a network."""
    result = {}
    leaves = jax.tree.leaves(model.params)
    for path, leaf in zip(trees.paths(model.params), leaves, strict=True):
        stem, _, kind = path.rpartition("/")
        array = np.asarray(leaf)
        if kind == "kernel":
            if path in model.flattened:
                array = array.reshape(*model.flattened[path], -1).transpose(3, 2, 0, 1)
                array = array.reshape(len(array), -1)
            else:
                array = np.moveaxis(array, (-1, -2), (0, 1))
            kind = "weight"
        if kind == "var":
            result[f"{stem}.num_batches_tracked".replace("/", ".")] = np.asarray(7)
        name = f"{stem}/{NAMES.get(kind, kind)}".replace("/", ".")
        result[name] = np.ascontiguousarray(array)
    return result


@pytest.fixture(scope="module")
def resnet20():
    """ResNet-20 with weights that are all different."""
    model = models.create("resnet20", (8, 8, 3), 4)
    leaves, treedef = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    leaves = [
        jnp.abs(jax.random.normal(k, x.shape))
        for k, x in zip(keys, leaves, strict=True)
    ]
    return model._replace(params=jax.tree.unflatten(treedef, leaves))


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The test images of the JPEG copies of CIFAR-10, and two to train."""
    source = SHARED / "data" / "cifar10_jpeg.npz"
    if not source.exists():
        pytest.skip(f"{source.name} is not in {source.parent}: get it to run this")
    arrays = checkpoint.read_npz(source)
    labels = np.arange(10)  # one image a class will do
    chosen = [np.flatnonzero(arrays["y_train"] == label)[0] for label in labels]
    edges = arrays["offset_train"]
    parts = [arrays["jpeg_train"][edges[i] : edges[i + 1]] for i in chosen]
    arrays["jpeg_train"] = np.concatenate(parts)
    arrays["offset_train"] = np.cumsum([0, *map(len, parts)])
    arrays["y_train"] = labels
    path = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    np.savez(path, **arrays)
    return datasets.load(path, mean=0.5, std=0.5)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_leaf_comes_back(resnet20, prefix):
    state = {prefix + name: array for name, array in as_torch(resnet20).items()}
    equal(models.from_torch(state, resnet20), resnet20.params)
    equal(models.from_torch({"state_dict": state}, resnet20), resnet20.params)


def test_files_are_read(resnet20, tmp_path):
    state = as_torch(resnet20)
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **state)
    for path in (tmp_path / "a.safetensors", tmp_path / "a.npz"):
        equal(models.from_torch(path, resnet20), resnet20.params)


def test_a_dense_layer_reads_pixels_in_its_own_order():
    """What PyTorch computes, channels first, is what comes out here."""
    model = models.create("cnn", (8, 8, 3), 5)
    state = as_torch(model)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = models.from_torch(state, model)

    def convolve(x, name):
        y = jax.lax.conv(x, state[f"{name}.weight"], (1, 1), "SAME")
        y = jnp.maximum(y + state[f"{name}.bias"][:, None, None], 0)
        n, c, h, w = y.shape
        return y.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))

    y = convolve(convolve(x.transpose(0, 3, 1, 2), "conv1"), "conv2")
    y = jnp.maximum(y.reshape(2, -1) @ state["fc1.weight"].T + state["fc1.bias"], 0)
    y = y @ state["fc2.weight"].T + state["fc2.bias"]
    np.testing.assert_allclose(model.apply(params, x), y, atol=1e-4)


def test_mobilenet_comes_as_one_sequence():
    model = models.create("mobilenet_v1", (32, 32, 3), 2)
    inside = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4"}
    state = {}
    for name, array in as_torch(model).items():
        head, *rest = name.split(".")
        if head == "blocks":
            name = ".".join(
                ["model", str(int(rest[0]) + 1), inside[rest[1]], *rest[2:]]
            )
        elif head != "fc":
            name = ".".join(["model.0", inside[head], *rest])
        state[name] = array
    equal(models.from_torch(state, model), model.params)


def test_what_does_not_match_is_named(resnet20):
    state = as_torch(resnet20)
    state["head.weight"] = state.pop("fc.weight")
    state["conv1.weight"] = state["conv1.weight"][:8]
    with pytest.raises(
        ValueError, match=r"missing fc/kernel; not of this .* head/weight"
    ):
        models.from_torch(state, resnet20)
    state["fc.weight"] = state.pop("head.weight")
    with pytest.raises(ValueError, match=r"conv1/kernel is \(3, 3, 3, 8\), wanted"):
        models.from_torch(state, resnet20)
    with pytest.raises(ValueError, match="optimizer: is a str, not an array"):
        models.from_torch({"optimizer": "sgd"}, resnet20)


def test_without_pytorch_its_files_are_not_read(resnet20, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "torch":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"a.pt: .pt files need PyTorch"):
        models.from_torch(tmp_path / "a.pt", resnet20)


def test_files_of_pytorch(resnet20, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is optional")
    state = {k: torch.tensor(v) for k, v in as_torch(resnet20).items()}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    equal(models.from_torch(tmp_path / "a.pt", resnet20), resnet20.params)
    torch.save(len, tmp_path / "code.pt")
    (tmp_path / "broken.pt").write_bytes(b"no archive")
    for name in ("code.pt", "broken.pt"):
        with pytest.raises(ValueError, match=f"{name}: not a readable PyTorch file"):
            models.from_torch(tmp_path / name, resnet20)


@pytest.mark.parametrize(
    ("name", "count", "accuracy", "loss"),
    [
        # Of all 10,000, which take long: 81.32 and 0.850, 88.71 and 0.3555.
        ("resnet20_cifar10", 1000, 79.90, 0.8954),
        ("resnet20_cifar10_jpeg", 2000, 87.85, 0.3795),
    ],
)
def test_published_weights_score_what_they_should(name, count, accuracy, loss, cifar10):
    model = models.create("resnet20", cifar10.shape, 10)
    path = SHARED / "checkpoints" / f"{name}.npz"
    params = models.from_torch(path, model)
    images, labels = cifar10.test
    data = cifar10._replace(x_test=images[:count], y_test=labels[:count])
    setting = runner.Setting(data, model, params)
    found = runner.evaluate(setting, params)
    assert abs(found[0] - accuracy) <= 0.05
    assert abs(found[1] - loss) <= 0.0005
