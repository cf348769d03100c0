"""Tables, JSON and pictures of what was pruned; swapjax inspect."""

import dataclasses
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from swapjax.cli import console, main
from swapjax.core.types import Status
from swapjax.experiments import plot, report
from swapjax.experiments.row import Row
from swapjax.io import checkpoint
from swapjax.pruning import Stage
from swapjax.training import Epoch

PARAMS = {
    "fc1": {"bias": jnp.asarray([1.0, 0.0]), "kernel": jnp.ones((4, 2))},
    "fc2": {"kernel": jnp.asarray([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])},
}
MASKS = {
    "fc1": {"bias": jnp.asarray(True), "kernel": jnp.ones((4, 2), bool)},
    "fc2": {"kernel": PARAMS["fc2"]["kernel"] != 0},
}
ROW = Row(
    method="swap",
    sparsity=0.9,
    seed=0,
    noise="clean",
    accuracy=90.0,
    loss=0.5,
    seconds=2.0,
    nonzeros=10,
    total=100,
    status="converged",
    settings="swap(epsilon=None)",
    setup="data=digits",
)
STAGE = Stage(
    stage=1,
    sparsity=0.5,
    kept=1234,
    layers={"fc/kernel": 1234},
    objective=(3.0, 1.25),
    loss_before=0.1,
    loss=0.2,
    seconds=1.5,
    status=Status.RANK_DEFICIENT,
    iterations=3,
    details={"epsilon": 0.1},
)


def row(**changed):
    return dataclasses.replace(ROW, **changed)


def shown(table, width=100):
    """The cells of a table, line by line."""
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    lines = [line for line in file.getvalue().splitlines() if "│" in line]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def compared(rows, width=80):
    """The lines of a comparison below its head."""
    file = io.StringIO()
    Console(file=file, width=width).print(report.comparison_table(rows))
    _, *lines = file.getvalue().splitlines()
    words = (" ".join(line.replace("─", "").split()) for line in lines)
    return [line for line in words if line]


def bold(table):
    """The words that stand out."""
    file = io.StringIO()
    Console(file=file, width=100, force_terminal=True, no_color=True).print(table)
    body = file.getvalue().split("─\n", 1)[1]
    return [part.split("\x1b[0m")[0].strip() for part in body.split("\x1b[1m")[1:]]


# Layers


def test_layers_are_counted_leaf_by_leaf():
    assert report.layers(PARAMS, MASKS) == [
        {
            "leaf": "fc1/bias",
            "shape": [2],
            "entries": 2,
            "nonzeros": 1,
            "prunable": False,
        },
        {
            "leaf": "fc1/kernel",
            "shape": [4, 2],
            "entries": 8,
            "nonzeros": 8,
            "prunable": True,
        },
        {
            "leaf": "fc2/kernel",
            "shape": [2, 3],
            "entries": 6,
            "nonzeros": 3,
            "prunable": True,
        },
    ]


def test_layers_go_to_json_as_they_are(tmp_path):
    rows = report.layers(PARAMS, MASKS)
    report.write_json(tmp_path / "layers.json", rows)
    assert json.loads((tmp_path / "layers.json").read_text()) == rows


def test_the_table_of_layers_has_shapes_densities_and_a_sum():
    assert shown(report.layer_table(report.layers(PARAMS, MASKS))) == [
        ["fc1/bias (kept)", "2", "2", "1", "50.00%"],
        ["fc1/kernel", "4x2", "8", "8", "100.00%"],
        ["fc2/kernel", "2x3", "6", "3", "50.00%"],
        ["prunable", "", "14", "11", "78.57%"],
        ["all", "", "16", "12", "75.00%"],
    ]


def test_names_with_brackets_are_shown_as_they_are():
    rows = [{"leaf": "a[bold]/b[/i]", "shape": [], "entries": 1, "nonzeros": 1}]
    file = io.StringIO()
    table = report.layer_table(rows)
    Console(file=file, width=100).print(table)
    assert "a[bold]/b[/i]" in file.getvalue()


def test_scalars_and_empty_leaves_have_a_line_too():
    rows = [
        {"leaf": "scale", "shape": [], "entries": 1, "nonzeros": 0},
        {"leaf": "none", "shape": [0, 3], "entries": 0, "nonzeros": 0},
    ]
    assert shown(report.layer_table(rows)) == [
        ["scale", "scalar", "1", "0", "0.00%"],
        ["none", "0x3", "0", "0", ""],
        ["all", "", "1", "0", "0.00%"],
    ]


