"""Print the lower bounds of pyproject.toml as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print one line a package, ``name==bound``."""
    path = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found = {line.replace(">=", "==") for group in groups for line in group}
    for line in sorted(found):
        if re.fullmatch(r"[\w-]+==[\d.]+", line):  # not an extra of ours
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
