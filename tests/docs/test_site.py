"""The docs name every public name, method and rule, and their links lead somewhere."""

import importlib.util
import re
import tomllib

import pytest
from pages import DOCS, ROOT

import swapjax
from swapjax.pruning.methods import METHODS
from swapjax.training.rules import RULES

PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def tables():
    """The hook of the site that fills in lists."""
    spec = importlib.util.spec_from_file_location("tables", DOCS / "_site/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(tables):
    pages = (DOCS / "reference").glob("*.md")
    text = "".join(tables.expand(page.read_text()) for page in pages)
    return re.findall(r"^::: swapjax\.(\w+)$", text, re.MULTILINE)


def test_the_reference_has_every_public_name_once(tables):
    names = reference(tables)
    assert len(names) == len(set(names))
    assert set(names) == set(swapjax.__all__) - {"__version__"}


@pytest.mark.parametrize("room", ["backward", "corruptions", "robust", "search"])
def test_the_reference_has_every_name_of_a_room_once(room):
    text = (DOCS / "reference" / f"{room}.md").read_text()
    names = re.findall(rf"^::: swapjax\.{room}\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(getattr(swapjax, room).__all__)


def test_methods_and_rules_have_pages():
    for folder, names in ("methods", METHODS), ("rules", RULES):
        for name in names:
            page = DOCS / folder / f"{name.removesuffix('-released')}.md"
            text = page.read_text()
            assert text.startswith(f"# {page.stem}\n")
            for part in ("$$", "| source |", "| when |", "**Measured**", "API:"):
                assert part in text, f"{page}: {part}"


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem
)
def test_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"https?:", link) or not link.strip("#"):
            continue
        if "pictures/" in target:
            name = target.rpartition("/")[2].removesuffix(".png")
            results = ROOT / "benchmarks" / "results"
            places = results / f"{name}.png", results / name / "results.png"
            assert any(place.exists() for place in places), link
            continue
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w]+", "-", t.lower()).strip("-") for t in titles}
            assert anchor in anchors, link


def test_every_page_is_in_the_navigation(tables):
    text = (ROOT / "mkdocs.yml").read_text() + str(tables.pages())
    for path in PAGES:
        assert path.relative_to(DOCS).as_posix() in text, path


def test_the_version_is_one():
    version = swapjax.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]  # read from the package
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