def test_of_the_keys_of_a_dropout_the_bits_are_counted():
    params = {"dropout": jax.random.key(1), "w": jnp.ones((2, 3))}
    masks = {"dropout": jnp.asarray(True), "w": jnp.ones((2, 3), bool)}
    key, _ = report.layers(params, masks)
    assert (key["shape"], key["entries"], key["prunable"]) == ([2], 2, False)


# Stages


def test_the_table_of_stages_tells_what_each_did():
    line = ["1", "0.5000", "1,234", "3 to 1.25", "0.2000", "1.50", "rank deficient"]
    assert shown(report.stage_table([STAGE])) == [line]


def test_a_method_that_minimises_nothing_shows_no_objective():
    stage = dataclasses.replace(STAGE, objective=(math.nan, math.nan))
    assert shown(report.stage_table([stage]))[0][3] == ""


# Comparisons


def test_one_line_a_noise_and_method_one_column_a_sparsity():
    rows = [
        row(method=method, sparsity=sparsity, noise=noise, accuracy=accuracy)
        for noise, method, sparsity, accuracy in [
            ("clean", "magnitude", 0.9, 70),
            ("clean", "magnitude", 0.5, 95),
            ("clean", "swap", 0.5, 96),
            ("clean", "swap", 0.9, 80),
            ("gaussian:4,0.5", "swap", 0.9, 75),
        ]
    ]
    assert compared(rows) == [
        "clean",
        "magnitude 95.00 70.00 2.0 s",
        "swap 96.00 80.00 2.0 s",
        "gaussian:4,0.5",
        "swap 75.00 2.0 s",
    ]


def test_the_best_of_each_column_is_bold():
    rows = [
        row(method="magnitude", sparsity=0.5, accuracy=95),
        row(method="magnitude", sparsity=0.9, accuracy=70),
        row(method="swap", sparsity=0.5, accuracy=94),
        row(method="swap", sparsity=0.9, accuracy=80),
        row(method="swap", sparsity=0.9, accuracy=60, noise="gaussian:1,0.5"),
    ]
    assert bold(report.comparison_table(rows)) == ["95.00", "80.00", "60.00"]


def test_five_sparsities_of_several_seeds_fit_eighty_columns():
    rows = [
        row(method=method, sparsity=sparsity, seed=seed, accuracy=90.5)
        for method in ("magnitude", "linear-regression")
        for sparsity in (0.5, 0.7, 0.8, 0.9, 0.95)
        for seed in (0, 1)
    ]
    _, last = compared(rows, width=80)
    assert last == " ".join(["linear-regression", *["90.50±0.00"] * 5, "2.0 s"])


def test_several_seeds_are_a_mean_and_a_deviation():
    rows = [row(seed=seed, accuracy=90 + seed) for seed in range(3)]
    assert compared(rows) == ["swap 91.00±1.00 2.0 s"]


def test_a_run_that_failed_does_not_hide_the_best_of_the_others():
    rows = [
        row(method="magnitude", accuracy=math.nan),
        row(method="linear-regression", accuracy=70),
        row(method="swap", accuracy=80),
    ]
    table = report.comparison_table(rows)
    found = [line.split()[1] for line in compared(rows)]
    assert found == ["nan", "70.00", "80.00"]
    assert bold(table) == ["80.00"]


def test_no_runs_are_an_empty_table():
    assert compared([]) == []


# Files


def test_json_is_strict_and_what_is_not_finite_becomes_null(tmp_path):
    content = {"a": [1.0, math.nan, (math.inf, -math.inf)], "b": np.float64("nan")}
    report.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1.0, None, [None, None]], "b": None}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_what_cannot_be_json_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    report.write_json(path, "before")
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("noise", ["clean", "gaussian:4,0.5"])
def test_rows_come_back_as_they_were_written(noise, tmp_path):
    path = tmp_path / "rows.json"
    rows = [row(seed=seed, noise=noise) for seed in range(3)]
    report.write_rows(path, rows)
    assert report.read_rows(path) == rows
    assert len(path.read_text().splitlines()) == 2 + len(rows)


def test_a_lost_accuracy_is_null_in_the_file_and_nan_again(tmp_path):
    path = tmp_path / "rows.json"
    report.write_rows(path, [row(accuracy=math.nan, loss=math.inf)])
    (written,) = json.loads(path.read_text())
    assert written["accuracy"] is written["loss"] is None
    (back,) = report.read_rows(path)
    assert math.isnan(back.accuracy)
    assert math.isnan(back.loss)
    assert dataclasses.replace(back, accuracy=90.0, loss=0.5) == ROW


def test_no_rows_are_an_empty_list(tmp_path):
    report.write_rows(tmp_path / "rows.json", [])
    assert report.read_rows(tmp_path / "rows.json") == []


