"""A network of a user's own, pixels as weights want them, runs again, as JSON."""

import contextlib
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from interrupts import interrupt_stage
from safetensors.numpy import save_file

from swapjax.cli import commands, config, main
from swapjax.experiments import plot, runner
from swapjax.io import checkpoint

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "command-line.md"
_PARTS = GUIDE.read_text().split("```python\n")
PLAIN, NORMALISED = (part.partition("```")[0] for part in _PARTS[1:3])
_NUMBERS = itertools.count()
QUICK = ("--method", "magnitude", "--stages", "1", "--samples", "20", "--epochs", "1")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures take longer than these runs."""
    monkeypatch.setattr(plot, "save", lambda figure, path: path.touch())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module to the current folder; returns the word for its function."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Which would be taken for a file of the same length from the same second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def write(text, name=None):
        name = name or f"file{next(_NUMBERS)}"
        Path(f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return f"{name}:make"

    return write


def prune(images, *options):
    data = () if images is None else ("--data", images)
    return main(["prune", *map(str, (*data, *QUICK, *options))])


def report(folder="out"):
    return json.loads(Path(folder, "report.json").read_text())


def notes(path):
    return checkpoint.read(path)[1]


def test_the_file_of_the_guide_goes_through_prune_and_is_short(own, images, capsys):
    assert len(PLAIN.splitlines()) <= 40
    options = ("--model", own(PLAIN), "--out", "out", "--sparsity", "0.5")
    assert prune(images, *options) == 0
    text, error = capsys.readouterr()
    assert error == ""
    assert "stack, inputs and outputs are told by the program" in text
    prunable = {row["leaf"] for row in report()["layers"] if row["prunable"]}
    assert prunable == {"patches", "mix/w", "out"}
    result = report()["result"]
    assert result["nonzeros"] == result["total"] // 2
    # As a checkpoint.
    weights = ("--checkpoint", "out/dense.safetensors", "--quiet")
    assert prune(images, *options[:3], "again", *weights) == 0
    assert report("again")["dense"] == report()["dense"]
    # In shards, as others write them.
    arrays, _ = checkpoint.read("out/dense.safetensors")
    Path("shards").mkdir()
    index = {}
    for i, (name, array) in enumerate(arrays.items()):
        index[name.replace("/", ".")] = file = f"{i}.safetensors"
        save_file({name.replace("/", "."): array}, f"shards/{file}")
    named = json.dumps({"weight_map": index})
    Path("shards/model.safetensors.index.json").write_text(named)
    shards = ("--checkpoint", "shards", "--quiet")
    assert prune(images, *options[:3], "sharded", *shards) == 0
    assert report("sharded")["dense"] == report()["dense"]
    compare = ["compare", *map(str, (*options[:2], *weights, *QUICK, "--data", images))]
    assert main([*compare, "--sparsities", "0.5", "--json", "runs.json"]) == 0
    (row,) = json.loads(Path("runs.json").read_text())
    assert row["accuracy"] == result["accuracy"]
    assert "network=" in row["setup"]


def test_batch_norm_is_estimated_after_training_and_after_pruning(own, images, capsys):
    word = own(NORMALISED, "mine")
    options = ("--model", word, "--sparsity", "0.5")
    assert prune(images, *options, "--out", "out") == 0
    weights = ("--checkpoint", "out/dense.safetensors")
    assert prune(images, *options, *weights, "--out", "kept", "--no-recalibrate") == 0
    dense, again, kept = (
        checkpoint.read(path)[0]
        for path in ("out/dense.safetensors", "out/params.safetensors",
                     "kept/params.safetensors")
    )  # fmt: skip
    assert np.any(dense["norm/mean"] != 0)
    np.testing.assert_array_equal(kept["norm/var"], dense["norm/var"])
    assert not np.any(again["norm/var"] == dense["norm/var"])
    train = ("train", "--data", str(images), "--model", word, "--algorithm", "gmp")
    assert main([*train, "--epochs", "1", "--batch", "16", "--out", "trained"]) == 0
    trained = checkpoint.read("trained/params.safetensors")[0]
    assert np.any(trained["norm/mean"] != 0)
    _the_state_of_other_code_or_statistics_is_refused(own, images, capsys)


def test_rows_of_batch_norm_tell_the_harm(own, images, monkeypatch):
    asked = []

    def spy(*args, criterion, **options):
        asked.append(criterion)
        return pruned(*args, criterion=criterion, **options)

    pruned = runner.prune
    monkeypatch.setattr(runner, "prune", spy)
    word = own(NORMALISED, "mine")
    start = ("--model", word, "--sparsity", "0.5", "--method", "kfac-regression")
    start = (*start, "--samples", "4")
    assert prune(images, *start, "--batch", "8", "--out", "out") == 0
    weights = (*start, "--checkpoint", "out/dense.safetensors")
    for i, other in enumerate((
        ("--batch", "4"),
        ("--batch", "8", "--no-recalibrate"),
        ("--batch", "8", "--method", "linear-regression"),
    )):  # fmt: skip
        assert prune(images, *weights, *other, "--out", f"out{i}") == 0
    assert [criterion is not None for criterion in asked] == [True] + [False] * 3
    # Goes on where it stopped, as the criterion is the same each time.
    again = (*weights, "--batch", "8", "--stages", "2", "--out", "stopped")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 2)
        assert prune(images, *again) == 130
    assert prune(images, *again) == 0


def test_a_network_whose_code_has_changed_is_trained_anew(own, images, capsys):
    for text, anew in (
        (PLAIN, True),
        (f"# A comment.\n{PLAIN}", False),
        (PLAIN.replace("jax.nn.gelu(x)", "jax.nn.relu(x)"), True),
    ):
        assert prune(images, "--model", own(text, "mine"), "--out", "out") == 0
        assert ("given: training mine:make" in capsys.readouterr().out) == anew


def _the_state_of_other_code_or_statistics_is_refused(own, images, capsys):
    """With weights of a file, which tell neither."""
    Path("out", "dense.safetensors").rename("dense.safetensors")
    options = ("--model", "mine:make", "--out", "out", "--stages", "2")
    options = (*options, "--checkpoint", "dense.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 2)
        assert prune(images, *options) == 130
    assert Path("out", ".swapjax-run.json").exists()
    capsys.readouterr()
    for text, more, what in (
        (NORMALISED, ("--no-recalibrate",), "recalibrate was True, is False"),
        (NORMALISED.replace("nnx.relu", "nnx.gelu"), (), "network was "),
    ):
        own(text, "mine")
        assert prune(images, *options, *more) == 2
        error = capsys.readouterr().err
        assert "state.safetensors belongs to another run" in error
        assert what in error
    own(NORMALISED, "mine")
    assert prune(images, *options) == 0
    assert "Going on from" in capsys.readouterr().out
    names = [path.name for path in Path("out").iterdir() if path.name[0] == "."]
    assert names == []


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("def build(): pass", "has no make; it has build"),
        (
            "def make(): return 1 / 0",
            "make() raised ZeroDivisionError: divis",
        ),
        ("def make(): return 3", "returns a int; (params, apply, loss) wanted"),
        (
            PLAIN.replace("(3 * pixels", "(4 * pixels"),
            "apply() of 2 images of (8, 8)",
        ),
        (None, "there is no module"),
    ],
)
def test_what_is_no_network_is_refused(text, saying, own, tmp_path, capsys):
    word = "nowhere_at_all:make" if text is None else own(text)
    assert prune(None, "--model", word, "--out", "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"swapjax: model: {word}: ")
    assert error.count("\n") == 1
    assert saying in error
    assert not Path("out").exists()


# Pixels


@pytest.fixture
def colours(tmp_path):
    """A few images of three channels."""
    random = np.random.default_rng(0)
    pixels = random.random((40, 4, 4, 3), dtype=np.float32)
    labels = np.arange(40) % 2
    path = tmp_path / "colours.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return path


def test_pixels_are_kept_with_weights_and_read_back(colours, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    options = ("--mean", "0.1,0.2,0.3", "--std", "0.5")
    assert prune(colours, *options, "--out", out) == 0
    said = "less 0.1,0.2,0.3, divided by 0.5 (as given)."
    assert said in capsys.readouterr().out
    for name in ("params", "dense"):
        kept = notes(out / f"{name}.safetensors")
        assert (kept["pixel_mean"], kept["pixel_std"]) == ("0.1,0.2,0.3", "0.5")
    assert report(out)["data"]["mean"] == [0.1, 0.2, 0.3]
    weights = ("--checkpoint", out / "dense.safetensors")
    same = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.5,0.5")
    assert prune(colours, *weights, *same, "--out", again) == 0
    text = capsys.readouterr().out
    assert "less 0.1,0.2,0.3" in text
    assert "Take care" not in text
    assert report(again)["dense"] == report(out)["dense"]
    assert prune(colours, *weights, "--mean", "0.1", "--out", again) == 2
    error = capsys.readouterr().err
    assert "--mean 0.1: " in error
    assert "was trained on pixels with 0.1,0.2,0.3; leave it out" in error

    # A checkpoint that does not tell.
    arrays, _ = checkpoint.read(out / "dense.safetensors")
    np.savez(tmp_path / "weights.npz", **arrays)
    weights = ("--checkpoint", tmp_path / "weights.npz", "--out", again)
    assert prune(colours, *weights) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    assert "(the data's own)." in text
    assert "Take care: " in text
    assert "unless on those, give --mean and --std." in text


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("--mean 0.1,0.2", "has images of (4, 4, 3); one mean or 3 wanted, got 2"),
        ("--std 1,1,1,1", "has images of (4, 4, 3); one std or 3 wanted, got 4"),
        ("--mean some", "--mean: numbers wanted, one or one per channel"),
        ("--mean 1,,2", "--mean: numbers wanted"),
        ("--std 0.5,0,1", "--std: positive numbers wanted"),
        ("--std nan", "--std: positive numbers wanted"),
        ("--mean 1,2,3 --noise fgsm", "one number for all channels, got 1.0,2.0,3.0"),
    ],
)
def test_bad_pixels_are_one_sentence(options, saying, colours, tmp_path, capsys):
    assert prune(colours, *options.split(), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert saying in error


# Again, quietly, as JSON


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prune", "--noise labels:0.1 --no-first-order --mean=-1,2 --damping 1e-3"),
        (
            "prune",
            "--model a:b --exclude=--x --pattern 2:4 --checkpoint x --block 3",
        ),
        ("train", "--attack fgsm square --hypersphere --scale 3 --prune-backward 0.5"),
        (
            "train",
            "--label-noise pairs:0 --every 3 --json - --quiet",
        ),
    ],
)
def test_options_come_back_from_a_report_as_they_were(command, words, tmp_path):
    options = commands._parse(command, [*words.split(), "--out", "out"])
    path = tmp_path / "report.json"
    told = {"command": command, "options": config.recorded(options)}
    path.write_text(json.dumps(told))
    again = commands._parse(command, [f"--config={path}"])
    own = {"config": None, "json": None, "quiet": False}
    assert dataclasses.replace(again, **own) == dataclasses.replace(options, **own)
    assert commands._parse(command, [f"--config={path}", "--out", "x"]).out == Path("x")


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[1]", "holds no options; a report.json of swapjax prune wanted"),
        ('{"options": {"sparsity": [1]}}', "sparsity is [1]; a report.json of swapjax"),
        (
            '{"options": {"speed": 9}}',
            "speed is no option; a report.json of",
        ),
        (
            '{"options": {}, "command": "train"}',
            "is of swapjax train; a report.json",
        ),
        (
            '{"options": {"out": "x", "stages": "all"}}',
            "none of swapjax prune as",
        ),
    ],
)
def test_a_config_that_is_no_report_is_one_sentence(text, saying, tmp_path, capsys):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    assert prune(None, "--config", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("swapjax: --config")
    assert error.count("\n") == 1
    assert saying in error


def test_json_has_the_output_alone_and_a_run_is_done_again_from_it(own, images, capsys):
    """Whatever the module prints; and --quiet says nothing."""
    print_too = PLAIN.replace("    pixels =", '    print("made")\n    pixels =')
    options = ("--model", own(print_too), "--exclude", "out", "--sparsity", "0.5")
    assert prune(images, *options, "--json", "-", "--out", "out") == 0
    text, error = capsys.readouterr()
    assert json.loads(text) == report()
    assert "made\n" in error
    assert "Test accuracy" in error
    again = ("prune", "--config", "out/report.json", "--sparsity=0.6", "--out", "more")
    assert main([*again, "--quiet", "--json", "deep/file.json"]) == 0
    assert capsys.readouterr() == ("made\n", "")
    assert json.loads(Path("deep", "file.json").read_text()) == report("more")
    changed = {"sparsity": 0.6, "out": "more"}
    assert report("more")["options"] == report()["options"] | changed


def test_a_place_for_json_that_is_none_is_one_sentence(images, tmp_path, capsys):
    assert prune(images, "--json", tmp_path, "--out", tmp_path / "out") == 2
    assert f"--json {tmp_path}: is a folder" in capsys.readouterr().err
    with contextlib.chdir(tmp_path):
        assert main(["compare", "--json", "-", "--data", str(images)]) == 2
    assert "--json -: runs are read again" in capsys.readouterr().err
