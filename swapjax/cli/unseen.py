"""What a run of pruning depends on, and what its state cannot tell.

`swapjax.prune` knows a network by its weights alone, and compares no functions: the
program of a user's network may change under the same weights, and batch norm may be
recalibrated or not.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from swapjax.cli.options import Options
from swapjax.core import files
from swapjax.core.text import printable
from swapjax.experiments import models
from swapjax.experiments.models.own import fingerprint
from swapjax.experiments.runner import Setting
from swapjax.io import resume

NAME = ".swapjax-run.json"


def of(options: Options, setting: Setting) -> dict[str, str]:
    """Return what no state tells of a run; nothing where states tell all."""
    found = {}
    if models.is_own(options.model):
        found["network"] = fingerprint(setting.model, setting.data.shape)
    if setting.model.statistics is not None:
        found["recalibrate"] = str(options.recalibrate)
    return found


def keep(folder: Path, found: Mapping[str, str]) -> None:
    """Write it beside the state, unless there is nothing to tell."""
    if found:
        files.write_text(folder / NAME, json.dumps(dict(found)))


def require_same(state: Path, found: Mapping[str, str]) -> None:
    """Raise for the state of a run on another network.

    Args:
        state: that a run would go on from.
        found: from `of`.

    Raises:
        ValueError: naming the state, and what was otherwise.
    """
    told: object = {}
    with suppress(OSError, ValueError):  # a run that was killed may have told nothing
        told = json.loads((state.parent / NAME).read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        return
    differences = "; ".join(
        f"{name} was {printable(value)}, is {found.get(name)}"
        for name, value in told.items()
        if found.get(name) != value
    )
    if differences:
        resume.refuse(state, f"belongs to another run ({differences})")