def test_a_file_that_is_not_there_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="not a table of runs"):
        report.read_rows(tmp_path / "rows.json")


# Pictures


def history():
    return [dataclasses.replace(STAGE, stage=stage) for stage in (1, 2, 3)]


def saved(figure, folder):
    path = folder / "figure.png"
    plot.save(figure, path)
    assert [p.name for p in folder.iterdir()] == ["figure.png"]
    return path.read_bytes()


@pytest.mark.parametrize(
    ("first_layer", "shape", "panels"),
    [
        (np.ones((64, 40)), (8, 8), 3),
        (np.ones((192, 40)), (8, 8, 3), 3),
        (np.ones((64, 40)), (64,), 2),  # no image
        (np.ones((32, 40)), (8, 8), 2),  # of something else than pixels
        (np.ones(16), (4, 4), 2),  # a bias
        (np.ones((3, 3, 1, 16)), (8, 8), 2),  # a convolution
        (None, (8, 8), 2),
    ],
)
def test_pixels_are_drawn_where_the_first_layer_reads_them(
    first_layer, shape, panels, tmp_path
):
    figure = plot.report_figure(
        history(),
        report.layers(PARAMS, MASKS),
        title="a run",
        first_layer=first_layer,
        image_shape=shape,
    )
    # One more axis for the sparsity, and one for the colours of the pixels.
    assert len(figure.axes) == {2: 3, 3: 5}[panels]
    assert saved(figure, tmp_path).startswith(b"\x89PNG\r\n\x1a\n")
    images = [image for axes in figure.axes for image in axes.images]
    assert len(images) == panels - 2
    for image in images:
        assert image.get_array().shape == (8, 8)
        assert np.all(image.get_array() == 40 * math.prod(shape[2:]))


# What matplotlib would read as mathematics, has no glyph for, or cannot encode.
STRANGE = ["a$_$b", "$\\frac{$", r"c:\new\$x$ {0} & # ~", "tab\t\nline\x1b[31m\u202e"]
STRANGE += ["long " * 400, "名前 😀", "half\udcff", ""]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, "png") for name in STRANGE]
    + [(name, suffix) for name in STRANGE[:1] for suffix in ("pdf", "svg")],
)
def test_pictures_show_names_of_any_kind_as_they_are(name, suffix, tmp_path):
    layers = [{**row, "leaf": name} for row in report.layers(PARAMS, MASKS)]
    epoch = Epoch(1, 3, 0.5, 90.0, 0.5, {name: 0.5, f"{name}2": 0.4}, 2, 1.0)
    rows = [row(method=name), row(method=name, seed=1)]
    for number, figure in enumerate(
        (
            plot.report_figure(history(), layers, title=name),
            plot.training_figure([epoch], layers, title=name),
            plot.comparison_figure(rows, dense=90.0, title=name),
        )
    ):
        path = tmp_path / f"{number}.{suffix}"
        plot.save(figure, path)
        assert path.stat().st_size > 1000
        shown = figure.get_suptitle()
        assert shown.isprintable()
        assert len(shown) <= 140
        if name.isprintable() and len(name) < 140:
            assert shown == name


def test_names_of_layers_stand_at_their_bars(tmp_path):
    layers = [{**row, "leaf": "twice"} for row in report.layers(PARAMS, MASKS)]
    figure = plot.report_figure(history(), layers, title="a run")
    saved(figure, tmp_path)
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert labels == ["twice\n8 of 8", "twice\n3 of 6"]
    assert len(figure.axes[1].patches) == 2


def test_the_report_draws_losses_and_the_densities_of_what_is_prunable():
    layers = report.layers(PARAMS, MASKS)
    figure = plot.report_figure(history(), layers, title="a run")
    stages, densities = figure.axes[:2]
    assert [line.get_label() for line in stages.lines] == ["before", "after"]
    assert list(stages.lines[1].get_xdata()) == [1, 2, 3]
    assert list(stages.lines[1].get_ydata()) == [0.2, 0.2, 0.2]
    assert [bar.get_width() for bar in densities.patches] == [1.0, 0.5]
    labels = [label.get_text() for label in densities.get_yticklabels()]
    assert labels == ["fc1/kernel\n8 of 8", "fc2/kernel\n3 of 6"]


