"""The page of back-propagation says what was measured, and what follows from P."""

import backward_overhead
import pytest
from pages import DOCS, ROOT
from shared import read_runs

from swapjax import backward

PAGE = (DOCS / "backward" / "index.md").read_text()


def rows(start):
    """The cells of a table that begins so, without its head."""
    lines = PAGE[PAGE.index(start) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_what_a_rate_buys():
    for rate, *told in rows("| $P$ | zeros"):
        zeros = backward.expected_zeros(float(rate))
        wanted = zeros, (1 + zeros) / 2, backward.added_variance(float(rate))
        assert [float(x) for x in told] == pytest.approx(wanted, abs=5.1e-4)


def test_what_the_operator_costs():
    path = ROOT / "benchmarks" / "results" / "backward_overhead" / "results.csv"
    lines = {(x.part, x.way): x for x in read_runs(path, backward_overhead.Line)}
    for row, part in zip(rows("| step of"), ("lenet5", "resnet20"), strict=True):
        plain, *others = (lines[part, arm] for arm in backward_overhead.ARMS)
        assert float(row[1]) == pytest.approx(plain.milliseconds, abs=0.051)
        ratios = [x.ratio for x in others]
        assert [float(x) for x in row[2:]] == pytest.approx(ratios, abs=5.1e-4)
        assert others[0].ratio <= 1.03
    for kind, *told in rows("| key |"):
        found = (lines["bits", f"{kind}, {w}"] for w in ("jax.random.bits", "operator"))
        wanted = [x.milliseconds for x in found]
        assert [float(x) for x in told] == pytest.approx(wanted, abs=0.051)
    compiled = lines["resnet20", "P = 0.9, FIFO"].compiled
    plain = lines["resnet20", "plain"].compiled
    assert f"takes {plain:.1f} s plain, and {compiled:.1f} s" in PAGE
