"""swapjax train: every algorithm, what it writes, how it goes on, what it refuses."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interrupts import half_written

import swapjax
from swapjax.cli import main, train_algorithms
from swapjax.cli.robust_options import FRAMEWORKS
from swapjax.cli.train_options import CUT, GRADUAL, NAMES, Train
from swapjax.experiments import datasets, models, plot, runner
from swapjax.experiments.names import NETWORKS
from swapjax.experiments.runner import Setting
from swapjax.io import checkpoint
from swapjax.sparsity import masks

RESULTS = ["masks.safetensors", "params.safetensors", "report.json", "train.png"]
STATE = "training.safetensors"
pytestmark = pytest.mark.usefixtures("small")
# What only some algorithms have a use for.
MORE = dict.fromkeys(GRADUAL, ("--every", "2")) | {"lottery": ("--rate", "0.6")}


@pytest.fixture(scope="module")
def setting(images):
    data = datasets.load(images)
    model = models.create("mlpnet", data.shape, data.classes)
    return Setting(data, model, model.params)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def bits(folder):
    return [(folder / name).read_bytes() for name in RESULTS[:2]]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def told(report):
    """All but times, and where things are."""
    report["options"]["out"] = report["result"]["seconds"] = None
    for part in report.get("epochs", []) + report.get("levels", []):
        part["seconds"] = None
    return report


# What it writes


@pytest.mark.parametrize("algorithm", NAMES)
def test_every_algorithm_ends_at_the_exact_count_and_reports_it(
    algorithm, train, setting, tmp_path, capsys
):
    more = MORE.get(algorithm, ())
    assert train("--algorithm", algorithm, *more, out=tmp_path) == 0
    assert names(tmp_path) == RESULTS
    params = checkpoint.load_params(tmp_path / "params.safetensors", setting.params)
    kept = checkpoint.load_masks(tmp_path / "masks.safetensors", setting.params)
    for leaf, mask in zip(jax.tree.leaves(params), jax.tree.leaves(kept), strict=True):
        assert not np.any(np.asarray(leaf)[~np.asarray(mask)])
    total = 64 * 10
    left = total if algorithm == "dense" else round(0.2 * total)
    assert masks.count(kept) == (left, total)

    report, text = report_of(tmp_path), capsys.readouterr().out
    result = report["result"]
    accuracy, loss = runner.evaluate(setting, params)
    assert result["accuracy"] == accuracy
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["total"] == total
    assert report["training"]["steps"] == 6
    assert set(MORE.get(algorithm, ())[:1]) <= {f"--{k}" for k in report["training"]}
    assert result["nonzeros"] == left
    assert result["seconds"] > 0
    assert f"{accuracy:.2f}% with {result['nonzeros']:,} of 640" in text
    assert f"Written to {tmp_path}: params.safetensors, masks" in text.replace(
        "\n", " "
    )
    assert ("before" in result) == (algorithm in CUT)
    if algorithm == "lottery":
        assert [level["kept"] for level in report["levels"]] == [640, 256, 128]
        assert report["levels"][-1]["accuracy"] == accuracy
        assert "once in each of 3 levels" in text
        return
    assert [epoch["steps"] for epoch in report["epochs"]] == [3, 6]
    if algorithm in CUT:
        last = report["epochs"][-1]
        assert result["before"]["accuracy"] == last["accuracy"]
        # What ADMM would cut is known while it trains.
        wanted = 0 if algorithm == "gsm" else 1 - left / total
        assert last["sparsity"] == pytest.approx(wanted)
    else:
        assert report["epochs"][-1]["accuracy"] == accuracy
        assert report["epochs"][-1]["sparsity"] == pytest.approx(1 - left / total)


def test_masks_of_snip_are_those_of_pruning_before_training(train, setting, tmp_path):
    assert train("--algorithm", "snip", out=tmp_path) == 0
    kept = checkpoint.load_masks(tmp_path / "masks.safetensors", setting.params)
    model, (x, y) = setting.model, setting.data.train
    # All examples are drawn: their order is all that the key decides.
    pruned = swapjax.prune(
        model.loss_fn, model.params, (x, y), sparsity=0.8, method=swapjax.snip(),
        samples=48, key=jax.random.key(8),
    )  # fmt: skip
    assert swapjax.churn(kept, pruned.masks) == 0


def test_the_report_tells_layers_data_options_and_versions(train, tmp_path):
    assert train("--algorithm", "dense", "--optimizer", "adamw", out=tmp_path) == 0
    report = report_of(tmp_path)
    assert [row["leaf"] for row in report["layers"]] == ["fc1/kernel"]
    assert report["data"]["train"] == report["data"]["test"] == 48
    assert report["options"]["optimizer"] == "adamw"
    assert report["versions"]["jax"] == jax.__version__
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("steps", "momentum"), [(200, 0.72), (660, 0.92), (9999, 0.99)]
)
def test_gsm_fades_weights_without_gradient_in_runs_of_any_length(steps, momentum):
    options = Train(out=Path("nowhere"), algorithm="gsm")
    assert train_algorithms.settings(options, steps)[1] == pytest.approx(
        momentum, abs=0.005
    )
    optimizer = train_algorithms.inner(options, steps)

    def step(carry, _):
        params, state = carry
        still = jax.tree.map(jnp.zeros_like, params)
        updates, state = optimizer.update(still, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["kernel"].min()

    params = {"kernel": jnp.ones((1, 1))}
    start = params, optimizer.init(params)
    _, path = jax.lax.scan(step, start, None, length=steps)
    assert path.min() > -1e-3  # it does not swing
    assert 1e-4 < path[-1] < 1e-2


# Going on


@pytest.mark.parametrize("algorithm", ["granet", "lottery"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    algorithm, train, tmp_path, capsys
):
    options = ("--algorithm", algorithm, *MORE[algorithm])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*options, out=whole) == 0
    # While the state of the second epoch is written, that of the first one stays.
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert train(*options, out=parts) == 130
    assert "interrupted" in capsys.readouterr().err
    assert names(parts) == [STATE]
    # All is trained, but the results are not written.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save", interrupted)
        assert train(*options, out=parts) == 130
    assert f"Going on from {parts / STATE}" in capsys.readouterr().out
    assert STATE in names(parts)
    assert train(*options, out=parts) == 0
    assert names(parts) == RESULTS
    assert bits(parts) == bits(whole)
    assert told(report_of(parts)) == told(report_of(whole))


def interrupted(*_):
    raise KeyboardInterrupt


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(train, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        out = tmp_path / name
        assert train("--algorithm", "static", "--seed", seed, out=out) == 0
    one, same, other = (bits(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_the_state_of_another_run_is_refused_and_kept(train, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert train(out=tmp_path) == 130
    before = (tmp_path / STATE).read_bytes()
    for change, saying in (
        (("--epochs", "3"), "belongs to another run (epochs was 2, is 3"),
        (("--seed", "1"), "belongs to another run ("),
        (("--learning-rate", "0.1"), "belongs to another run (optimizer was"),
        (("--algorithm", "lottery"), "is not the state of a run of levels"),
    ):
        assert train(*change, out=tmp_path) == 2
        assert saying in capsys.readouterr().err
        assert names(tmp_path) == [STATE]
        assert (tmp_path / STATE).read_bytes() == before


@pytest.mark.parametrize("algorithm", ["granet", "lottery"])
@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_the_state_of_a_run_on_other_data_is_refused(
    part, algorithm, train, images, tmp_path, capsys
):
    with np.load(images) as arrays:
        content = dict(arrays)
    data, out = tmp_path / "data.npz", tmp_path / "out"
    np.savez(data, **content)
    options = ("--data", data, "--algorithm", algorithm)
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert train(*options, out=out) == 130
    capsys.readouterr()
    np.savez(data, **content | {part: content[part][::-1]})
    assert train(*options, out=out) == 2
    assert "belongs to another run" in capsys.readouterr().err
    np.savez(tmp_path / "moved.npz", **content)
    moved = ("--data", tmp_path / "moved.npz", *options[2:])
    assert train(*moved, out=out) == 0
    assert "Going on from" in capsys.readouterr().out


# What it refuses


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("--epochs 0", "--epochs must be 1 or more, got 0"),
        ("--batch 0", "--batch must be 1 or more, got 0"),
        ("--batch 49", "--batch: 49 examples wanted, data has 48"),
        ("--every 0", "--every must be 1 or more, got 0"),
        ("--sparsity 1", "--sparsity must be in [0, 1), got 1.0"),
        ("--sparsity nan", "--sparsity must be in [0, 1), got nan"),
        ("--momentum 1", "--momentum must be in [0, 1), got 1.0"),
        ("--learning-rate 0", "--learning-rate must be positive, got 0.0"),
        ("--weight-decay -1", "--weight-decay must be 0 or more, got -1.0"),
        ("--stop 0", "--stop must be in (0, 1], got 0.0"),
        ("--rate 1", "--rate must be in (0, 1), got 1.0"),
        ("--rate 0.3", "--rate: granet has no use for it; leave it out (it is for l"),
        ("--algorithm snip --every 5", "--every: snip has no use for it; leave it"),
        ("--algorithm dense --allocation erk", "--allocation: dense has no use for it"),
        ("--algorithm dense --stop 0.5", "--stop: dense has no use for it; leave it"),
        ("--momentum 0.5", "--momentum: adam has none of its own; leave it out, or"),
        ("--seed -1", "--seed must be from 0 to 4294967295, got -1"),
        ("--algorithm gsm --optimizer adam", "--optimizer adam: gsm works by the"),
        (
            "--algorithm elsa --optimizer sgd",
            "--optimizer sgd: elsa goes by the second",
        ),
        (
            "--algorithm safe --radius -1",
            "--radius must be a number, 0 or more, got -1",
        ),
        (
            "--algorithm admm --penalty nan",
            "--penalty must be a number, 0 or more, got",
        ),
        ("--algorithm admm --radius 0.1", "--radius: admm has no use for it; leave it"),
        (
            "--penalty 0.1",
            "--penalty: granet has no use for it; leave it out (it is fo",
        ),
        ("--data nowhere.npz", "nowhere.npz"),
        ("--optimizer sgd --learning-rate 1e38", "the loss became"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_no_folder(
    options, saying, train, tmp_path, capsys
):
    assert train(*options.split(), out=tmp_path / "new" / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("swapjax: ")
    assert error.count("\n") == 1
    assert saying in error
    assert names(tmp_path) == []


def test_a_loss_that_is_lost_later_leaves_the_epochs_before(train, tmp_path, capsys):
    options = ("--optimizer", "sgd", "--learning-rate", "1e20")
    assert train(*options, out=tmp_path) == 2
    assert "the loss became" in capsys.readouterr().err
    assert names(tmp_path) == [STATE]


def test_the_help_tells_of_every_algorithm(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    described = " ".join(re.findall(r"^- ([a-z, -]+):", text, re.MULTILINE))
    told = set(re.split(r"[, ]+", described)) - set(NETWORKS)
    assert told == {*NAMES, *FRAMEWORKS}