def test_a_comparison_has_a_panel_a_noise_and_a_line_a_method(tmp_path):
    rows = [
        row(method=method, sparsity=sparsity, noise=noise, accuracy=sparsity * 100)
        for noise in ("clean", "gaussian:4,0.5")
        for method in ("magnitude", "swap", "of somebody else")
        for sparsity in (0.9, 0.5)
    ]
    figure = plot.comparison_figure(rows, dense=97.0, title="a comparison")
    assert len(figure.axes) == 2
    for axes in figure.axes:
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks == ["0.5", "0.9"]
        assert len(axes.containers) == 3
        for container in axes.containers:
            assert list(container[0].get_ydata()) == [50.0, 90.0]
    assert (
        "gaussian:4,0.5\nGaussian noise of 4 deviations on 50%"
        in figure.axes[1].get_title()
    )
    assert saved(figure, tmp_path).startswith(b"\x89PNG\r\n\x1a\n")


def test_a_comparison_draws_the_deviation_of_seeds_and_runs_that_failed(tmp_path):
    rows = [row(seed=seed, accuracy=90 + seed) for seed in range(3)]
    rows.append(row(sparsity=0.95, accuracy=math.nan))
    figure = plot.comparison_figure(rows, dense=97.0, title="a comparison")
    (container,) = figure.axes[0].containers
    bars = container.lines[2][0].get_segments()
    assert np.asarray(bars[0])[:, 1] == pytest.approx([90.0, 92.0])
    assert len(saved(figure, tmp_path)) > 1000


# swapjax inspect


@pytest.fixture
def inspect(capsys, monkeypatch):
    """What the command prints about a file, cell by cell."""
    monkeypatch.setattr(console.console, "width", 120)

    def call(path):
        assert main(["inspect", str(path)]) == 0
        text = capsys.readouterr().out
        title = f"{path},{path.stat().st_size:,}bytes"
        assert title in "".join(text.split())
        lines = [line for line in text.splitlines() if "│" in line]
        return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]

    return call


def test_inspect_shows_params_layer_by_layer(inspect, tmp_path):
    checkpoint.save_params(tmp_path / "params.safetensors", PARAMS)
    assert inspect(tmp_path / "params.safetensors") == [
        ["fc1/bias", "2", "2", "1", "50.00%"],
        ["fc1/kernel", "4x2", "8", "8", "100.00%"],
        ["fc2/kernel", "2x3", "6", "3", "50.00%"],
        ["all", "", "16", "12", "75.00%"],
    ]


def test_inspect_shows_packed_masks_with_the_shapes_of_the_params(inspect, tmp_path):
    checkpoint.save_masks(tmp_path / "masks.safetensors", MASKS)
    lines = inspect(tmp_path / "masks.safetensors")
    assert lines[0][:2] == ["fc1/bias", "scalar"]
    assert lines[1:3] == [
        ["fc1/kernel", "4x2", "8", "8", "100.00%"],
        ["fc2/kernel", "2x3", "6", "3", "50.00%"],
    ]


def test_inspect_shows_npz_files_as_they_name_their_arrays(inspect, tmp_path):
    np.savez(tmp_path / "a.npz", **{"fc1.weight": np.eye(3), "steps": np.asarray(7)})
    assert inspect(tmp_path / "a.npz") == [
        ["fc1.weight", "3x3", "9", "3", "33.33%"],
        ["steps", "scalar", "1", "1", "100.00%"],
        ["all", "", "10", "4", "40.00%"],
    ]


def test_inspect_reads_every_dtype_that_can_be_saved(inspect, tmp_path):
    arrays = {name: jnp.eye(2, dtype=name) for name in ("bfloat16", "int8", "bool")}
    checkpoint.save_params(tmp_path / "a.safetensors", arrays)
    lines = inspect(tmp_path / "a.safetensors")
    assert [line[1:] for line in lines[:3]] == [["2x2", "4", "2", "50.00%"]] * 3


def test_inspect_takes_a_file_name_with_brackets(inspect, tmp_path):
    path = tmp_path / "[bold]a[" / "x].safetensors"
    path.parent.mkdir()
    checkpoint.save_params(path, {"w[/red]": jnp.ones(2)})
    assert inspect(path)[0][0] == "w[/red]"


@pytest.mark.parametrize(
    ("name", "content", "saying"),
    [
        ("a.npz", None, "no such file"),
        ("a.safetensors", None, "no such file"),
        ("a.npz", b"", "not a readable .npz file"),
        ("a.npz", b"PK\x03\x04 and no more", "not a readable .npz file"),
        ("a.npz", b"hello", "not a readable .npz file"),
        ("a.safetensors", b"", "not a readable safetensors file"),
        ("a.safetensors", b"hello, this is no header", "not a readable safetensors"),
        ("report.json", b"{}", "not a readable safetensors file"),
    ],
)
def test_inspect_refuses_other_files_in_one_sentence(
    name, content, saying, tmp_path, capsys
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"swapjax: {path}: {saying}")
    assert error.count("\n") == 1
