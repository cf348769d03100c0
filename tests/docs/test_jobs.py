"""The ten commonest jobs run, and are no longer than with JaxPruner."""

import re

from pages import DOCS, blocks, lines

import swapjax

PAGE = DOCS / "jobs.md"
SPARSITY = {5: 0.9, 3: 0.9, 4: 0.9, 7: 0.8, 9: 0.9}  # in the optimizer's state
KEPT = {2: 0.1, 6: 0.5, 10: 0.1}  # by masks


def test_ten_jobs_run_in_four_lines_at_most():
    setup, *jobs = blocks(PAGE)
    twins = re.findall(r"```py title.*?\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(jobs) == len(twins) == 10
    names = {}
    exec(setup, names)
    for number, (job, twin) in enumerate(zip(jobs, twins, strict=True), 1):
        assert lines(job) <= min(4, lines(twin)), f"job {number}"
        exec(compile(job, f"job {number}", "exec"), names)
        if number in SPARSITY:
            _, state = names["train"](names["tx"])
            found = swapjax.density(swapjax.masks_of(state))
            assert abs(1 - found - SPARSITY[number]) < 2e-3, f"job {number}"
        elif number in KEPT:
            assert abs(swapjax.density(names["masks"]) - KEPT[number]) < 2e-3
