"""Kinds of noise by name: how they are written, and what they spoil."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.corruptions import AnalogMemory
from swapjax.experiments import datasets, noise, runner
from swapjax.experiments.noise import CLEAN, KINDS, Noise, parse
from swapjax.gradients.noise import GradientNoise

KEY = jax.random.key(0)


def scene(digits, data=None):
    model = digits.model
    return noise.Scene(data or digits.data, model.loss_fn, digits.params)


# Words


@pytest.mark.parametrize(
    ("word", "kind", "level"),
    [
        ("clean", "clean", ()),
        ("gaussian", "gaussian", (4, 0.5)),
        ("gaussian:4,0.50", "gaussian", (4, 0.5)),
        ("rows:1e1,1", "rows", (10, 1)),
        ("labels:.123456789", "labels", (0.123456789,)),
        ("gaussian-blur:5", "gaussian-blur", (5,)),
    ],
)
def test_a_word_is_a_kind_and_its_level_and_is_written_back(word, kind, level):
    found = parse(word)
    assert found == Noise(kind, level)
    assert parse(str(found)) == found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_level_of_its_own_and_says_what_it_does(kind):
    found = parse(kind)
    assert str(found).startswith(kind)
    assert parse(str(found)) == found
    assert "{" not in found.told


@pytest.mark.parametrize(
    ("word", "saying"),
    [
        ("", "noise : not one of clean, gaussian, rows, "),
        ("gauss:4", "noise gauss:4: not one of clean, gaussian, rows, "),
        ("4", "noise 4: the name of a kind wanted; noise of 4 deviations on half "),
        ("4,0.5", "noise 4,0.5: the name of a kind wanted; "),
        ("clean:1", "noise clean:1: clean has no level"),
        ("clean:", "noise clean:: clean has no level"),
        ("gaussian:", "noise gaussian:: gaussian:SCALE,PROPORTION wanted, as g"),
        ("gaussian:4", "noise gaussian:4: gaussian:SCALE,PROPORTION wanted, as gau"),
        ("labels:0.4,1", "noise labels:0.4,1: labels:RATE wanted, as labels:0.4"),
        ("gaussian:-1,0.5", "SCALE must be a number of 0 or more, got '-1'"),
        ("gaussian:inf,0.5", "SCALE must be a number of 0 or more, got 'inf'"),
        ("rows:4,1.5", "PROPORTION must be a number from 0 to 1, got '1.5'"),
        ("rows:4,nan", "PROPORTION must be a number from 0 to 1, got 'nan'"),
        ("labels:much", "RATE must be a number from 0 to below 1, got 'much'"),
        ("pairs:1", "RATE must be a number from 0 to below 1, got '1'"),
        ("contrast:2.5", "SEVERITY must be a whole number from 1 to 5, got '2.5'"),
        ("contrast:6", "SEVERITY must be a whole number from 1 to 5, got '6'"),
        ("fgsm:\x1b[2J", r"EPSILON must be a number from 0 to 1, got '\x1b[2J'"),
    ],
)  # fmt: skip
def test_other_words_are_one_sentence(word, saying):
    with pytest.raises(ValueError, match="noise") as error:
        parse(word)
    assert saying in str(error.value)
    assert str(error.value).isprintable()


# What is spoilt


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_spoils_something_and_a_key_gives_the_same(kind, digits):
    found = parse(kind)
    (images, labels), corruption = found.spoil(KEY, scene(digits))
    before = digits.data.train
    assert images.shape == before[0].shape
    assert images.dtype == before[0].dtype
    assert labels.shape == before[1].shape
    changed = [
        name
        for name, new, old in (
            ("images", images, before[0]), ("labels", labels, before[1])
        )
        if not np.array_equal(new, old)
    ]  # fmt: skip
    of_rows = ("gaussian", "rows", "tails", "memory")
    of_data = ["labels"] if kind in ("labels", "pairs") else ["images"]
    assert changed == ([] if kind in ("clean", *of_rows) else of_data)
    assert (corruption is not None) == (kind in of_rows)
    again = found.spoil(KEY, scene(digits))
    assert np.array_equal(again.data[0], images)
    assert np.array_equal(again.data[1], labels)


def test_gradients_get_the_noise_that_the_word_says(digits):
    spoilt = parse("gaussian:2,0.3").spoil(KEY, scene(digits))
    assert spoilt.corruption == GradientNoise(2, 0.3)
    spoilt = parse("rows:2,0.3").spoil(KEY, scene(digits))
    assert spoilt.corruption == GradientNoise(2, 0.3, unit="row")
    spoilt = parse("tails:2,0.3").spoil(KEY, scene(digits))
    assert spoilt.corruption == GradientNoise(2, 0.3, degrees=1.5)
    spoilt = parse("memory:0.2").spoil(KEY, scene(digits))
    assert spoilt.corruption == AnalogMemory(levels=16, additive=0.2)


def test_labels_are_wrong_at_the_rate_that_the_word_says(digits):
    before = digits.data.y_train
    labels = parse("labels:0.3").spoil(KEY, scene(digits)).data[1]
    assert np.mean(np.asarray(labels) != before) == pytest.approx(0.3, abs=0.04)
    labels = np.asarray(parse("pairs:0.3").spoil(KEY, scene(digits)).data[1])
    assert np.mean(labels != before) == pytest.approx(0.3, abs=0.04)
    assert set((labels - before) % 10) == {0, 1}


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_attacks_stay_within_their_part_of_the_range_and_raise_the_loss(
    kind, digits, monkeypatch
):
    monkeypatch.setattr(noise, "_PART", 800)  # two passes, and not alike
    data, model = digits.data, digits.model
    (images, labels), _ = parse(f"{kind}:0.1").spoil(KEY, scene(digits))
    pixels, before = (x * data.std + data.mean for x in (images, data.x_train))
    assert np.max(np.abs(pixels - before)) == pytest.approx(0.1, abs=1e-5)
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5
    loss = model.loss_fn(digits.params, (jnp.asarray(images), labels))
    assert loss > 3 * model.loss_fn(digits.params, data.train)


def test_pixels_of_another_range_are_attacked_in_theirs(digits, tmp_path):
    path = tmp_path / "data.npz"
    arrays = zip(("x_train", "y_train"), digits.data.train, strict=True)
    rest = zip(("x_test", "y_test"), digits.data.test, strict=True)
    content = {k: v * 50 - 7 if k[0] == "x" else v for k, v in (*arrays, *rest)}
    np.savez(path, **content)
    data = datasets.load(path)
    images, _ = parse("fgsm:0.1").spoil(KEY, scene(digits, data)).data
    span = data.x_train.max() - data.x_train.min()
    moved = np.max(np.abs(images - data.x_train))
    assert moved == pytest.approx(0.1 * span, rel=1e-4)
    assert images.min() >= data.x_train.min()


def test_images_need_neighbours_to_be_blurred_and_none_to_be_attacked(digits):
    flat = digits.data._replace(x_train=digits.data.x_train.reshape(-1, 64))
    with pytest.raises(ValueError, match="noise gaussian-blur:3 wants images of"):
        parse("gaussian-blur").spoil(KEY, scene(digits, flat))
    images, _ = parse("fgsm").spoil(KEY, scene(digits, flat)).data
    assert images.shape == flat.x_train.shape


# Runs


def test_a_run_sees_what_was_spoilt_and_is_tested_on_what_was_not(digits, monkeypatch):
    seen = []

    def prune(loss_fn, params, data, *, noise, **_):
        seen.append((data, noise))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "prune", prune)
    for word in ("labels:0.4", "clean"):
        with pytest.raises(KeyboardInterrupt):
            runner.run(digits, None, seed=3, noise=parse(word))
    (images, labels), corruption = seen[0]
    wanted = runner.spoil(digits, parse("labels:0.4"), 3)
    other = runner.spoil(digits, parse("labels:0.4"), 4)
    assert np.array_equal(labels, wanted.data[1])
    assert not np.array_equal(labels, other.data[1])
    assert corruption is None
    assert np.array_equal(images, digits.data.x_train)
    assert np.array_equal(seen[1][0][1], digits.data.y_train)
    assert runner.spoil(digits, CLEAN, 3) == (digits.data.train, None)
