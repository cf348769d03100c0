"""Networks that a function of a user's makes: what is taken, and what is refused."""

import itertools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.experiments import datasets, models, runner
from swapjax.experiments.models import own
from swapjax.experiments.models.own_parts import Parts

_NUMBERS = itertools.count()
SHAPE, CLASSES = (2, 3), 4


def apply(params, images):
    return images.reshape(len(images), -1) @ params["w"]


def loss(params, batch):
    images, labels = batch
    logits = jax.nn.log_softmax(apply(params, images))
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1))


PARAMS = {"w": np.ones((6, 4), np.float32)}
GOOD = (PARAMS, apply, loss)


@pytest.fixture
def make(monkeypatch):
    """Bring a function under a name, as if a module of a user's had it."""

    def bring(function):
        name = f"own{next(_NUMBERS)}"
        module = SimpleNamespace(__name__=name, make=function, apply=apply)
        monkeypatch.setitem(sys.modules, name, module)
        return f"{name}:make"

    return bring


def create(word, **options):
    return models.create(word, SHAPE, CLASSES, **options)


@pytest.mark.parametrize(
    "found",
    [
        GOOD,
        list(GOOD),
        GOOD[:2],
        {"params": PARAMS, "apply": apply, "loss": loss},
        {"params": PARAMS, "apply": jax.jit(apply), "loss": None},
        SimpleNamespace(params=PARAMS, apply=apply),
        Parts(*GOOD),
        models.Model("theirs", PARAMS, apply, loss, loss),
    ],
)
def test_a_tuple_a_mapping_and_an_object_say_the_same(found, make):
    model = create(word := make(lambda: found))
    assert model.name == word
    batch = np.ones((2, *SHAPE), np.float32), np.array([0, 3])
    assert model.apply(model.params, batch[0]).shape == (2, 4)
    np.testing.assert_allclose(model.loss_fn(model.params, batch), np.log(4), 1e-6)
    np.testing.assert_allclose(model.training_loss(model.params, batch), np.log(4))


def test_it_is_given_the_arguments_that_it_names(make):
    def draw(classes, seed=7, width=6, **more):
        assert not more
        return {"w": jax.random.normal(jax.random.key(seed), (width, classes))}, apply

    one, two, default = (create(make(draw), seed=s).params["w"] for s in (0, 1, 0))
    np.testing.assert_array_equal(one, default)
    assert one.shape == (6, 4)
    assert not np.array_equal(one, two)


