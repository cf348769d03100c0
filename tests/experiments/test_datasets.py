"""Datasets as arrays, and the networks that take them."""

import io
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from swapjax.experiments import datasets, runner


def arrays(**changes):
    """A valid little dataset of three classes, but for some changes."""
    random = np.random.default_rng(0)
    valid = {
        "x_train": random.integers(0, 256, (12, 4, 5), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": random.integers(0, 256, (6, 4, 5), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {k: v for k, v in (valid | changes).items() if v is not None}


def load(tmp_path, options=None, **changes):
    np.savez(tmp_path / "d.npz", **arrays(**changes))
    return datasets.load(tmp_path / "d.npz", **(options or {}))


# Digits and MNIST.


def test_digits_are_real_scans_split_and_standardised():
    data = datasets.load("digits")
    assert (data.x_train.shape, data.x_test.shape) == ((1437, 8, 8), (360, 8, 8))
    assert (data.y_train.shape, data.y_test.shape) == ((1437,), (360,))
    assert (data.classes, data.shape, data.name) == (10, (8, 8), "digits")
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert set(data.y_train) == set(data.y_test) == set(range(10))
    assert abs(data.x_train.mean()) < 2e-4
    assert abs(data.x_train.std() - 1) < 2e-4
    assert data.train == (data.x_train, data.y_train)
    assert data.test == (data.x_test, data.y_test)


def test_digits_hold_every_scan_once_and_in_the_same_order_each_time():
    from sklearn.datasets import load_digits

    first, second = datasets.load("digits"), datasets.load("digits")
    np.testing.assert_array_equal(first.x_train, second.x_train)
    np.testing.assert_array_equal(first.y_test, second.y_test)
    images = np.concatenate([first.x_train, first.x_test]).reshape(-1, 64)
    pixels = np.round((images * first.std + first.mean) * 16).astype(int)
    labels = np.concatenate([first.y_train, first.y_test])
    x, y = load_digits(return_X_y=True)
    ours = sorted(map(tuple, np.column_stack([pixels, labels])))
    assert ours == sorted(map(tuple, np.column_stack([x.astype(int), y])))


def test_mnist_and_its_published_network_are_what_they_are_known_for(mnist):
    assert (mnist.data.mean, mnist.data.std) == (0.1307, 0.3081)
    assert mnist.data.x_train.shape == (60_000, 28, 28)
    accuracy, _ = runner.evaluate(mnist, mnist.params)
    assert accuracy == 93.97


# Files.


def test_bytes_are_divided_by_255_and_standardised(tmp_path):
    data, raw = load(tmp_path), arrays()
    x = raw["x_train"] / 255
    assert (data.mean, data.std) == (round(x.mean(), 4), round(x.std(), 4))
    np.testing.assert_allclose(data.x_train, (x - data.mean) / data.std, atol=1e-6)
    test = (raw["x_test"] / 255 - data.mean) / data.std
    np.testing.assert_allclose(data.x_test, test, atol=1e-6)
    np.testing.assert_array_equal(data.y_train, raw["y_train"])
    assert (data.classes, data.x_train.dtype) == (3, np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_taken_as_they_are(tmp_path, dtype):
    x = (10 * np.random.default_rng(0).normal(size=(12, 7)) + 3).astype(dtype)
    data = load(tmp_path, x_train=x, x_test=x[:6])
    assert data.mean == pytest.approx(x.astype(float).mean(), abs=1e-4)
    expected = (x.astype(float) - data.mean) / data.std
    np.testing.assert_allclose(data.x_train, expected, atol=1e-5)
    assert data.x_test.dtype == np.float32


def test_mean_and_deviation_can_be_given(tmp_path):
    data = load(tmp_path, {"mean": 0.5, "std": 0.25})
    assert (data.mean, data.std) == (0.5, 0.25)
    expected = (arrays()["x_test"] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(data.x_test, expected, atol=1e-6)


def test_mean_and_deviation_may_differ_by_channel(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
    means, images = (0.1, 0.2, 0.3), {"x_train": x, "x_test": x[:6]}
    data = load(tmp_path, {"mean": means, "std": (0.5, 0.5, 0.5)}, **images)
    assert (data.mean, data.std) == (means, 0.5)
    expected = (x / 255 - np.array(means)) / 0.5
    np.testing.assert_allclose(data.x_train, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"for all channels, got 0\.1,0\.2"):
        _ = data.box
    for shape, given in (((4, 5), (1, 2)), ((4, 5, 3), (1, 2)), ((4,), (1, 2, 3, 4))):
        x = np.ones((12, *shape), np.uint8)
        with pytest.raises(ValueError, match=r"one mean .*wanted, got \d"):
            load(tmp_path, {"mean": given}, x_train=x, x_test=x[:6])


NOISE = np.random.default_rng(1).normal(size=(12, 4, 5))
NAN = np.full((12, 4, 5), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_test": None, "y_test": None},
            "no x_test, y_test; it has x_train, y_train",
        ),
        ({"y_train": np.zeros((12, 1), int)}, r"y_train of shape \(12, 1\), one label"),
        (
            {"y_test": np.zeros(5, int)},
            r"x_test of shape \(6, 4, 5\) and y_test of .*5",
        ),
        ({"x_train": np.zeros(12)}, r"x_train of shape \(12,\)"),
        ({"x_train": np.zeros((0, 4)), "y_train": np.zeros(0, int)}, r"shape \(0, 4\)"),
        ({"x_train": np.zeros((12, 0))}, r"x_train of shape \(12, 0\)"),
        ({"x_train": np.float32(1)}, r"x_train of shape \(\)"),
        ({"y_train": np.zeros(12)}, "y_train of float64 from 0.0, integers from 0"),
        ({"y_test": np.arange(6) > 2}, "y_test of bool"),
        ({"y_train": np.arange(12) - 1}, "y_train of int64 from -1"),
        ({"y_test": np.full(6, 3)}, "label 3 to test, and only 0 to 2 to train"),
        ({"x_train": np.ones((12, 4, 5), int)}, "x_train of int64, bytes or floats"),
        ({"x_train": NAN}, "NaN or infinite pixels in x_train"),
        ({"x_test": np.full((6, 4, 5), np.inf)}, "NaN or infinite pixels in x_test"),
        ({"x_test": np.ones((6, 5, 4))}, r"\(4, 5\) to train and of \(5, 4\) to test"),
        ({"x_train": np.ones((12, 4, 5))}, "pixels of mean 1.0 and deviation 0.0"),
        ({"x_train": np.full((12, 4, 5), 0.1)}, "pixels of mean 0.1 and deviation 0.0"),
        ({"y_train": np.arange(12).astype("U")}, r"y_train of <U\d+, integers from 0"),
        ({"y_test": np.arange(6).astype("S")}, r"y_test of \|S\d+, integers from 0"),
        ({"y_train": np.zeros(12, "V2")}, r"y_train of \|V2, integers from 0"),
        ({"y_train": np.arange(12).astype("m8[D]")}, "y_train of timedelta64"),
        ({"y_test": np.arange(6).astype("M8[s]")}, "y_test of datetime64"),
        ({"y_train": np.arange(12) + 0.5}, "y_train of float64 from 0.5"),
        ({"y_train": np.eye(12)}, r"y_train of shape \(12, 12\), one label an image"),
        ({"y_test": np.full(6, 1j)}, "y_test of complex128, integers"),
        (
            {"y_train": np.full(12, 1000)},
            "label 1,000 in y_train, but 12 images; up to",
        ),
        ({"y_train": np.full(12, 2**63, "u8")}, "label 9,223,372,036,854,775,808 in"),
        ({"y_test": np.full(6, 2**32)}, "label 4294967296 to test, and only 0 to 2"),
        ({"x_train": np.full((12, 4, 5), 1e39)}, "infinite pixels in x_train, as floa"),
        ({"x_test": np.full((6, 4, 5), -1e300)}, "infinite pixels in x_test, as float"),
        ({"x_train": np.ones((12, 4, 5)) * 1j}, "x_train of complex128, bytes or floa"),
        ({"x_train": np.ones((12, 4, 5), "u2")}, "x_train of uint16, bytes or floats"),
        ({"x_train": np.ones((12, 4, 5), "m8[s]")}, "x_train of timedelta64"),
        ({"x_test": np.ones((6, 4, 5))}, "pixels of uint8 to train and of float64 to"),
        (
            {"x_train": np.full((12, 4, 5), 3e38) * np.sign(NOISE), "x_test": NOISE[:6]}
            | {"options": {"std": 0.5}},
            "pixels in x_train that are infinite less",
        ),
        ({"x_train": None, "notes\x1b[2J": np.ones(1)}, r"it has .*notes\\x1b\[2J"),
        ({"options": {"std": 0.0}}, "deviation 0.0"),
        ({"options": {"std": np.inf}}, "deviation inf"),
        ({"options": {"mean": np.nan}}, "pixels of mean nan"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_an_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"data: .*d\.npz has .*{message}"):
        load(tmp_path, **changes)


def test_a_source_that_is_unknown_or_unreadable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'digit' is not 'digits', 'tfds:NAME' or the"):
        datasets.load("digit")
    with pytest.raises(ValueError, match="is not 'digits'"):
        datasets.load(tmp_path)
    (tmp_path / "d.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"d\.npz: not a readable \.npz file"):
        datasets.load(tmp_path / "d.npz")


def test_members_besides_are_not_read(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(), other=np.array([None]))
    assert datasets.load(tmp_path / "d.npz").classes == 3


@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1.0, 1e20])
def test_pixels_may_be_in_any_unit(tmp_path, scale):
    x = (scale * (NOISE + 2)).astype(np.float32)
    data = load(tmp_path, x_train=x, x_test=x[:6])
    assert abs(data.x_train.mean()) < 1e-3
    assert abs(data.x_train.std() - 1) < 1e-3


# tensorflow-datasets, with a dataset prepared here.


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with the prepared dataset tiny_scans, and its pixels and labels."""
    from PIL import Image

    tfds = pytest.importorskip("tensorflow_datasets")
    random = np.random.default_rng(0)
    content = {
        split: (random.integers(0, 256, (n, 8, 8), dtype=np.uint8), np.arange(n) % 10)
        for split, n in (("train", 20), ("test", 10))
    }

    class TinyScans(tfds.core.GeneratorBasedBuilder):
        """Noise."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in content}

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(zip(*content[split], strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": int(label)}

    folder = tmp_path_factory.mktemp("tfds")
    TinyScans(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder, content


def test_prepared_datasets_are_read_without_tensorflow(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    folder, content = tiny
    data = datasets.load("tfds:tiny_scans", data_dir=folder)
    assert (data.name, data.classes, data.shape) == ("tfds:tiny_scans", 10, (8, 8, 1))
    for split, x, y in (("train", *data.train), ("test", *data.test)):
        pixels = np.round((x[..., 0] * data.std + data.mean) * 255).astype(np.uint8)
        # tfds shuffles once, when it prepares.
        got = sorted(
            (int(label), p.tobytes()) for p, label in zip(pixels, y, strict=True)
        )
        images, labels = content[split]
        wanted = [(int(n), p.tobytes()) for p, n in zip(images, labels, strict=True)]
        assert got == sorted(wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_set", "is no dataset that is known or prepared in"),
        ("tiny_scans:9.9.9", "could not be opened: .* only: 1.0.0"),
    ],
)
def test_a_dataset_that_tfds_cannot_open_is_an_error(tiny, name, message):
    with pytest.raises(ValueError, match=rf"(?s)data: tfds:{name} {message}"):
        datasets.load(f"tfds:{name}", data_dir=tiny[0])


@pytest.mark.parametrize(
    "name",
    ["", " mnist", "mnist:", "mnist/", "../up", "a b", "mnist:3", "m\x1b[31mnist", "é"],
)
def test_what_is_no_name_is_refused_without_tensorflow_datasets(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match="is no name of a dataset, as mnist") as error:
        datasets.load(f"tfds:{name}")
    assert str(error.value).isprintable()


def test_sets_that_are_known_or_damaged_are_told_in_a_line(tiny, tmp_path):
    with pytest.raises(ValueError, match="tfds:mnist is known, but not prepared in"):
        datasets.load("tfds:mnist", data_dir=tmp_path)
    shutil.copytree(tiny[0], tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.json"):
        file.write_text("{}")
    with pytest.raises(ValueError, match="tfds:tiny_scans could not be op") as error:
        datasets.load("tfds:tiny_scans", data_dir=tmp_path / "copy")
    assert str(error.value).isprintable()


def test_without_tensorflow_datasets_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'install "swapjax\[data\]"$'):
        datasets.load("tfds:mnist")


# Images in files of their own.


def encoded(images, format="PNG"):
    parts = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format)
        parts.append(file.getvalue())
    joined = np.frombuffer(b"".join(parts), np.uint8)
    return joined, np.cumsum([0, *map(len, parts)])


def test_images_that_are_files_one_after_the_other(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    images = {
        p: rng.integers(0, 256, (4, 6, 5, 3), np.uint8) for p in ("train", "test")
    }
    for part, some in images.items():
        arrays[f"jpeg_{part}"], arrays[f"offset_{part}"] = encoded(some)
        arrays[f"y_{part}"] = np.asarray([0, 1, 2, 1])
    np.savez(tmp_path / "images.npz", **arrays)
    data = datasets.load(tmp_path / "images.npz", mean=0.5, std=0.5)
    np.testing.assert_allclose(data.x_test, images["test"] / 127.5 - 1, atol=1e-6)
    assert data.shape == (6, 5, 3)

    arrays["jpeg_test"] = arrays["jpeg_test"].copy()
    arrays["jpeg_test"][: arrays["offset_test"][1]] = 0
    np.savez(tmp_path / "damaged.npz", **arrays)
    with pytest.raises(ValueError, match="has image 0 of jpeg_test damaged"):
        datasets.load(tmp_path / "damaged.npz")

    mixed = [*images["test"][:1], images["test"][1][:, :4]]
    arrays["jpeg_test"], arrays["offset_test"] = encoded(mixed)
    np.savez(tmp_path / "mixed.npz", **arrays)
    with pytest.raises(ValueError, match=r"images of \(6, 5, 3\) and \(6, 4, 3\)"):
        datasets.load(tmp_path / "mixed.npz")
