"""swapjax train against attacks and wrong labels: reports, going on, refusals."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from interrupts import half_written

from swapjax import robust
from swapjax.cli import (
    main,
    setup,
    train_algorithms,
    train_attack,
    train_labels,
    train_robust,
)
from swapjax.cli.robust_options import FRAMEWORKS, LABEL_NOISES, Against
from swapjax.cli.train_options import Train, optimizer_name
from swapjax.core.objective import as_objective
from swapjax.experiments.runner import Setting
from swapjax.io import checkpoint
from swapjax.robust import LABEL_OBJECTIVES, he_loss
from swapjax.training import Epoch

pytestmark = pytest.mark.usefixtures("small")
STATE = "training.safetensors"
RESULTS = ["masks.safetensors", "params.safetensors", "report.json", "train.png"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def loaded(images):
    """Data and networks, with logits and with cosines."""

    def load(against):
        options = Train(out=Path("nowhere"), data=str(images), against=against)
        data, model, _ = setup.load(options, train_robust.head(against))
        return Setting(data, model, model.params)

    return load


# What is minimised


@pytest.mark.parametrize("hypersphere", [False, True])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_makes_an_objective_of_batches(framework, hypersphere, loaded):
    against = Against(robust=framework, hypersphere=hypersphere, loss="gce")
    setting = loaded(against)
    objective = train_robust.objective(against, setting, 6)
    batch = tuple(part[:16] for part in setting.data.train)
    state = objective.init(setting.params, batch)
    key = jax.random.key(0)
    gradients, loss, after, told = jax.eval_shape(
        objective.value_and_grad, setting.params, state, batch, key
    )
    assert jax.tree.structure(gradients) == jax.tree.structure(setting.params)
    assert loss.shape == ()
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "robust_accuracy" in told
    assert objective.replays == train_robust.replays(against)


@pytest.mark.parametrize("loss", LABEL_OBJECTIVES)
def test_every_loss_makes_an_objective_of_batches(loss, loaded):
    against = Against(loss=loss)
    setting = loaded(against)
    objective = as_objective(train_robust.objective(against, setting, 6))
    batch = tuple(part[:16] for part in setting.data.train)
    state = objective.init(setting.params, batch)
    gradients, *_ = jax.eval_shape(
        objective.value_and_grad, setting.params, state, batch, jax.random.key(0)
    )
    assert jax.tree.structure(gradients) == jax.tree.structure(setting.params)


@pytest.mark.parametrize(
    ("framework", "steps", "length"),
    [("pgd-at", 10, 0.025), ("fastat", 1, 0.125), ("freeat", 1, 0.1)],
)
def test_steps_of_attacks_follow_from_their_radius(framework, steps, length, loaded):
    against = Against(robust=framework)
    found = train_robust.attack_steps(against, loaded(against).data)
    assert found == (steps, pytest.approx(length))


def test_labels_are_wrong_in_the_share_asked_for_and_the_same_for_a_seed(loaded):
    data = loaded(Against()).data
    counts = np.bincount(data.y_train)
    for kind in LABEL_NOISES[:-1]:
        against = Against(label_noise=f"{kind}:0.5")
        one, same, other = (
            train_labels.wrong_labels(against, data, seed) for seed in (0, 0, 1)
        )
        assert np.array_equal(one.noisy, same.noisy)
        assert not np.array_equal(one.flipped, other.flipped)
        assert np.array_equal(one.flipped, one.noisy != data.y_train)
        if kind in ("symmetric", "pairs"):
            assert one.flipped.sum() == sum(n // 2 for n in counts)
    with pytest.raises(ValueError, match="cifar100 takes classes up to 99 for others"):
        train_labels.wrong_labels(Against(label_noise="cifar100:0.4"), data, 0)


@pytest.mark.parametrize("robust", [None, "fastat"])
@pytest.mark.parametrize("noise", [None, "pairs:0.5"])
def test_what_measures_tells_the_test_set(robust, noise, loaded):
    against = Against(robust=robust, label_noise=noise)
    setting = loaded(against)
    labels = train_labels.wrong_labels(against, setting.data, 0)
    other = setting.data._replace(x_test=setting.data.x_test[::-1])
    one, same, another = (
        train_attack.measure(
            against, Setting(data, setting.model, setting.params), labels
        ).describe()
        for data in (setting.data, setting.data, other)
    )
    assert one == same != another


def test_a_collapse_is_told_with_its_epoch():
    def history(*told):
        return [
            Epoch(i, i, 1.0, 90.0, 0.0, {}, 0, 1.0, told={"robust_batch": value})
            for i, value in enumerate(told, 1)
        ]

    assert train_attack.collapse(history(0.5, 0.6, 0.45)) == ""
    assert "from 60% to 30% in epoch 3" in train_attack.collapse(history(0.5, 0.6, 0.3))


def test_one_class_for_most_images_is_told(loaded):
    setting = loaded(Against())
    zeros = jax.tree.map(np.zeros_like, setting.params)
    assert "100% of the test set is put in one" in train_labels.lopsided(setting, zeros)
    right = jax.nn.one_hot(setting.data.y_test, setting.data.classes)
    model = setting.model._replace(apply=lambda params, images: right)
    assert train_labels.lopsided(dataclasses.replace(setting, model=model), zeros) == ""


@pytest.mark.parametrize("algorithm", ["dense", "gmp", "admm", "safe"])
def test_sparse_regularisation_has_the_optimizer_of_its_authors(algorithm, loaded):
    against = Against(loss="sr-ce")
    options = Train(out=Path("nowhere"), algorithm=algorithm, against=against)
    assert optimizer_name(options) == "sgd"
    assert train_algorithms.settings(options, 6)[:2] == (0.01, 0.9)
    chosen = dataclasses.replace(options, optimizer="adam")
    assert optimizer_name(chosen) == "adam"
    others = dataclasses.replace(options, against=Against(loss="gce"))
    assert train_algorithms.settings(others, 6)[0] != 0.01


def test_gradients_are_clipped_before_admm_adds_its_pull(loaded):
    setting, key = loaded(Against()), jax.random.key(0)
    options = Train(
        out=Path("nowhere"), algorithm="admm", against=Against(loss="sr-ce"),
        sparsity=0.5, penalty=1e4,
    )  # fmt: skip
    target = train_algorithms.make_plan(options, setting)
    tx = train_algorithms.whole(options, setting, target, 4, key)
    state, params = tx.init(setting.params), setting.params
    still = jax.tree.map(np.zeros_like, params)
    for _ in range(2):  # the penalty is zero at first
        updates, state = tx.update(still, state, params)
    assert np.linalg.norm(updates["fc1"]["kernel"]) > 10 * 0.01 * 5
    updates, _ = tx.update(
        jax.tree.map(lambda x: x + 1e6, still), tx.init(params), params
    )
    assert np.linalg.norm(updates["fc1"]["kernel"]) < 1.01 * 0.01 * 5 + 1e-2


def test_the_curve_over_radii_is_of_the_images_that_are_attacked(
    loaded, tmp_path, monkeypatch
):
    setting, seen = loaded(Against()), []
    data = setting.data._replace(
        x_test=np.tile(setting.data.x_test, (15, 1, 1)),
        y_test=np.tile(setting.data.y_test, 15),
    )
    told = SimpleNamespace(robust=0.5)
    monkeypatch.setattr(
        robust, "evaluate", lambda apply, params, data, **_: seen.append(data) or told
    )
    against = Against(attack=("fgsm",), attack_images=600)
    setting = dataclasses.replace(setting, data=data)
    train_attack.attack(against, setting, setting.params, 0, tmp_path / "state")
    assert [len(labels) for _, labels in seen] == [600] * 7


# What it writes, and where it goes on


def test_an_attacked_run_with_wrong_labels_reports_both_and_goes_on(
    train, tmp_path, capsys
):
    options = (
        "--robust", "pgd-at", "--label-noise", "symmetric:0.5", "--attack-steps", "2",
        "--algorithm", "dense", "--attack", "pgd-ce:2", "--attack-images", "40",
    )  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*options, out=whole) == 0
    text = capsys.readouterr().out
    assert names(whole) == RESULTS
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert train(*options, out=parts) == 130
    assert names(parts) == [STATE]
    assert train(*options, out=parts) == 0
    assert names(parts) == RESULTS
    for name in RESULTS[:2]:
        assert (parts / name).read_bytes() == (whole / name).read_bytes()

    report = report_of(whole)
    result, held = report["result"], report["result"]["robustness"]
    assert {**result, "seconds": 0} == {
        **report_of(parts)["result"],
        "seconds": 0,
    }
    assert held["examples"] == 40
    assert held["epsilon"] == 0.1
    assert [a["attack"] for a in held["attacks"]] == ["pgd-ce:2"]
    assert held["robust"] == held["attacks"][-1]["left"] <= held["clean"]
    assert len(held["radii"]) == 6
    learnt = result["labels"]
    assert learnt["flipped"] < learnt["examples"] == 48
    assert learnt["best"] - learnt["best_to_last"] == pytest.approx(result["accuracy"])
    assert {"memorized", "recovered", "fitted"} <= set(learnt)
    for epoch in report["epochs"]:
        assert {"memorized", "robust_batch", "robust_accuracy"} <= set(epoch["told"])
    told = report["training"]
    assert told["robust"]["attack_steps"] == 2
    assert report["options"]["against"]["label_noise"] == "symmetric:0.5"
    assert f"{learnt['flipped']} of 48 labels are wrong in training" in text
    assert "Attacks within 0.1 of the range" in text


def test_cosines_are_of_columns_of_norm_1_and_as_sparse_as_asked_for(
    train, loaded, tmp_path
):
    assert train("--algorithm", "gmp", "--hypersphere", out=tmp_path) == 0
    setting = loaded(Against(hypersphere=True))
    params = checkpoint.load_params(tmp_path / "params.safetensors", setting.params)
    kernel = np.asarray(params["fc1"]["kernel"])
    assert np.count_nonzero(kernel) == 128
    norms = np.linalg.norm(kernel, axis=0)
    assert norms[norms > 0] == pytest.approx(1)
    outputs = setting.model.apply(params, setting.data.x_test)
    assert np.abs(outputs).max() <= 1 + 1e-6
    result = report_of(tmp_path)
    assert result["training"]["hypersphere"] == {"scale": 10.0, "margin": 0.2}
    # The loss is that of the cosines times the scale, without the margin.
    losses = he_loss(outputs, setting.data.y_test, scale=10.0)
    assert result["result"]["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_lottery_takes_losses_and_wrong_labels_and_tells_losses_apart(
    train, tmp_path, capsys
):
    options = ("--algorithm", "lottery", "--rate", "0.8", "--label-noise", "pairs:0.5")
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert train(*options, "--loss", "gce", out=tmp_path) == 130
    assert train(*options, "--loss", "mae", out=tmp_path) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert train(*options, "--loss", "gce", out=tmp_path) == 0
    learnt = report_of(tmp_path)["result"]["labels"]
    assert learnt["noise"] == "pairs:0.5"
    # Levels differ in sparsity: none is the best, and there is no fall from it.
    assert not {"best", "best_to_last"} & set(learnt)
    assert "best epoch" not in capsys.readouterr().out


def test_the_state_of_a_run_with_another_loss_is_refused(train, tmp_path, capsys):
    options = ("--algorithm", "dense", "--loss", "sr-gce")
    with pytest.MonkeyPatch.context() as patch:
        half_written(patch, 2)
        assert train(*options, out=tmp_path) == 130
    for change in (("--loss", "ce"), ("--loss", "sr-ce"), ("--robust", "fastat")):
        changed = (*options[:2], *change)
        assert train(*changed, out=tmp_path) == 2
        assert "belongs to another run" in capsys.readouterr().err
    assert train(*options, out=tmp_path) == 0


# What it refuses


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("--label-noise symmetric", "--label-noise: KIND:RATE wanted, KIND one of sym"),
        ("--label-noise symmetric:1", "RATE in [0, 1), got 'symmetric:1'"),
        ("--label-noise letters:0.2", "got 'letters:0.2'"),
        ("--label-noise cifar100:0.2", "--label-noise cifar100 takes classes up to 99"),
        ("--attack pgd", "--attack: none, or some of fgsm, pgd-ce"),
        ("--attack pgd-ce pgd-ce", "wanted, each once"),
        ("--attack pgd-ce:0", "got 'pgd-ce:0'"),
        ("--attack fgsm --attack-images 0", "--attack-images must be 1 or more, got 0"),
        ("--robust pgd-at --epsilon -0.1", "--epsilon must be a number, 0 or more"),
        ("--robust pgd-at --epsilon 8", "--epsilon is a part of the range of pixels"),
        ("--epsilon 0.1", "--epsilon: nothing is attacked; leave it out, or give"),
        ("--robust pgd-at --attack-steps 0", "--attack-steps must be 1 or more, got 0"),
        ("--robust fastat --attack-steps 5", "--attack-steps: --robust fastat has no"),
        ("--attack-step 0.1", "--attack-step: a run without --robust has no use for"),
        ("--robust pgd-at --replays 2", "--replays: --robust pgd-at has no use for it"),
        ("--robust pgd-at --beta 2", "(it is for --robust trades, alp, mart)"),
        ("--scale 10", "--scale: a run without --hypersphere has no use for it"),
        ("--hypersphere --scale 0", "--scale must be positive, got 0.0"),
        (
            "--hypersphere --loss sr-ce",
            "--loss sr-ce: --hypersphere takes a loss",
        ),
        ("--robust alp --loss nlnl", "--loss nlnl: --robust alp takes a loss of an ex"),
        ("--algorithm lottery --robust alp", "--robust alp: lottery trains its levels"),
        ("--algorithm lottery --loss sr-ce", "--loss sr-ce: lottery trains its levels"),
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


def test_the_help_tells_of_every_framework_and_loss(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for framework in FRAMEWORKS:
        assert f"\n- {framework}: " in text
    for word in (*LABEL_OBJECTIVES, *LABEL_NOISES, "--hypersphere", "--attack"):
        assert word in text
