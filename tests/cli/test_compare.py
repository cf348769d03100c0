"""swapjax compare and demo: rows, tables, pictures, going on."""

import importlib
import json
import os

import numpy as np
import pytest

from swapjax.cli import console, main, setup
from swapjax.cli.compare import _methods
from swapjax.cli.lock import exclusive
from swapjax.cli.methods import NAMES as METHODS
from swapjax.cli.options import Compare, Options
from swapjax.experiments import plot, report, runner
from swapjax.io import checkpoint
from swapjax.pruning.methods import METHODS as TABLE

COLUMNS = {"method", "sparsity", "seed", "noise", "accuracy", "loss", "seconds"}
COLUMNS |= {"nonzeros", "total", "status"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def dense(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    checkpoint.save_params(path, digits.params)
    return path


@pytest.fixture
def compare(dense):
    """Call the command with quick options."""

    def call(*options):
        quick = ["--stages", "2", "--samples", "50", "--method", "magnitude"]
        options = [*quick, "--checkpoint", dense, *options]
        return main(["compare", *map(str, options)])

    return call


@pytest.fixture
def runs(monkeypatch):
    """The runs that are really done, as (method, sparsity, seed)."""
    run, calls = runner.run, []

    def counted(setting, method, *, plan, seed, **options):
        result = run(setting, method, plan=plan, seed=seed, **options)
        calls.append((method.name, float(plan.sparsity), seed))
        return result

    monkeypatch.setattr(runner, "run", counted)
    return calls


def interrupt_run(patch, number):
    """Press Ctrl-C while a run is at work."""
    run, calls = runner.run, []

    def interrupted(*arguments, **options):
        calls.append(number)
        if len(calls) == number:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    patch.setattr(runner, "run", interrupted)


def without_seconds(rows):
    """All but the time, and the digest of the line that it is in."""
    own = ("seconds", "digest")
    return [{k: v for k, v in row.items() if k not in own} for row in rows]


# Rows and tables


def test_the_json_has_a_line_for_every_run(compare, tmp_path):
    path = tmp_path / "new" / "runs.json"
    options = ("--methods", "all", "--sparsities", "0.5,0.9", "--json", path)
    # One layer alone, 20 x 10, which compiles fast.
    assert compare(*options, "--exclude", "fc[12]") == 0
    rows = json.loads(path.read_text())
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        (method, sparsity) for method in METHODS for sparsity in (0.5, 0.9)
    ]
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["nonzeros"] == round(200 * (1 - row["sparsity"]))
        assert row["total"] == 200
        assert row["status"] in ("converged", "not_refitted")
        assert (row["seed"], row["noise"]) == (0, "clean")
        assert row["seconds"] > 0
    lines = path.read_text().splitlines()[1:-1]
    assert [json.loads(line.rstrip(",")) for line in lines] == rows


def test_a_pattern_implies_the_sparsity(compare, tmp_path, capsys):
    path = tmp_path / "runs.json"
    options = ("--methods", "magnitude,wanda", "--pattern", "2:4", "--exclude", "fc3")
    assert compare(*options, "--json", path) == 0
    rows = json.loads(path.read_text())
    assert [(r["sparsity"], r["nonzeros"], r["total"]) for r in rows] == [
        (0.5, 1680, 3360)
    ] * 2
    assert compare(*options, "--sparsities", "0.7") == 2
    assert "--pattern 2:4 removes 0.5" in capsys.readouterr().err
    # Nothing is repeated.
    assert compare(*options, "--json", path) == 0
    assert len(json.loads(path.read_text())) == 2


def test_a_row_tells_what_prune_reports(compare, dense, tmp_path):
    path, out = tmp_path / "runs.json", tmp_path / "out"
    options = ["--noise", "gaussian:4,.5", "--sparsity", "0.7", "--seed", "3"]
    assert compare(*options, "--method", "linear-regression", "--json", path) == 0
    options += ["--method", "linear-regression", "--stages", "2", "--samples", "50"]
    assert main(["prune", *options, "--checkpoint", str(dense), "--out", str(out)]) == 0
    (row,) = json.loads(path.read_text())
    result = json.loads((out / "report.json").read_text())["result"]
    assert row.pop("setup") != result.pop("setup") == ""
    assert without_seconds([row]) == without_seconds([result])
    assert row["noise"] == "gaussian:4,0.5"


def test_accuracy_is_percent_of_the_whole_test_set(compare, digits, tmp_path):
    path = tmp_path / "runs.json"
    assert compare("--sparsities", "0,0.9", "--json", path) == 0
    untouched, pruned = (row["accuracy"] for row in json.loads(path.read_text()))
    assert untouched == runner.evaluate(digits, digits.params)[0]
    assert pruned * 360 / 100 == pytest.approx(round(pruned * 360 / 100))
    assert untouched > pruned


def test_the_table_shows_a_line_a_method_and_a_column_a_sparsity(
    compare, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(console.console, "width", 120)
    path = tmp_path / "runs.json"
    options = ("--methods", "magnitude,linear-regression", "--sparsities", "0.5,0.9")
    assert compare(*options, "--json", path) == 0
    text = capsys.readouterr().out
    for row in json.loads(path.read_text()):
        (line,) = (x for x in text.splitlines() if x.startswith(f"{row['method']} "))
        assert f" {row['accuracy']:.2f} " in line
    assert "the dense network has 9" in text
    assert "±" not in text
    assert f"Written to {path}." in text


def test_seeds_show_as_mean_and_deviation(compare, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console.console, "width", 120)
    path = tmp_path / "runs.json"
    options = ("--method", "linear-regression", "--seeds", "0,1,2", "--json", path)
    assert compare(*options) == 0
    rows = json.loads(path.read_text())
    assert [row["seed"] for row in rows] == [0, 1, 2]
    values = [row["accuracy"] for row in rows]
    shown = f"{np.mean(values):.2f}±{np.std(values, ddof=1):.2f}"
    assert f" {shown} " in capsys.readouterr().out
    assert np.std(values) > 0


def test_a_seed_that_is_named_twice_counts_once(compare, runs, tmp_path, capsys):
    path = tmp_path / "runs.json"
    options = ("--methods", "magnitude,magnitude", "--sparsities", "0.5,0.50")
    assert compare(*options, "--seeds", "1,1", "--json", path) == 0
    assert runs == [("magnitude", 0.5, 1)]
    assert len(json.loads(path.read_text())) == 1
    assert "±" not in capsys.readouterr().out


def test_without_a_file_the_table_is_all(compare, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare() == 0
    assert "magnitude" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_folder_gets_rows_and_a_picture(compare, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert compare("--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["compare.json", "compare.png"]
    assert (out / "compare.png").read_bytes().startswith(PNG)
    assert f"Drawn in {out / 'compare.png'}." in capsys.readouterr().out


def test_the_picture_goes_to_its_folder_when_the_rows_go_elsewhere(compare, tmp_path):
    out, path = tmp_path / "out", tmp_path / "runs.json"
    assert compare("--out", out, "--json", path) == 0
    assert [p.name for p in out.iterdir()] == ["compare.png"]
    assert len(json.loads(path.read_text())) == 1


# Noise


@pytest.fixture
def spoilt(monkeypatch):
    """What is spoilt, as (noise, seed)."""
    spoil, calls = runner.spoil, []

    def counted(setting, noise, seed):
        calls.append((str(noise), seed))
        return spoil(setting, noise, seed)

    monkeypatch.setattr(runner, "spoil", counted)
    return calls


NOISES = ("clean", "gaussian:8,1", "labels")


def test_several_kinds_of_noise_are_a_section_and_a_panel_each(
    compare, spoilt, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(console.console, "width", 120)
    methods = ("--methods", "magnitude,linear-regression", "--seeds", "0,1")
    assert compare("--noise", *NOISES, *methods, "--out", tmp_path) == 0
    rows = json.loads((tmp_path / "compare.json").read_text())
    words = ("clean", "gaussian:8,1", "labels:0.4")
    assert list(dict.fromkeys(row["noise"] for row in rows)) == list(words)
    # Once for all methods.
    assert spoilt == [(word, seed) for word in words for seed in (0, 1)]
    # Magnitude does not see what linear regression loses by.
    found = {(r["method"], r["noise"], r["seed"]): r["accuracy"] for r in rows}
    for seed in (0, 1):
        assert len({found["magnitude", word, seed] for word in words}) == 1
        assert len({found["linear-regression", word, seed] for word in words}) > 1
    names = ["compare.json", "compare.png", "gains.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "gains.png").read_bytes().startswith(PNG)
    accuracies, gains = capsys.readouterr().out.split("Points gained over linear-")
    lines = [line.split()[0] for line in accuracies.splitlines() if line.strip()]
    methods = ("magnitude", "linear-regression")
    wanted = [w for word in words for w in (word, *methods)]
    assert lines[-len(wanted) :] == wanted
    lines = [line for line in gains.splitlines() if line.startswith("magnitude ")]
    for line, word in zip(lines, words, strict=True):
        pairs = [
            found["magnitude", word, i] - found["linear-regression", word, i]
            for i in (0, 1)
        ]
        assert line.split()[1].startswith(f"{np.mean(pairs):+.2f}±")


def test_a_kind_of_noise_is_added_to_a_file_of_rows(compare, runs, tmp_path):
    path = tmp_path / "runs.json"
    for noises in (["clean"], ["clean", "labels:0.4"], ["labels"]):
        options = ("--method", "linear-regression", "--json", path)
        assert compare("--noise", *noises, *options) == 0
    assert [row["noise"] for row in json.loads(path.read_text())] == [
        "clean",
        "labels:0.4",
    ]
    assert len(runs) == 2


def test_rows_held_out_judge_in_the_place_of_those_that_are_fitted(compare, tmp_path):
    path = tmp_path / "runs.json"
    wrong = ("--noise", "labels:0.4", "--method", "linear-regression")
    assert compare(*wrong, "--json", path) == 0
    other = tmp_path / "other.json"
    assert compare(*wrong, "--validation", "0.3", "--json", other) == 0
    (without,), (judged,) = (json.loads(p.read_text()) for p in (path, other))
    assert "validation=0.3" in judged["setup"]
    assert judged["loss"] != without["loss"]


def test_images_that_have_no_neighbours_are_not_blurred(
    compare, data, capsys, tmp_path
):
    path, write = data
    rng = np.random.default_rng(0)
    write(x_train=rng.random((100, 64)), x_test=rng.random((30, 64)))
    assert compare("--noise", "gaussian-blur", "--data", path) == 2
    saying = "noise gaussian-blur:3 wants images of [height, width] or [height, width, "
    assert saying in capsys.readouterr().err


# Going on


def test_an_interrupted_comparison_goes_on_without_repeating_runs(
    compare, runs, tmp_path, capsys
):
    whole, path = tmp_path / "whole.json", tmp_path / "runs.json"
    options = ("--sparsities", "0.5,0.9", "--seeds", "0,1")
    options += ("--method", "linear-regression")
    assert compare(*options, "--json", whole) == 0
    everything = list(runs)
    assert len(everything) == 4

    runs.clear()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_run(patch, 3)
        assert compare(*options, "--json", path) == 130
    assert runs == everything[:2]
    assert len(json.loads(path.read_text())) == 2
    assert "interrupted" in capsys.readouterr().err

    runs.clear()
    assert compare(*options, "--json", path) == 0
    assert runs == everything[2:]
    assert "2 of 4 runs are done already." in capsys.readouterr().out
    first, second = (json.loads(p.read_text()) for p in (whole, path))
    assert without_seconds(first) == without_seconds(second)


def test_a_finished_comparison_is_shown_again_without_any_run(
    compare, runs, tmp_path, capsys
):
    path = tmp_path / "runs.json"
    assert compare("--sparsities", "0.5,0.9", "--json", path) == 0
    # Not when it was read last.
    version = lambda: (path.stat().st_mtime_ns, path.stat().st_ino)  # noqa: E731
    before, table = version(), capsys.readouterr().out.split("Test accuracy")[1]
    runs.clear()
    assert compare("--sparsities", "0.5,0.9", "--json", path) == 0
    assert runs == []
    assert version() == before
    assert capsys.readouterr().out.split("Test accuracy")[1] == table


def test_rows_of_earlier_calls_stay_in_the_file(compare, runs, tmp_path):
    path = tmp_path / "runs.json"
    assert compare("--sparsities", "0.5,0.9", "--json", path) == 0
    assert compare("--sparsities", "0.7", "--json", path) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_run(patch, 2)
        assert compare("--sparsities", "0.5,0.6,0.8,0.9", "--json", path) == 130
    kept = [row["sparsity"] for row in json.loads(path.read_text())]
    assert kept == [sparsity for _, sparsity, _ in runs] == [0.5, 0.9, 0.7, 0.6]


def test_a_method_with_other_settings_is_another_run(compare, runs, tmp_path):
    path = tmp_path / "runs.json"
    for damping in ("0.01", "0.1"):
        options = ("--method", "linear-regression", "--damping", damping)
        assert compare(*options, "--json", path) == 0
    assert len(runs) == len(json.loads(path.read_text())) == 2


def test_an_option_that_one_of_the_methods_takes_is_taken(compare, runs):
    options = ("--methods", "magnitude,linear-regression", "--damping", "0.1")
    assert compare(*options) == 0
    assert len(runs) == 2


# What it refuses


@pytest.fixture
def no_work(monkeypatch):
    """Whatever is refused is refused before data is loaded and weights are trained."""
    monkeypatch.setattr(setup, "set_up", None)


def test_a_file_of_runs_with_other_options_is_refused_and_untouched(
    compare, tmp_path, capsys, request
):
    path = tmp_path / "runs.json"
    assert compare("--json", path) == 0
    before = path.read_bytes(), path.stat().st_mtime_ns
    capsys.readouterr()
    request.getfixturevalue("no_work")
    for other in (["--samples", "60"], ["--validation", "0.5"]):
        assert compare("--json", path, *other) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"swapjax: {path}: holds runs with other options")
        assert error.count("\n") == 1
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "42",
        "null",
        '{"method": "swap"}',
        '[{"method": "swap", "spars',
        '[{"method": "swap"}]',
        "[[1, 2]]",
        "\xff",
    ],
)
def test_a_file_of_something_else_is_refused_and_untouched(
    text, compare, tmp_path, capsys
):
    path = tmp_path / "runs.json"
    path.write_text(text, encoding="latin-1")
    assert compare("--json", path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"swapjax: {path}: not a table of runs: ")
    assert error.count("\n") == 1
    assert path.read_text(encoding="latin-1") == text


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("--methods magnitude,best", "--methods: 'best' is not one of magnitude, "),
        ("--methods ,", "--methods: '' is not one of magnitude, "),
        ("--sparsities 0.5,much", "--sparsities: numbers separated by commas wanted"),
        ("--sparsities 0.5,,0.9", "--sparsities: numbers separated by commas wanted"),
        ("--seeds 0,1.5", "--seeds: whole numbers separated by commas wanted"),
        ("--seeds 0,-1", "--seeds must be from 0 to 4294967295, got -1"),
        ("--noise clean labels:0.4,1", "--noise labels:0.4,1: labels:RATE wanted, as"),
        (
            "--noise 4 0.5",
            "--noise 4: the name of a kind wanted; noise of 4 deviations",
        ),
        ("--noise", "--noise: one or more kinds wanted, got none"),
        ("--validation 0", "--validation must be in (0, 1), got 0.0"),
        ("--validation 1", "--validation must be in (0, 1), got 1.0"),
        ("--epsilon -1", "epsilon must be 0 or more, got -1.0"),
        ("--json {file}/runs.json", "is not a folder"),
        ("--json {folder}", "not a table of runs"),
        ("--method cbs --pattern 2:4", "--method: cbs does not take --pattern"),
        ("--methods magnitude --damping 1", "--damping: magnitude has no use for it"),
        ("--methods obd,swap --block 9", "--block: obd, swap have no use for it; leav"),
        ("--out {file}", "is not a folder"),
        ("--out {file}/out", "is not a folder"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(
    options, saying, compare, tmp_path, capsys
):
    (tmp_path / "file").write_text("of before")
    (tmp_path / "folder").mkdir()
    names = {name: tmp_path / name for name in ("file", "folder")}
    options = options.format(**names).split()
    assert compare("--out", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("swapjax: ")
    assert error.count("\n") == 1
    assert saying in error
    assert sorted(tmp_path.iterdir()) == sorted(names.values())
    assert (tmp_path / "file").read_text() == "of before"


@pytest.mark.parametrize("bad", ["1", "-0.5", "nan", "0.9999"])
def test_one_bad_sparsity_stops_all_before_the_first_run(
    bad, compare, runs, tmp_path, capsys
):
    assert compare("--sparsities", f"0.5,{bad}", "--out", tmp_path / "out") == 2
    assert "sparsity" in capsys.readouterr().err
    assert runs == []
    assert not (tmp_path / "out").exists()


# Data and networks by content, and one run at a time


@pytest.fixture
def data(tmp_path):
    """A file of random images, and how to write it with other content."""
    path, rng = tmp_path / "data.npz", np.random.default_rng(0)
    content = {
        "x_train": rng.random((100, 8, 8), dtype=np.float32),
        "y_train": np.arange(100) % 10,
        "x_test": rng.random((30, 8, 8), dtype=np.float32),
        "y_test": np.arange(30) % 10,
    }

    def write(path=path, **changed):
        np.savez(path, **content | changed)
        return path

    write()
    return path, write


def require_refused(capsys, compare, *options, path, saying):
    """One sentence, and the file of rows as it was."""
    before = path.read_bytes(), path.stat().st_mtime_ns
    capsys.readouterr()
    assert compare(*options, "--json", path) == 2
    error = capsys.readouterr().err
    assert error.startswith("swapjax: ")
    assert error.count("\n") == 1
    assert saying in error
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_rows_of_other_data_under_the_same_name_are_refused(
    compare, data, runs, tmp_path, capsys
):
    path, write = data
    rows = tmp_path / "runs.json"
    assert compare("--data", path, "--json", rows) == 0
    saying = "holds runs on other data or another network (data="
    for changed in (
        {"x_test": np.zeros((30, 8, 8), np.float32)},
        {"y_test": np.arange(1, 31) % 10},
        {"y_train": np.arange(1, 101) % 10},
    ):
        write(**changed)
        options = ("--data", path)
        require_refused(capsys, compare, *options, path=rows, saying=saying)
    # The same under another name goes on.
    runs.clear()
    moved = write(tmp_path / "moved.npz")
    options = ("--data", moved, "--sparsities", "0.5,0.9", "--json", rows)
    assert compare(*options) == 0
    assert runs == [("magnitude", 0.5, 0)]
    assert len(json.loads(rows.read_text())) == 2


def test_rows_of_another_network_under_the_same_name_are_refused(
    compare, digits, tmp_path, capsys
):
    weights, rows = tmp_path / "weights.safetensors", tmp_path / "runs.json"
    checkpoint.save_params(weights, digits.params)
    options = ("--checkpoint", weights)
    assert compare(*options, "--json", rows) == 0
    checkpoint.save_params(weights, digits.model.params)
    saying = "holds runs on other data or another network ("
    require_refused(capsys, compare, *options, path=rows, saying=saying)
    weights.rename(tmp_path / "moved.safetensors")
    checkpoint.save_params(tmp_path / "moved.safetensors", digits.params)
    options = ("--checkpoint", tmp_path / "moved.safetensors")
    assert compare(*options, "--json", rows) == 0


def test_rows_of_other_data_are_refused_before_the_network_is_trained(
    data, tmp_path, capsys, monkeypatch
):
    path, write = data
    rows = tmp_path / "runs.json"
    options = ["--data", path, "--epochs", "1", "--stages", "1", "--samples", "50"]

    def compare(*more):
        return main(["compare", "--method", "magnitude", *map(str, (*options, *more))])

    assert compare("--json", rows) == 0
    write(x_train=np.ones((100, 8, 8)) * np.arange(100)[:, None, None])
    monkeypatch.setattr(runner, "set_up", None)
    require_refused(capsys, compare, path=rows, saying="holds runs on other data or")


def change(rows, column, value):
    rows[0][column] = value


@pytest.mark.parametrize(
    ("damage", "saying"),
    [
        (lambda rows: change(rows, "accuracy", 99.5), "row 1 is not as it was written"),
        (lambda rows: change(rows, "seconds", 0.5), "row 1 is not as it was written"),
        (lambda rows: change(rows, "accuracy", "high"), "row 1: accuracy is 'high'"),
        (lambda rows: change(rows, "accuracy", 1e9), "row 1: accuracy is 1000000000.0"),
        (lambda rows: change(rows, "loss", float("nan")), "row 1: loss is nan"),
        (lambda rows: change(rows, "seed", True), "row 1: seed is True"),
        (lambda rows: change(rows, "noise", [4.0, 0.5]), "noise is [4.0, 0.5], as in "),
        (
            lambda rows: change(rows, "noise", None),
            "noise is None, as in rows of before",
        ),
        (lambda rows: change(rows, "noise", "much"), "row 1: noise is 'much'"),
        (lambda rows: change(rows, "nonzeros", 9999), "row 1: nonzeros is 9999, of"),
        (lambda rows: change(rows, "more", 1), "row 1: columns method, sparsity, "),
        (lambda rows: rows[0].pop("settings"), "row 1: columns method, sparsity, "),
        (lambda rows: rows[0].pop("digest"), "row 1 has no digest"),
        (lambda rows: rows.append(rows[0]), "rows 1 and 2 are of the same run"),
        (lambda rows: rows.append([]), "row 2: columns method, sparsity, "),
    ],
)
def test_a_damaged_row_is_found_before_any_work(
    damage, saying, compare, written, tmp_path, capsys, request
):
    path, rows = tmp_path / "runs.json", json.loads(written)
    damage(rows)
    path.write_text(json.dumps(rows))
    request.getfixturevalue("no_work")
    require_refused(capsys, compare, path=path, saying=saying)


@pytest.fixture(scope="module")
def written(dense, tmp_path_factory):
    """A file with one row."""
    path = tmp_path_factory.mktemp("rows") / "runs.json"
    quick = ["--stages", "2", "--samples", "50", "--method", "magnitude"]
    words = ["compare", *quick, "--checkpoint", str(dense), "--json", str(path)]
    assert main(words) == 0
    return path.read_text()


def read_or_refuse(path):
    try:
        return report.read_rows(path)
    except ValueError as e:
        return str(e)


def test_nothing_that_changes_a_file_of_rows_goes_unnoticed(written, tmp_path):
    path = tmp_path / "runs.json"
    path.write_text(written)
    rows = report.read_rows(path)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(written), 300):
        other = chr(rng.integers(32, 127))
        kind = rng.integers(3)
        new = ("", other, written[at] + other)[kind]
        path.write_text(written[:at] + new + written[at + 1 :])
        found = read_or_refuse(path)
        assert found == rows or found.startswith(f"{path}: not a table of runs: ")
    for text in (written[: len(written) // 2], "[" * 10**5, '[{"a": ' * 10**5):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a table of runs"):
            report.read_rows(path)


def test_a_second_comparison_into_the_file_is_refused(
    compare, tmp_path, capsys, request
):
    request.getfixturevalue("no_work")
    path = tmp_path / "runs.json"
    with exclusive(tmp_path, "it", ".runs.json.lock"):
        assert compare("--json", path) == 2
        assert f"{path}: another run (process {os.getpid()})" in capsys.readouterr().err
        # Whatever name it goes by.
        (tmp_path / "linked").mkdir()
        link = tmp_path / "linked" / "other.json"
        link.symlink_to("../runs.json")
        assert compare("--json", link) == 2
        assert f"{link}: another run (process {os.getpid()})" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["linked"]


def test_a_picture_that_fails_leaves_the_rows(
    compare, runs, tmp_path, capsys, monkeypatch
):
    def fail(*_):
        raise RuntimeError("no font")

    (tmp_path / "taken" / "compare.png").mkdir(parents=True)
    assert compare("--out", tmp_path / "taken") == 2
    assert "compare.png is a folder" in capsys.readouterr().err
    assert runs == []
    monkeypatch.setattr(plot, "save", fail)
    assert compare("--out", tmp_path) == 2
    out, err = capsys.readouterr()
    assert "compare.png could not be drawn (no font); all other results are" in err
    assert f"Written to {tmp_path / 'compare.json'}." in out.replace("\n", "")
    assert len(json.loads((tmp_path / "compare.json").read_text())) == 1


# The demo


@pytest.fixture
def tiny_demo(dense, monkeypatch):
    """The demo with a trained network and few small runs."""
    demo = importlib.import_module("swapjax.cli.demo")

    def options(noise, **_):
        return Options(samples=50, stages=2, checkpoint=dense, noise=noise)

    monkeypatch.setattr(demo, "Options", options)
    monkeypatch.setattr(demo, "_SPARSITIES", (0.5, 0.9))
    monkeypatch.setattr(demo, "_SEEDS", (0,))
    monkeypatch.setattr(demo, "METHODS", ("magnitude", "linear-regression"))
    monkeypatch.setattr(console.console, "width", 120)


@pytest.mark.usefixtures("tiny_demo")
def test_the_demo_shows_a_table_and_draws_a_picture(tmp_path, capsys):
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for words in ("magnitude", "linear-regression", "clean", "gaussian:4,0.5"):
        assert words in text
    assert f"Written to {out / 'demo.json'}." in text
    assert f"Drawn in {out / 'demo.png'}." in text
    assert (out / "demo.png").read_bytes().startswith(PNG)
    rows = json.loads((out / "demo.json").read_text())
    assert len(rows) == 2 * 2 * 2
    assert {row["noise"] for row in rows} == {"clean", "gaussian:4,0.5"}


@pytest.mark.usefixtures("tiny_demo")
def test_an_interrupted_demo_goes_on(runs, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_run(patch, 4)
        assert main(["demo", "--out", str(tmp_path)]) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert len(runs) == 8
    assert len(json.loads((tmp_path / "demo.json").read_text())) == 8


@pytest.mark.usefixtures("tiny_demo")
def test_a_demo_that_cannot_be_written_is_not_started(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert runs == []


def test_whole_channels_are_pruned_to_any_sparsity(compare, tmp_path):
    path = tmp_path / "runs.json"
    options = ("--methods", "magnitude,obd", "--pattern", "channel", "--json", path)
    assert compare(*options, "--sparsities", "0.3") == 0
    rows = json.loads(path.read_text())
    assert [row["method"] for row in rows] == ["magnitude", "obd"]
    assert all(abs(row["nonzeros"] / row["total"] - 0.7) < 0.05 for row in rows)
    assert compare(*options, "--sparsities", "0.3") == 0


def test_a_pattern_leaves_out_what_cannot_do_it(compare, capsys):
    assert compare("--methods", "obd,cbs", "--pattern", "2:4") == 2
    assert "--methods: cbs does not take --pattern" in capsys.readouterr().err


def test_all_methods_under_a_pattern_are_those_that_can_do_it():
    options = Compare(methods="all", pattern="2:4")
    unable = {name for name in METHODS if TABLE[name].unsupported == ("patterns",)}
    assert set(METHODS) - set(_methods(options)) == unable
    assert "cbs" in unable
    assert _methods(Compare(methods="all")) == list(METHODS)
