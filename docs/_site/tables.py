"""Fill in what follows from the tables of methods and rules: no list is kept twice.

The navigation gets every page of ``docs/methods`` and ``docs/rules``, the reference
every factory, in the order of `METHODS` and `RULES`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapjax.pruning.methods import METHODS
from swapjax.training.rules import RULES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

DOCS = Path(__file__).parents[1]
FACTORIES = {
    "methods": [row.factory.__name__ for row in METHODS.values()],
    "rules": [row.factory.__name__ for row in RULES.values()],
}


def titled(folder: str, names: list[str]) -> list[dict[str, str]]:
    """List the pages of these names as the navigation does."""
    return [{name: f"{folder}/{name}.md"} for name in names]


def pages() -> dict[str, list[Any]]:
    """List what stands below Methods and Rules: pages, and a group of more pages."""
    kinds = {
        kind: [name for name, row in METHODS.items() if row.kind == kind]
        for kind in ("trained", "untrained")
    }
    around = {path.stem for path in (DOCS / "rules").glob("*.md")} - {"index", *RULES}
    return {
        "Methods": [
            *titled("methods", kinds["trained"]),
            {"Before training": titled("methods", kinds["untrained"])},
        ],
        "Rules": [
            *titled("rules", list(RULES)),
            {"Around training": titled("rules", sorted(around))},
        ],
    }


def expand(markdown: str) -> str:
    """Put the reference of all methods for ``{{ methods }}``, of all rules likewise."""

    def one(match: re.Match) -> str:
        return "\n\n".join(f"::: swapjax.{name}" for name in FACTORIES[match[1]])

    return re.sub(r"^\{\{ (methods|rules) \}\}$", one, markdown, flags=re.MULTILINE)


def on_config(config: "MkDocsConfig") -> None:
    """Add the pages to the navigation."""
    found = pages()
    for section in config.nav or []:
        for title, entries in section.items():
            if title in found:
                entries.extend(found[title])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Expand the pages of the reference."""
    return expand(markdown)
