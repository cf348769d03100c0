"""swapjax train with a pruned way back: reports, going on, refusals."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from interrupts import half_written
from matplotlib.figure import Figure

from swapjax import backward
from swapjax.cli import main, setup, train_algorithms, train_backward
from swapjax.cli.backward_options import Backward
from swapjax.cli.robust_options import Against
from swapjax.cli.train_options import Train
from swapjax.core.objective import as_objective
from swapjax.experiments import models
from swapjax.experiments.backward import with_sparse_weights
from swapjax.experiments.models import mlp
from swapjax.experiments.runner import Setting
from swapjax.training import Epoch

pytestmark = pytest.mark.usefixtures("small")
SITE = "fc2/kernel:input"
RESULTS = ["masks.safetensors", "params.safetensors", "report.json", "train.png"]


@pytest.fixture(scope="module")
def small():
    """A network with a layer between others, the least that has a site."""
    with pytest.MonkeyPatch.context() as patch:
        layers = lambda sizes, rngs: mlp.MLP((sizes[0], 6, 6, sizes[-1]), rngs=rngs)  # noqa: E731
        patch.setattr(models, "MLP", layers)
        yield


@pytest.fixture
def setting(images):
    data, model, _ = setup.load(Train(out=Path("nowhere"), data=str(images)))
    return Setting(data, model, model.params)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def told(report):
    """All but times, and where things are."""
    report["options"]["out"] = report["result"]["seconds"] = None
    for part in report["epochs"]:
        part["seconds"] = None
    return report


def test_a_sparse_run_with_a_pruned_way_back_reports_it_and_goes_on(
    train, tmp_path, capsys
):
    options = ("--algorithm", "gmp", "--prune-backward", "0.9", "--epochs", "3")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*options, out=whole) == 0
    text = capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 3)
        assert train(*options, out=parts) == 130
    changed = (*options[:3], "0.8", *options[4:])
    assert train(*changed, out=parts) == 2
    assert "belongs to another run" in capsys.readouterr().err
    # The FIFO was being filled: what goes on has its state.
    assert train(*options, out=parts) == 0
    assert names(parts) == names(whole) == RESULTS
    for name in RESULTS[:2]:
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    report = told(report_of(whole))
    assert report == told(report_of(parts))

    assert f"pruned on their way back at P = 0.9 (fifo), at {SITE}." in text
    found = report["result"]["backward"]
    assert (found["rate"], found["threshold"], found["examples"]) == (0.9, "fifo", 16)
    assert [layer["name"] for layer in found["layers"]] == [
        "fc1/kernel", "fc2/kernel", "fc3/kernel"
    ]  # fmt: skip
    # The first layer alone is before the site; its gradient goes to no input.
    first, *others = found["layers"]
    assert first["macs"] == 16 * 64 * 6
    assert first["zeros_after"] > first["zeros_before"]
    assert all(layer["zeros_after"] == layer["zeros_before"] for layer in others)
    left = sum(x["macs"] * (1 - x["zeros_after"]) for x in found["layers"])
    assert found["ratio"] == pytest.approx(
        left / sum(x["macs"] for x in found["layers"])
    )
    assert found["speedup"] == pytest.approx(1 / found["ratio"])
    assert found["speedup_with_sparse_weights"] > found["speedup"]
    assert found["noise"]["snr"] > 0
    assert f"Ideal speed-up of the way back {found['speedup']:.2f}:" in text
    assert "no time is saved" in text
    assert "on the first batch, with exact thresholds, not predicted ones." in text

    early, _, late = (epoch["told"] for epoch in report["epochs"])
    assert early["zeros after"] == early["zeros before"]  # three steps, of four
    assert late[f"zeros after {SITE}"] > late[f"zeros before {SITE}"]
    # Masks and weights are those of the end: so is what was measured.
    assert late["backward"] == pytest.approx(found["ratio"])
    assert late["backward unpruned"] == pytest.approx(found["natural_ratio"])


@pytest.mark.parametrize(
    ("algorithm", "against"),
    [
        ("safe", Against()),
        ("dense", Against(robust="trades")),
        ("dense", Against(robust="fastat")),
        ("dense", Against(loss="sr-gce")),
    ],
)
def test_the_way_back_is_pruned_in_whatever_is_minimised(algorithm, against, setting):
    options = Train(
        out=Path("nowhere"), algorithm=algorithm, against=against,
        backward=Backward(prune_backward="0.5", prune_backward_threshold="exact"),
    )  # fmt: skip
    objective = as_objective(train_algorithms.objective(options, setting, 6))
    batch = tuple(part[:16] for part in setting.data.train)
    *_, aux = jax.eval_shape(
        objective.value_and_grad, setting.params,
        objective.init(setting.params, batch), batch, jax.random.key(0),
    )  # fmt: skip
    assert "zeros after" in aux
    assert "prediction error" not in aux  # of thresholds that are exact


def test_what_vcas_keeps_is_told_by_layer(setting):
    asked = Backward(prune_backward="vcas", prune_backward_every=2)
    options = Train(out=Path("nowhere"), algorithm="dense", backward=asked)
    objective = as_objective(train_algorithms.objective(options, setting, 6))
    batch = tuple(part[:16] for part in setting.data.train)
    *_, aux = jax.eval_shape(
        objective.value_and_grad, setting.params,
        objective.init(setting.params, batch), batch, jax.random.key(0),
    )  # fmt: skip
    history = [
        Epoch(i, 3 * i, 1.0, 90.0, 0.0, {}, 0, 1.0, told=dict.fromkeys(aux, 0.5 / i))
        for i in (1, 2)
    ]
    found = train_backward.measured(options, None, setting.params, [], history)
    result = found.result["backward"]
    assert result["ratio"] == 0.25
    assert result["ratio_over_run"] == 0.375
    # Three adaptations, each as dear as three steps, in six steps.
    assert result["ratio_with_adaptations"] == 0.375 + 3 * 3 / 6
    assert "more than exact ones take" in found.shown[1]
    assert "alone take 1.5 times" in train_backward.introduction(options, None, 6)
    often = dataclasses.replace(asked, prune_backward_every=4)
    rare = dataclasses.replace(options, backward=often)
    assert "alone" not in train_backward.introduction(rare, None, 6)
    assert [row["name"] for row in result["layers"]] == [
        "fc1/kernel", "fc2/kernel", "fc3/kernel"
    ]  # fmt: skip
    assert all(row["rows"] == row["examples"] == 0.25 for row in result["layers"])
    for draw in found.panels:
        axes = Figure().subplots()
        draw(axes)
        assert axes.lines


def test_zeros_of_weights_and_gradients_are_taken_to_meet_at_random():
    layer = backward.LayerCost("a#2", 100, 0.0, 0.5)
    cost = backward.BackwardCost((layer, dataclasses.replace(layer, name="b")), ())
    rows = [{"leaf": "a", "nonzeros": 1, "entries": 4}]  # b is not pruned
    assert with_sparse_weights(cost, rows) == pytest.approx((0.125 + 0.5) / 2)


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (
            "--prune-backward 1",
            "--prune-backward: a rate in [0, 1) or vcas wanted, got '1'",
        ),
        ("--prune-backward -0.1", "--prune-backward: a rate in [0, 1) or vcas"),
        (
            "--prune-backward much",
            "--prune-backward: a rate in [0, 1) or vcas wanted, got 'mu",
        ),
        ("--prune-backward nan", "got 'nan'"),
        (
            "--prune-backward-threshold exact",
            "--prune-backward-threshold: it is for --prune-backward P; leave it out",
        ),
        (
            "--prune-backward vcas --prune-backward-threshold exact",
            "--prune-backward-threshold: it is for --prune-backward P; leave it out",
        ),
        (
            "--prune-backward 0.9 --prune-backward-variance 0.1",
            "--prune-backward-variance: it is for --prune-backward vcas",
        ),
        (
            "--prune-backward vcas --prune-backward-variance -1",
            "--prune-backward-variance must be a number, 0 or more, got -1.0",
        ),
        (
            "--prune-backward vcas --prune-backward-every 0",
            "--prune-backward-every must be 1 or more, got 0",
        ),
        (
            "--prune-backward 0.9 --algorithm lottery",
            "--prune-backward 0.9: lottery trains its levels by a loss that draws",
        ),
        (
            "--prune-backward 0.9 --robust freeat",
            "--prune-backward 0.9: --robust freeat makes gradients of its own",
        ),
    ],
)
def test_bad_options_are_one_sentence_and_leave_no_folder(
    options, saying, train, tmp_path, capsys
):
    assert train(*options.split(), out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("swapjax: ")
    assert error.count("\n") == 1
    assert saying in error
    assert names(tmp_path) == []


def test_the_help_says_what_a_rate_is(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--prune-backward P|vcas" in text
    assert "less become zero" in text
