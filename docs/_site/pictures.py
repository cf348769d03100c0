"""Take the pictures of the benchmarks onto the site, without copies."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put NAME/results.png and NAME.png to results/pictures/NAME.png."""
    for path in sorted(RESULTS.rglob("*.png")):
        name = path.stem if path.parent == RESULTS else path.parent.name
        target = f"results/pictures/{name}.png"
        files.append(File.generated(config, target, abs_src_path=str(path)))
    return files