def test_a_file_in_the_folder_or_by_its_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "inner").mkdir()
    text = "import numpy as np\ndef make():\n    return {'w': np.ones((6, 4))}, run\n"
    text += "def run(p, x):\n    return x.reshape(len(x), -1) @ p['w']\n"
    (tmp_path / "own_here.py").write_text(text)
    (tmp_path / "inner" / "own_there.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    for word in ("own_here:make", "inner/own_there.py:make", "own_there:make"):
        assert create(word).params["w"].shape == (6, 4)
    (tmp_path / "numpy.py").write_text(text)
    with pytest.raises(ValueError, match="another module numpy is imported already"):
        create("numpy.py:make")


class TestBatchNorm:
    """One that has running statistics among its params."""

    @staticmethod
    def parts():
        params = {"mean": jnp.zeros(6), "w": jnp.ones((6, 4))}

        def centred(params, x, mean):
            return (x.reshape(len(x), -1) - mean) @ params["w"]

        def mean_of(x):
            return x.reshape(len(x), -1).mean(0)

        return {
            "params": params,
            "apply": lambda p, x: centred(p, x, p["mean"]),
            "training_apply": lambda p, x: centred(p, x, mean_of(x)),
            "statistics": lambda p, x: {**p, "mean": mean_of(x)},
        }

    @pytest.mark.parametrize("jit", [False, True])
    def test_no_gradient_reaches_them(self, jit, make):
        parts = self.parts()
        if jit:
            parts["statistics"] = jax.jit(parts["statistics"])
        model = create(make(lambda: parts))
        batch = np.ones((2, *SHAPE), np.float32), np.array([0, 3])
        slopes = jax.grad(model.loss_fn)(model.params, batch)
        assert not np.any(slopes["mean"])
        assert np.any(slopes["w"])

    def test_training_takes_those_of_batches_and_estimates_them_in_the_end(self, make):
        random = np.random.default_rng(0)
        y = np.arange(96) % 4
        x = (random.normal(size=(96, *SHAPE)) + 5 + y[:, None, None]).astype("f")
        data = datasets.Dataset("some", x, y, x, y, 4, 0.0, 1.0)
        model = create(make(self.parts))
        setting = runner.set_up(data, model, epochs=2)
        np.testing.assert_allclose(
            setting.params["mean"], x.reshape(96, -1).mean(0), rtol=1e-5
        )
        stale = {**setting.params, "mean": model.params["mean"]}
        assert (
            runner.Accuracy(setting)(stale)
            == runner.evaluate(setting, setting.params)[0]
        )
        assert runner.recalibration(setting)(stale)["mean"].shape == (6,)

    def test_what_is_trained_on_must_be_said(self, make):
        parts = {**self.parts(), "loss": loss}
        with pytest.raises(ValueError, match="return training_loss too"):
            create(make(lambda: parts))
        model = create(make(lambda: {**parts, "training_loss": lambda p, b: 7.0}))
        assert model.training_loss(model.params, None) == 7.0


def test_a_fingerprint_tells_weights_and_programs_apart(make):
    prints = [
        own.fingerprint(create(make(lambda found=found: found)), SHAPE)
        for found in (
            GOOD,
            (dict(PARAMS), lambda p, x: apply(p, x), lambda p, b: loss(p, b)),
            ({"w": 2 * PARAMS["w"]}, apply, loss),
            (PARAMS, apply, lambda p, b: 2 * loss(p, b)),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def fails():
    raise ZeroDivisionError("by zero")


BAD = {
    "missing": (lambda: {"params": PARAMS}, "returns a dict without apply"),
    "extra": (
        lambda: {"params": PARAMS, "apply": apply, "lose": loss},
        "returns a dict with lose",
    ),
    "nothing": (lambda: None, "returns a NoneType; .params, apply, loss. wanted"),
    "four": (lambda: (*GOOD, 1), "returns a tuple of 4"),
    "params alone": (lambda: PARAMS["w"], "returns a ndarray"),
    "no function": (lambda: (PARAMS, 3), "apply is a int, a function wanted"),
    "not arrays": (lambda: ({"w": "no"}, apply), "params: w is a str, not an array"),
    "no params": (lambda: ({}, apply), "params holds no arrays"),
    "not finite": (
        lambda: ({"w": np.full((6, 4), np.nan)}, apply),
        "NaN or infinite entries in w",
    ),
    "raises": (fails, r"raised ZeroDivisionError: by zero \(test_own.*line \d+\)"),
    "needs more": (
        lambda width: GOOD,
        r"^model: \S+: needs width; shape, classes and seed are",
    ),
    "shapes": (
        lambda: ({"w": np.ones((5, 4))}, apply),
        r"apply\(\) of 2 images of \(2, 3\) raised TypeError.*test_own_networks.py, l",
    ),
    "few classes": (
        lambda: ({"w": np.ones((6, 3))}, apply),
        r"returns an array of \(2, 3\) for 2 images of 4 classes; logits of \(2, 4\)",
    ),
    "no logits": (lambda: (PARAMS, lambda p, x: [x]), "apply returns a list"),
    "whole numbers": (
        lambda: (PARAMS, lambda p, x: jnp.zeros((2, 4), int)),
        "apply returns int32",
    ),
    "loss": (
        lambda: (PARAMS, apply, lambda p, b: b[0]),
        r"loss must return one scalar.*float32\[2,2,3\]",
    ),
    "statistics": (
        lambda: {"params": PARAMS, "apply": apply, "statistics": lambda p, x: x},
        "statistics: must return the tree of params",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_network_is_one_sentence(kind, make):
    function, saying = BAD[kind]
    with pytest.raises(ValueError, match=saying) as caught:
        create(word := make(function))
    assert str(caught.value).startswith(f"model: {word}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "saying"),
    [
        ("own_nowhere:make", "there is no module own_nowhere, neither in /.* nor inst"),
        ("swapjax.nowhere:make", "there is no module swapjax.nowhere"),
        ("own_nowhere.py:make", "there is no file own_nowhere.py"),
        ("json:make", "json has no make; it has .*dump, dumps"),
        ("string:digits", "is a str, a function wanted"),
        ("json:", "MODULE:FUNCTION wanted, as my_file:make"),
        (":make", "MODULE:FUNCTION wanted, as my_file:make"),
        ("a b:make", "'a b' is no name of a module"),
        ("own_needs:make", "its import raised ModuleNotFoundError: .*own_missing"),
        (
            "own_broken:make",
            r"its import raised NameError: .*\(own_broken.py, line 2\)",
        ),
        ("own_syntax:make", "its import raised SyntaxError"),
    ],
)
def test_modules_that_are_not_there_or_fail_are_one_sentence(
    word, saying, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_needs.py").write_text("import own_missing\n")
    (tmp_path / "own_broken.py").write_text("\nunknown\n")
    (tmp_path / "own_syntax.py").write_text("def make(:\n")
    with pytest.raises(ValueError, match=saying) as caught:
        models.find(word)
    assert str(caught.value).startswith(f"model: {word}: ")


def test_names_that_are_none_are_told_what_there_is():
    with pytest.raises(
        ValueError, match="MODULE:FUNCTION of your own, as my_file:make, g"
    ):
        models.find("resnet21")
    for name in (*models.NAMES, "nb201(8,1):anything"):
        models.find(name)
        assert not models.is_own(name)
