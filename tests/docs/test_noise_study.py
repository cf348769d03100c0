"""What the study of noise makes of its runs."""

import statistics

import noise
import noise_pictures
import noise_report
import numpy as np
import pytest
from noise_kinds import KINDS
from noise_methods import METHODS as STUDIED
from noise_report import Run

CELLS = [("clean", 0.9), ("gaussian:4,0.5", 0.9), ("labels:0.4", 0.98)]
METHODS = ("linear-regression", "swap", "magnitude", "swap, first order")


def made(seeds=range(4)):
    rng = np.random.default_rng(0)
    return [
        Run("digits", "stages", kind, method, sparsity, seed, rng.uniform(70, 90))
        for kind, sparsity in CELLS
        for method in METHODS
        for seed in seeds
    ]


def find(runs, kind, method, seed):
    (run,) = (r for r in runs if (r.kind, r.method, r.seed) == (kind, method, seed))
    return run.accuracy


def test_gains_are_paired_by_seed():
    runs = made()
    runs.remove(next(r for r in runs if r.method == "swap" and r.seed == 2))
    cell = runs[0].cell
    gain = noise_report.gain(runs, cell, "swap")
    apart = [
        find(runs, "clean", "swap", s) - find(runs, "clean", "linear-regression", s)
        for s in (0, 1, 3)
    ]
    assert gain.seeds == 3
    assert gain.value == pytest.approx(statistics.mean(apart))
    assert gain.error == pytest.approx(statistics.stdev(apart) / 3**0.5)
    # There is no linear regression that trains to compare with.
    assert noise_report.gain(runs, cell, "swap, first order").seeds == 0


def test_what_is_clear():
    assert noise_report.mean([2.0, 2.1, 2.2]).is_clear
    assert not noise_report.mean([-2.0, 2.1, 2.2]).is_clear
    assert not noise_report.mean([5.0]).is_clear


def test_ranks_equal_a_count_by_hand():
    # Methods that train are ranked by themselves, and one alone has no rank.
    runs = [r for r in made() if r.method in METHODS[:3]]
    found = noise_report.halves(runs)
    assert set(found) == {"choosing", "confirming", "all"}
    # Kinds and seeds take turns: clean and labels on 0, 2; Gaussian on 1, 3.
    chosen = [c for c in CELLS if c[0] != "gaussian:4,0.5"]
    for method in METHODS[:3]:
        ranks, tied, behind = [], 0, []
        for kind, _ in chosen:
            means = {
                m: statistics.mean(find(runs, kind, m, s) for s in (0, 2))
                for m in METHODS[:3]
            }
            best = max(means.values())
            ranks.append(sorted(means.values(), reverse=True).index(means[method]) + 1)
            behind.append(best - means[method])
            tied += behind[-1] <= (0.5 if best < 80 else 0.3)
        row = found["choosing"][method]
        assert row == pytest.approx((2, statistics.mean(ranks), tied, max(behind)))
    assert found["confirming"]["swap"].cells == 1


def test_those_that_tell_most_come_first():
    options = noise.Options(seeds=(0, 1))
    runs = noise.plan_runs(options)
    assert len({run.key for run in runs}) == len(runs)
    first = runs[: runs.index(next(r for r in runs if r.seed == 1))]
    for axis, core in noise.CORE.items():
        assert {getattr(run, axis) for run in first} == set(core)
    assert {run.kind for run in runs} == set(noise.MAIN_KINDS) <= set(KINDS)
    assert {run.method for run in runs} == set(noise.MAIN_METHODS)
    named = {noise_report.bare(run.method) for run in runs}
    assert named <= set(STUDIED)


def test_pictures_of_few_runs_and_of_none():
    for runs in (made(), made(seeds=[0]), []):
        noise_pictures.heat_map(runs).draw_without_rendering()
        noise_pictures.curves(runs).draw_without_rendering()


def test_runs_on_digits_and_goes_on(tmp_path, capsys):
    options = noise.Options(
        networks=("digits",),
        recipes=("stages",),
        kinds=("gaussian:4,0.5",),
        methods=("magnitude", "linear-regression"),
        sparsities=(0.9,),
        seeds=(0, 1),
        out=tmp_path / "noise",
    )
    noise.main(options)
    target = tmp_path / "noise" / "results.csv"
    before = target.read_text()
    noise.main(options)
    assert target.read_text() == before
    assert "4 of 4 runs are done already" in capsys.readouterr().out
    assert (target.parent / "results.png").exists()
