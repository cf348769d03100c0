"""The glossary has every field of history, every detail of a method, every status."""

import re

import jax
from pages import DOCS
from problems import setting

import swapjax

TEXT = (DOCS / "glossary.md").read_text()
NAMED = set(re.findall(r"`(\w+)`", TEXT))


def test_it_has_fields_and_statuses():
    assert set(swapjax.Stage.__dataclass_fields__) <= NAMED
    for status in swapjax.Status:
        assert f"| `{status.name}` | {status.sentence} |" in TEXT


def test_it_has_the_details_of_every_method():
    problem, target = setting()
    for method in (
        swapjax.woodfisher(), swapjax.cbs(), swapjax.chita(),
        swapjax.linear_regression(), swapjax.swap(), swapjax.swap(target="smoothed"),
        swapjax.swap_released(), swapjax.linear_regression_released(),
    ):  # fmt: skip
        details = jax.eval_shape(method, problem, target.budget).details
        assert set(details) <= NAMED, method.name
