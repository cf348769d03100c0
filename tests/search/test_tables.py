"""Tables of architectures: what is looked up, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from nas_tables import CELL, DARTS, OPS, arrays

from swapjax.search import table_files
from swapjax.search.genotype import parse
from swapjax.search.table_files import load_tables

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "nas_tables.npz"


@pytest.fixture
def write(tmp_path):
    """Write the arrays with some of them changed; one that is None is left out."""

    def call(**changes):
        path = tmp_path / "tables.npz"
        kept = {k: v for k, v in (arrays() | changes).items() if v is not None}
        np.savez(path, **kept)
        return path

    return call


def test_architectures_are_looked_up_by_genotype(write):
    tables = load_tables(write())
    assert len(tables.of("nb201")) == 6
    table = tables.table("nb201", "cifar100")
    assert (len(table), table.epochs, table.measured) == (2, 12, "test")
    assert table.accuracy_of(parse(CELL)) == 50
    assert table.validation[table.row(parse(CELL))] == 51
    assert str(table.genotypes[1]) == CELL
    assert str(table) == "cifar100, test, after 12 epochs"
    later = tables.table("nb201", "ImageNet16-120", 200)
    assert (later.accuracy_of(parse(CELL)), later.validation) == (40, None)
    assert {name: list(column) for name, column in later.columns.items()} == {
        "flops": [15, 7], "params": [1, 2],
    }  # fmt: skip


def test_cells_of_darts_are_found_whatever_the_order_of_their_inputs(write):
    table = load_tables(write()).table("darts", "cifar10")
    pairs = (
        "[('max_pool_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), "
        "('sep_conv_3x3', 2), ('avg_pool_3x3', 1), ('dil_conv_5x5', 3), "
        "('max_pool_3x3', 0), ('dil_conv_3x3', 4)]"
    )
    text = f"Genotype(normal={pairs}, normal_concat=range(2, 6), reduce={pairs}, "
    text += "reduce_concat=range(2, 6))"
    assert str(table.genotypes[0]) == text
    assert table.accuracy_of(parse(text)) == 94.5
    assert str(table) == "cifar10, validation, a surrogate's"


def test_what_is_not_there_is_told(write):
    tables = load_tables(write())
    with pytest.raises(ValueError, match="no table of macro, any data, any epochs"):
        tables.of("macro")
    with pytest.raises(ValueError, match="no table of nb201, mnist, 12 epochs; there"):
        tables.table("nb201", "mnist", 12)
    other = parse(CELL.replace("skip_connect", "none"))
    with pytest.raises(ValueError, match=r"is none of the 2 in the table of nb201"):
        tables.table("nb201", "cifar10").accuracy_of(other)


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"nb201_all_ops": None}, "nb201_all_ops is missing"),
        ({"ops": np.array(OPS[:4])}, r"ops is <U12\[4\], not str\[5\]"),
        ({"ops": np.array([*OPS[:4], "conv"])}, "ops is not none, skip_connect, nor"),
        ({"darts_ops": np.array([*DARTS[:6], "none"])}, "darts_ops is not max_pool"),
        ({"edges": arrays()["edges"][::-1]}, r"edges is not \(0, 1\), \(0, 2\)"),
        ({"nb201_all_ops": np.zeros((2, 6))}, r"is float64\[2, 6\], not int\[2, 6\]"),
        ({"nb201_all_ops": np.zeros((3, 6), int)}, r"is float32\[2, 6\], not float\[3"),
        ({"nb201_all_ops": np.zeros((2, 6), int)}, "holds an architecture twice"),
        ({"nb201_ops": np.full((2, 6), 5)}, "nb201_ops holds operations outside 0"),
        ({"nb201_ops": np.full((2, 6), -1)}, "nb201_ops holds operations outside"),
        ({"darts_cells": np.full((1, 2, 8, 2), 2)}, "an input that is not before"),
        ({"darts_cells": np.zeros((1, 2, 8, 2), int)}, "a node with one input twice"),
        ({"darts_cells": np.full((1, 2, 8, 2), 7)}, "holds operations outside 0 to 6"),
        ({"columns": np.array(["flops", "size", "val_accuracy"])}, "lacks params"),
        ({"columns": np.array(["flops", "flops", "val_accuracy"])}, "lacks params"),
        ({"nb201_datasets": np.array(["a", "b", "c"])}, "is not cifar10, cifar100"),
        ({"nb201_all_columns": np.array(["a"] * 6)}, "lacks cifar10-test, cifar10-val"),
        ({"darts_values": np.array([[1, 1, np.nan]], "f4")}, "accuracies outside 0"),
        ({"darts_values": np.array([[1, 1, 101]], "f4")}, "accuracies outside 0"),
        ({"darts_values": np.array([[np.inf, 1, 9]], "f4")}, "a flops that is not fin"),
        ({"darts_values": np.zeros((1, 2), "f4")}, r"is float32\[1, 2\], not float\[1"),
    ],
)  # fmt: skip
def test_tables_that_do_not_match_are_refused(changes, saying, write):
    path = write(**changes)
    with pytest.raises(ValueError, match=saying) as raised:
        load_tables(path)
    assert str(raised.value).startswith(f"{path}: not a table of architectures: ")


def test_empty_tables_pickles_and_other_files_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="darts_cells is empty"):
        load_tables(write(darts_cells=np.zeros((0, 2, 8, 2), int)))
    with pytest.raises(ValueError, match="holds pickled objects"):
        load_tables(write(ops=np.array(OPS, object)))
    with pytest.raises(ValueError, match="no such file"):
        load_tables(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        load_tables(tmp_path / "text.npz")


def test_published_tables_are_whole():
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED.name} is not in {PUBLISHED.parent}")
    tables = load_tables(PUBLISHED)
    for dataset, best in zip(table_files.DATASETS, (89.16, 61.18, 38.27), strict=True):
        table = tables.table("nb201", dataset)
        assert len(table) == 5**6
        assert table.accuracy.max() == pytest.approx(best, abs=0.005)
        assert len(tables.table("nb201", dataset, 200)) == 245
    cell = parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|"
                 "nor_conv_3x3~1|nor_conv_3x3~2|")  # fmt: skip
    assert tables.table("nb201", "cifar10").accuracy_of(cell) == pytest.approx(82.2)
    assert len(tables.table("darts", "cifar10")) == 250
