"""swapjax prune: what it writes, how it goes on, what it refuses."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from interrupts import half_written, interrupt_stage

from swapjax.cli import console, main, setup
from swapjax.cli.output import folder
from swapjax.experiments import datasets, plot, runner
from swapjax.io import checkpoint
from swapjax.sparsity import masks

RESULTS = ["masks.safetensors", "params.safetensors", "report.json", "report.png"]
QUICK = ("--stages", "2", "--samples", "50")
MAGNITUDE = (*QUICK, "--method", "magnitude")
# Of the 3,560 weights of MLPNet on digits a tenth is left.
TOTAL, KEPT = 3560, 356


@pytest.fixture(scope="module")
def dense(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    checkpoint.save_params(path, digits.params)
    return path


@pytest.fixture(scope="module")
def done(dense, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("done")
    assert prune(*QUICK, "--checkpoint", dense, out=out) == 0
    return out


@pytest.fixture(scope="module")
def done_quickly(dense, tmp_path_factory):
    """The same by magnitude, which compiles fast."""
    out = tmp_path_factory.mktemp("done_quickly")
    assert prune(*MAGNITUDE, "--checkpoint", dense, out=out) == 0
    return out


def prune(*options, out):
    return main(["prune", *map(str, options), "--out", str(out)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def bits(folder):
    return [(folder / name).read_bytes() for name in RESULTS[:2]]


def snapshot(folder):
    """All that is in a folder, or None if there is none."""
    if not folder.exists():
        return None
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def report_of(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "report.json").read_text()
    return json.loads(text, parse_constant=refuse)


def load(folder, setting):
    params = checkpoint.load_params(folder / "params.safetensors", setting.params)
    return params, checkpoint.load_masks(folder / "masks.safetensors", setting.params)


def require_whole(folder, setting):
    """The files belong together, and as many weights are left as were asked for."""
    assert names(folder) == RESULTS
    params, kept = load(folder, setting)
    for leaf, mask in zip(jax.tree.leaves(params), jax.tree.leaves(kept), strict=True):
        assert np.array_equal(np.asarray(leaf) != 0, np.asarray(mask))
    assert masks.count(kept) == (KEPT, TOTAL)
    result = report_of(folder)["result"]
    assert (result["nonzeros"], result["total"]) == (KEPT, TOTAL)


# What it writes


def test_it_writes_four_files_that_belong_together(done, digits):
    require_whole(done, digits)


def test_the_reported_accuracies_are_those_of_the_saved_params(done, digits):
    report, (params, _) = report_of(done), load(done, digits)
    accuracy, loss = runner.evaluate(digits, params)
    assert report["result"]["accuracy"] == accuracy
    assert report["result"]["loss"] == pytest.approx(loss, rel=1e-6)
    accuracy, loss = runner.evaluate(digits, digits.params)
    assert report["dense"] == {"accuracy": accuracy, "loss": pytest.approx(loss)}
    assert report["dense"]["accuracy"] > 90


def test_the_report_tells_stages_layers_data_options_and_versions(done):
    report = report_of(done)
    assert [stage["stage"] for stage in report["stages"]] == [1, 2]
    assert report["stages"][-1]["kept"] == KEPT
    assert sum(layer["nonzeros"] for layer in report["layers"]) == KEPT
    assert report["data"]["train"] + report["data"]["test"] == 1797
    assert report["options"]["samples"] == 50
    assert report["versions"]["jax"] == jax.__version__


def test_masks_take_one_bit_where_params_take_thirty_two(done):
    def payload(path):
        (header,) = struct.unpack("<Q", path.read_bytes()[:8])
        return path.stat().st_size - 8 - header

    params, kept = payload(done / RESULTS[1]), payload(done / RESULTS[0])
    assert params == 32 * kept == 4 * TOTAL


def test_the_picture_is_a_png(done):
    assert (done / "report.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_screen_tells_dense_and_pruned_accuracy_and_where_files_are(
    dense, digits, tmp_path, capsys
):
    out = tmp_path / "an[/odd]name"
    options = (*MAGNITUDE, "--checkpoint", dense)
    assert prune(*options, out=out) == 0
    text = capsys.readouterr().out
    before, _ = runner.evaluate(digits, digits.params)
    after = report_of(out)["result"]["accuracy"]
    assert f"{before:.2f}% of the test set correct" in text
    assert f"{before:.2f}% before, {after:.2f}% with 356 of 3,560 weights" in text
    assert f"Written to {out}: params.safetensors, masks" in text
    assert text.count("fc2/kernel") == 2  # in the plan and among the layers


# What it can be asked for


@pytest.mark.parametrize(
    ("method", "more", "noise"),
    [
        ("magnitude", [], "clean"),
        ("linear-regression", ["--noise", "labels:.5"], "labels:0.5"),
        ("swap", ["--noise", "gaussian"], "gaussian:4,0.5"),
    ],
)
def test_every_method_prunes_to_the_exact_count(
    method, more, noise, dense, digits, tmp_path
):
    options = ("--checkpoint", dense, "--method", method, *more)
    assert prune(*QUICK, *options, out=tmp_path) == 0
    require_whole(tmp_path, digits)
    result = report_of(tmp_path)["result"]
    assert (result["method"], result["noise"]) == (method, noise)


def test_without_a_checkpoint_it_trains_first_and_says_so(digits, tmp_path, capsys):
    options = (*MAGNITUDE, "--epochs", "2")
    assert prune(*options, out=tmp_path) == 0
    said = "No --checkpoint given: training mlpnet on digits for 2 epochs."
    assert said in capsys.readouterr().out
    assert names(tmp_path) == ["dense.safetensors", *RESULTS]
    trained = checkpoint.load_params(tmp_path / "dense.safetensors", digits.params)
    accuracy, _ = runner.evaluate(digits, trained)
    assert report_of(tmp_path)["dense"]["accuracy"] == accuracy > 30

    first = bits(tmp_path)
    assert prune(*options, out=tmp_path) == 0
    assert "Taking the network trained before" in capsys.readouterr().out
    assert bits(tmp_path) == first


def test_the_cnn_keeps_its_biases(tmp_path):
    options = (*MAGNITUDE, "--model", "cnn", "--epochs", "1")
    assert prune(*options, out=tmp_path) == 0
    layers = report_of(tmp_path)["layers"]
    assert {row["leaf"] for row in layers if not row["prunable"]} == {
        f"{layer}/bias" for layer in ("conv1", "conv2", "fc1", "fc2")
    }
    total = sum(row["entries"] for row in layers if row["prunable"])
    assert report_of(tmp_path)["result"]["nonzeros"] == round(0.1 * total)
    arrays, _ = checkpoint.read(tmp_path / "masks.safetensors")
    assert arrays["conv1/bias"].shape == ()
    assert arrays["conv1/kernel"].shape == (3, 3, 1, 16)


def test_the_cnn_takes_images_with_as_many_pixels_as_it_has_biases(tmp_path):
    data = save_data(tmp_path / "small.npz", shape=(4, 4))
    options = (*MAGNITUDE, "--data", data, "--model", "cnn", "--epochs", "1")
    assert prune(*options, out=tmp_path / "out") == 0


def test_fine_tuning_trains_what_is_left_and_only_that(dense, done, digits, tmp_path):
    options = ("--checkpoint", dense, "--finetune-steps", "50")
    assert prune(*QUICK, *options, out=tmp_path) == 0
    require_whole(tmp_path, digits)
    tuned, plain = report_of(tmp_path)["result"], report_of(done)["result"]
    assert tuned["loss"] < plain["loss"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(dense, done, tmp_path):
    for seed in (0, 1):
        options = ("--checkpoint", dense, "--seed", seed)
        assert prune(*QUICK, *options, out=tmp_path / str(seed)) == 0
    assert bits(tmp_path / "0") == bits(done)
    assert bits(tmp_path / "1") != bits(done)


# Interruptions


@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    stage, dense, done, digits, tmp_path, capsys
):
    options = (*QUICK, "--checkpoint", dense)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, stage)
        assert prune(*options, out=tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err
    assert names(tmp_path) == ([] if stage == 1 else ["state.safetensors"])

    assert prune(*options, out=tmp_path) == 0
    assert ("Going on from" in capsys.readouterr().out) == (stage > 1)
    require_whole(tmp_path, digits)
    assert bits(tmp_path) == bits(done)
    assert len(report_of(tmp_path)["stages"]) == 2


def test_the_reported_seconds_count_the_stages_before_an_interruption(dense, tmp_path):
    options = (*MAGNITUDE, "--checkpoint", dense)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 2)
        assert prune(*options, out=tmp_path) == 130
    assert prune(*options, out=tmp_path) == 0
    report = report_of(tmp_path)
    spent = [stage["seconds"] for stage in report["stages"]]
    assert len(spent) == 2
    assert report["result"]["seconds"] == pytest.approx(sum(spent))


def test_an_interruption_while_the_state_is_written_leaves_the_state_before(
    dense, done_quickly, tmp_path
):
    options = (*MAGNITUDE, "--checkpoint", dense)

    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert prune(*options, out=tmp_path) == 130
    assert names(tmp_path) == ["state.safetensors"]
    _, metadata = checkpoint.read(tmp_path / "state.safetensors")
    assert len(json.loads(metadata["history"])) == 1
    assert prune(*options, out=tmp_path) == 0
    assert bits(tmp_path) == bits(done_quickly)


def test_an_interruption_while_results_are_written_loses_nothing(
    dense, done_quickly, digits, tmp_path
):
    options = (*MAGNITUDE, "--checkpoint", dense)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save", interrupted)
        assert prune(*options, out=tmp_path) == 130
    assert "state.safetensors" in names(tmp_path)
    assert prune(*options, out=tmp_path) == 0
    require_whole(tmp_path, digits)
    assert bits(tmp_path) == bits(done_quickly)


def test_a_network_trained_before_an_interruption_is_not_trained_again(
    tmp_path, capsys
):
    options = (*MAGNITUDE, "--epochs", "2")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 2)
        assert prune(*options, out=tmp_path) == 130
    assert names(tmp_path) == ["dense.safetensors", "state.safetensors"]
    capsys.readouterr()
    assert prune(*options, out=tmp_path) == 0
    text = capsys.readouterr().out
    assert "Taking the network trained before" in text
    assert "Going on from" in text


def test_an_interruption_of_the_training_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "finetune", interrupted)
    assert prune(*QUICK, out=tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()


def test_the_state_of_another_run_is_refused_before_any_training(
    tmp_path, capsys, monkeypatch
):
    options = (*MAGNITUDE, "--epochs", "2")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 2)
        assert prune(*options, out=tmp_path) == 130
    capsys.readouterr()

    def untrained(*_, **__):
        raise AssertionError("it trained first")

    monkeypatch.setattr(runner, "set_up", untrained)
    # Another seed is of another network, which is not trained for nothing.
    for other, word in (
        ("--samples 60", "samples"), ("--seed 1", "seed"), ("--epochs 3", "epochs")
    ):  # fmt: skip
        before = snapshot(tmp_path)
        assert prune(*options, *other.split(), out=tmp_path) == 2
        error = capsys.readouterr().err
        assert "belongs to another run" in error
        assert f"{word} was" in error
        contents = {name: content for name, (content, _) in before.items()}
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == contents


def test_the_time_left_is_told_even_for_stages_of_minutes():
    with console.progress("pruning", 10) as (bar, task):
        for minutes in (0, 5, 10):
            bar.get_time = lambda now=60.0 * minutes: now
            bar.advance(task)
        assert bar.tasks[0].time_remaining == pytest.approx(7 * 300)


# What it refuses


def save_data(path, shape=(8, 8), **changed):
    rng = np.random.default_rng(0)
    arrays = {"y_train": np.arange(100) % 10, "y_test": np.arange(30) % 10}
    arrays["x_train"] = rng.random((100, *shape), dtype=np.float32)
    arrays["x_test"] = rng.random((30, *shape), dtype=np.float32)
    np.savez(path, **{**arrays, **changed})
    return path


def require_refused(capsys, *options, out, saying):
    """Exit code 2, one clear sentence, and the folder exactly as it was."""
    before = snapshot(out)
    assert prune(*options, out=out) == 2
    error = capsys.readouterr().err
    assert error.startswith("swapjax: ")
    assert error.count("\n") == 1
    assert saying in error
    assert snapshot(out) == before


def folders(tmp_path):
    """One that is not there yet, one that holds results of before and other files."""
    full = tmp_path / "full"
    full.mkdir()
    for name in (*RESULTS, "dense.safetensors", "notes.txt"):
        (full / name).write_text("of before")
    return tmp_path / "new" / "folder", full


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("--sparsity 1", "sparsity must be in [0, 1), got 1.0"),
        ("--sparsity -0.1", "sparsity must be in [0, 1), got -0.1"),
        ("--sparsity nan", "sparsity must be in [0, 1), got nan"),
        ("--sparsity 0.9999", "sparsity 0.9999 keeps 0 of 3,560 entries"),
        ("--epsilon -1", "epsilon must be 0 or more, got -1.0"),
        ("--damping -1", "damping must be 0 or more, got -1.0"),
        ("--damping nan", "damping must be 0 or more, got nan"),
        ("--perplexity 1", "perplexity must be more than 1 and finite, got 1.0"),
        ("--noise 4 0.5", "--noise 4: the name of a kind wanted; noise of 4 deviation"),
        ("--noise gaussian:1,1.5", "--noise gaussian:1,1.5: PROPORTION must be a numb"),
        ("--noise clean rows", "--noise: one kind wanted, got clean rows"),
        ("--stages 0", "--stages must be 1 or more, got 0"),
        ("--samples 0", "--samples must be 1 or more, got 0"),
        ("--batch 0", "--batch must be 1 or more, got 0"),
        ("--epochs 0", "--epochs must be 1 or more, got 0"),
        ("--samples 1438", "1,438 examples a stage; digits has 1,437 to train"),
        ("--batch 29", "1,450 examples a stage; digits has 1,437 to train"),
        ("--seed -1", "--seed must be from 0 to 4294967295, got -1"),
        ("--seed 18446744073709551616", "--seed must be from 0 to 4294967295"),
        ("--finetune-steps -1", "--finetune-steps must be 0 or more, got -1"),
        ("--finetune-rate 0", "--finetune-rate must be positive, got 0.0"),
        ("--finetune-steps 1 --finetune-batch 2000", "2000 examples wanted"),
        ("--finetune-steps 9 --finetune-rate 1e30", "the loss became nan"),
        ("--data digit", "'digit' is not 'digits', 'tfds:NAME' or the path of"),
        ("--checkpoint nowhere.npz", "nowhere.npz: no such file"),
        ("--model cnn", "missing conv1/bias"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(
    options, saying, dense, tmp_path, capsys
):
    common = (*MAGNITUDE, "--checkpoint", dense)
    for out in folders(tmp_path):
        require_refused(capsys, *common, *options.split(), out=out, saying=saying)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("--method cbs --pattern 2:4", "--method: cbs does not take --pattern; leave"),
        ("--method magnitude --damping 0.1", "--damping: magnitude has no use for it; "
         "leave it out (it is for woodfisher, cbs, chita, linear-regression, "
         "kfac-regression, swap)"),
        ("--method chita --epsilon 0", "--epsilon: chita has no use for it; leave it"),
        ("--method obd --perplexity 5", "--perplexity: obd has no use for it; leave "),
        ("--method swap --block 50", "--block: swap has no use for it; leave it out"),
    ],
)  # fmt: skip
def test_what_the_method_has_no_use_for_is_refused_before_any_work(
    options, saying, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(setup, "set_up", None)
    for out in folders(tmp_path):
        require_refused(capsys, *QUICK, *options.split(), out=out, saying=saying)


@pytest.mark.parametrize(
    ("changed", "saying"),
    [
        ({"x_train": np.full((100, 8, 8), np.nan)}, "NaN or infinite pixels in x_tr"),
        ({"x_test": np.full((30, 8, 8), np.inf)}, "NaN or infinite pixels in x_test"),
        ({"y_test": np.full(30, 10)}, "label 10 to test, and only 0 to 9 to train"),
        ({"y_train": np.arange(100) - 1}, "y_train of int64 from -1, integers from 0"),
        ({"y_train": np.arange(99)}, "one label an image wanted"),
        ({"x_test": np.ones((30, 8, 4))}, "images of (8, 8) to train and of (8, 4)"),
        ({"x_train": np.array([None])}, "it holds pickled objects"),
    ],
)
def test_bad_data_is_one_sentence_and_exit_code_2(changed, saying, tmp_path, capsys):
    data = save_data(tmp_path / "data.npz", **changed)
    for out in folders(tmp_path):
        require_refused(capsys, *QUICK, "--data", data, out=out, saying=saying)


def test_data_without_a_test_set_is_refused(tmp_path, capsys):
    data = tmp_path / "data.npz"
    np.savez(data, x_train=np.ones((9, 8, 8)), y_train=np.arange(9))
    saying = "data.npz has no x_test, y_test"
    require_refused(capsys, *QUICK, "--data", data, out=tmp_path / "out", saying=saying)


@pytest.mark.parametrize("shape", [(64,), (6, 8)])
def test_images_that_the_model_cannot_take_are_refused(shape, tmp_path, capsys):
    data = save_data(tmp_path / "data.npz", shape=shape)
    options = (*QUICK, "--data", data, "--model", "cnn")
    saying = f"sides divisible by 4, got {shape}"
    require_refused(capsys, *options, out=tmp_path / "out", saying=saying)


def test_images_of_another_size_than_the_checkpoint_was_made_for_are_refused(
    dense, tmp_path, capsys
):
    data = save_data(tmp_path / "data.npz", shape=(4, 4))
    options = (*QUICK, "--data", data, "--checkpoint", dense)
    saying = "fc1/kernel is (64, 40), wanted (16, 40)"
    require_refused(capsys, *options, out=tmp_path / "out", saying=saying)


BROKEN = {
    "missing": "missing fc2/kernel",
    "extra": "more",
    "misshapen": "fc2/kernel is (20, 40), wanted (40, 20)",
    "not finite": "NaN or infinite entries in fc2/kernel (1 of 800)",
    "pickled": "it holds pickled objects",
    "truncated": "not a readable .npz file",
    "truncated safetensors": "not a readable safetensors file",
    "empty": "not a readable .npz file",
}


def break_checkpoint(kind, dense, folder):
    arrays, _ = checkpoint.read(dense)
    path, kernel = folder / "weights.npz", arrays["fc2/kernel"].copy()
    if kind == "missing":
        del arrays["fc2/kernel"]
    elif kind == "extra":
        arrays["more"] = np.zeros(3)
    elif kind == "misshapen":
        arrays["fc2/kernel"] = kernel.T
    elif kind == "not finite":
        kernel[3, 4] = np.nan
        arrays["fc2/kernel"] = kernel
    elif kind == "pickled":
        arrays["fc2/kernel"] = np.array([None])
    np.savez(path, **arrays)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated safetensors":
        path = folder / "weights.safetensors"
        path.write_bytes(dense.read_bytes()[:5000])
    return path


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_checkpoints_are_one_sentence_and_exit_code_2(
    kind, dense, tmp_path, capsys
):
    path = break_checkpoint(kind, dense, tmp_path)
    options, saying = (*QUICK, "--checkpoint", path), BROKEN[kind]
    for out in folders(tmp_path):
        require_refused(capsys, *options, out=out, saying=saying)


def test_an_output_folder_that_cannot_be_made_is_found_before_any_work(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(datasets, "load", None)
    file = tmp_path / "file"
    file.write_text("of before")
    for out, saying in (
        (file, f"--out {file}: {file} is not a folder"),
        (file / "deep" / "below", f"{file} is not a folder"),
        (tmp_path / ("long" * 100), "File name too long"),
    ):
        assert prune(*QUICK, out=out) == 2
        assert saying in capsys.readouterr().err
    assert file.read_text() == "of before"
    assert names(tmp_path) == ["file"]


def test_a_disk_that_fails_is_a_sentence_and_the_state_stays(
    dense, done_quickly, tmp_path, capsys
):
    def full(*_):
        raise OSError(28, "No space left on device")

    options = (*MAGNITUDE, "--checkpoint", dense)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save", full)
        assert prune(*options, out=tmp_path) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert prune(*options, out=tmp_path) == 0
    assert bits(tmp_path) == bits(done_quickly)


def test_a_failing_run_keeps_its_stages_and_what_others_wrote(
    dense, tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def fail(*_, checkpoint, **__):
        checkpoint.write_text("state")
        (out / "notes.txt").write_text("of somebody else")
        (out / "folder").mkdir()
        raise ValueError("a gradient is not finite")

    monkeypatch.setattr(runner, "run", fail)
    assert prune(*QUICK, "--checkpoint", dense, out=out) == 2
    assert names(out) == ["folder", "notes.txt", "state.safetensors"]


def test_a_run_that_fails_at_a_later_stage_goes_on_from_the_one_before(
    dense, done_quickly, tmp_path, capsys
):
    options = (*MAGNITUDE, "--checkpoint", dense)
    assert prune(*options, "--sparsity", "0.5", out=tmp_path) == 0
    before = snapshot(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 2, ValueError("the loss became nan"))
        assert prune(*options, out=tmp_path) == 2
    after = snapshot(tmp_path)
    assert after.pop("state.safetensors")
    assert after == before
    capsys.readouterr()
    assert prune(*options, out=tmp_path) == 0
    assert "Going on from" in capsys.readouterr().out
    assert bits(tmp_path) == bits(done_quickly)
    assert names(tmp_path) == RESULTS


def test_a_second_run_into_the_folder_is_refused_before_any_work(
    dense, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(datasets, "load", None)
    with folder(tmp_path, ()):
        assert prune(*QUICK, "--checkpoint", dense, out=tmp_path) == 2
    saying = f"--out {tmp_path}: another run (process {os.getpid()}) writes to it"
    assert saying in capsys.readouterr().err


def test_a_picture_that_fails_takes_nothing_and_is_drawn_by_the_next_call(
    dense, done_quickly, tmp_path, capsys
):
    def fail(*_):
        raise RuntimeError("no such\x1b[2J glyph")

    options = (*MAGNITUDE, "--checkpoint", dense)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save", fail)
        assert prune(*options, out=tmp_path) == 2
    saying = r"report.png could not be drawn (no such\x1b[2J glyph); all other results"
    assert saying in capsys.readouterr().err
    assert names(tmp_path) == sorted([*RESULTS[:3], "state.safetensors"])
    assert bits(tmp_path) == bits(done_quickly)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 1)  # none is done again
        assert prune(*options, out=tmp_path) == 0
    assert names(tmp_path) == RESULTS
    assert bits(tmp_path) == bits(done_quickly)


@pytest.mark.parametrize(
    "name", ["a$_$b", "a\\frac{1$x^", "tab\t\x1b[31m", "名前 😀|`"]
)
def test_data_of_any_name_are_pruned_drawn_and_told(name, dense, tmp_path, capsys):
    data = save_data(tmp_path / f"{name}.npz")
    options = (*MAGNITUDE, "--checkpoint", dense, "--data", data)
    assert prune(*options, out=tmp_path / name) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.replace("\n", "").isprintable()
    assert names(tmp_path / name) == RESULTS
    assert report_of(tmp_path / name)["data"]["name"] == str(data)


# Data and networks by content


def trained(capsys, *options, out):
    """Whether a call has trained a network, or taken one trained before."""
    capsys.readouterr()
    assert prune(*MAGNITUDE, "--stages", "1", *options, out=out) == 0
    text = capsys.readouterr().out
    assert ("Taking the network trained before" in text) != ("given: training" in text)
    return "given: training" in text


def test_a_network_is_taken_for_the_same_data_by_content_alone(tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "data.npz"
    rng = np.random.default_rng(1)
    other = {"x_test": rng.random((30, 8, 8), dtype=np.float32)}
    options = ("--data", data, "--epochs", "1")
    save_data(data)
    assert trained(capsys, *options, out=out)
    assert not trained(capsys, *options, out=out)
    # The same under another name, in another order and packed.
    with np.load(data) as arrays:
        packed = dict(reversed(list(arrays.items())))
    np.savez_compressed(tmp_path / "moved.npz", **packed)
    assert not trained(capsys, "--data", tmp_path / "moved.npz", *options[2:], out=out)
    # Other content under the same name: pixels, labels, scale, dtype.
    for changed in (
        other,
        {"y_train": np.arange(1, 101) % 10},
        {"x_train": packed["x_train"] * np.float32(2)},
        {"x_train": packed["x_train"].astype(np.float16)},
    ):
        save_data(data, **changed)
        assert trained(capsys, *options, out=out)
    assert not trained(capsys, *options, out=out)
    for option in ("--epochs 2", "--seed 1", "--model lenet300"):
        assert trained(capsys, *options, *option.split(), out=out)


def test_a_trained_network_waits_until_its_run_replaces_the_results(tmp_path, capsys):
    first = ("--epochs", "1", "--stages", "1")
    assert prune(*MAGNITUDE, *first, out=tmp_path) == 0
    before = snapshot(tmp_path)
    second = (*MAGNITUDE, "--epochs", "2")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 1, ValueError("the loss became nan"))
        assert prune(*second, out=tmp_path) == 2
    after = snapshot(tmp_path)
    assert after.pop(".swapjax-dense.safetensors")
    assert after == before
    capsys.readouterr()
    assert prune(*second, out=tmp_path) == 0
    assert "Taking the network trained before" in capsys.readouterr().out
    assert names(tmp_path) == ["dense.safetensors", *RESULTS]
    assert snapshot(tmp_path)["dense.safetensors"] != before["dense.safetensors"]


@pytest.mark.parametrize("damage", ["bit", "cut", "text"])
def test_a_trained_network_that_is_damaged_is_refused(damage, tmp_path, capsys):
    options = (*MAGNITUDE, "--epochs", "1")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_stage(patch, 1)
        assert prune(*options, out=tmp_path) == 130
    path = tmp_path / "dense.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    damaged = {"bit": content, "cut": content[:-9], "text": b"of somebody else"}
    path.write_bytes(damaged[damage])
    capsys.readouterr()
    saying = "remove it to train anew"
    require_refused(capsys, *options, out=tmp_path, saying=saying)


# The command line itself


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        ([], "prune"),
        (["shrink"], "shrink"),
        (["prune"], "--out"),
        (["prune", "--out", "new", "--method", "best"], "linear-regression"),
        (["prune", "--out", "new", "--sparsity", "much"], "--sparsity"),
        (["prune", "--out", "new", "--stages", "1.5"], "--stages"),
        (["prune", "--out", "new", "--sparsness", "0.5"], "--sparsness"),
        (["inspect"], "PATH"),
    ],
)
def test_what_cannot_be_parsed_is_exit_code_2(
    arguments, saying, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert saying in capsys.readouterr().err
    assert names(tmp_path) == []


OPTIONS = ["data", "model", "checkpoint", "method", "sparsity", "stages", "epsilon"]
OPTIONS += ["damping", "samples", "batch", "noise", "finetune-steps", "seed", "out"]


def test_the_help_of_the_installed_command_tells_every_option():
    program = Path(sys.executable).with_name("swapjax")
    text = subprocess.run(
        [program, "prune", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in OPTIONS:
        assert f"--{option} " in text
    for choice in ("digits", "tfds:NAME", "linear-regression", "magnitude", "swap"):
        assert choice in text
    for word in ("clean", "gaussian:4,0.5", "labels:0.4", "fgsm:0.1"):
        assert f"- {word}: " in text


def test_the_package_runs_as_a_module_and_tells_its_commands():
    text = subprocess.run(
        [sys.executable, "-m", "swapjax.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for command in ("prune", "train", "compare", "inspect", "demo"):
        assert f"• {command}" in text
