"""The page about search spaces runs, and what it says of them is so."""

import search_to_sparse
from pages import DOCS, ROOT, run
from shared import read_runs

from swapjax import search

PAGE = DOCS / "search" / "spaces.md"


def test_the_examples_run(capsys):
    names = run(PAGE, {})
    weights, macs, size = capsys.readouterr().out.split()[:3]
    assert int(weights) == names["network"].weights
    assert int(macs) == names["network"].macs
    assert int(size) == 27
    assert names["mine"].check(names["best"]) == names["best"]
    assert names["shape"] == (5, 3)
    assert all("kernel" in path for path in names["plan"].layout.paths)


def test_the_table_counts_architectures():
    text = PAGE.read_text()
    assert f"| `nb201()` | {search.nb201().size:,} |" in text
    assert f"| `mobilenet()` | {search.mobilenet().size:,} |" in text
    assert round(search.darts().size / 1e18, 1) == 1.1


def test_from_a_space_to_sparse_networks():
    path = ROOT / "benchmarks/results/search_to_sparse/results.csv"
    lines = read_runs(path, search_to_sparse.Line)
    page = (DOCS / "results/search-to-sparse.md").read_text()
    assert search_to_sparse.report(lines) in page
    for line in lines:
        assert f"`{line.genotype}`" in page
