"""Runs of swapjax train that take a moment."""

import numpy as np
import pytest

from swapjax.cli import main
from swapjax.experiments import datasets, models
from swapjax.experiments.models import mlp

# 48 images make three batches an epoch.
_QUICK = ("--epochs", "2", "--batch", "16", "--sparsity", "0.8")


@pytest.fixture(scope="module")
def small():
    """A network of one layer, which compiles fast."""
    with pytest.MonkeyPatch.context() as patch:
        layers = lambda sizes, rngs: mlp.MLP((sizes[0], sizes[-1]), rngs=rngs)  # noqa: E731
        patch.setattr(models, "MLP", layers)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Few digits."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    data = datasets.load("digits")
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **{name: getattr(data, name)[:48] for name in names})
    return path


@pytest.fixture
def train(images, small):
    """Call the command with options and a folder; returns its exit code."""

    def call(*options, out):
        options = (*_QUICK, "--data", images, *options)
        return main(["train", *map(str, options), "--out", str(out)])

    return call
