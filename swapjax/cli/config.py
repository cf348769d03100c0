"""Options out of the report of an earlier run, as words of the command line."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from swapjax.core.text import printable, reason

_NAME = "--config"
# What is said, and where, is no part of a run.
_OWN = ("config", "json", "quiet")


def expanded(command: str, kind: type, words: Sequence[str]) -> list[str]:
    """Put the options that a report records in front of those on the command line.

    Of an option that comes twice the last one counts.

    Args:
        command: its name.
        kind: its options.
        words: as they were typed.

    Raises:
        ValueError: for a file that is no report of this command.
    """
    path = _path(words) if "config" in get_type_hints(kind) else None
    if path is None:
        return list(words)
    return [*_words(f"{_NAME} {printable(path)}", command, kind, path), *words]


def recorded(options: Any) -> dict[str, Any]:
    """Return options as a report records them."""
    found = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    return {name: value for name, value in found.items() if name not in _OWN}


def _path(words: Sequence[str]) -> Path | None:
    """Find the file that is named, the last one if there are several."""
    found = None
    for word, after in itertools.pairwise([*words, ""]):
        if word == _NAME:
            found = after
        elif word.startswith(f"{_NAME}="):
            found = word.removeprefix(f"{_NAME}=")
    return Path(found) if found else None


def _words(what: str, command: str, kind: type, path: Path) -> list[str]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"{what}: {e.strerror or reason(e)}") from None
    except ValueError as e:
        raise ValueError(
            f"{what}: is not JSON ({reason(e)}); a report.json wanted"
        ) from None
    wanted = f"report.json of swapjax {command} wanted"
    if not isinstance(report, dict) or not isinstance(report.get("options"), dict):
        raise ValueError(f"{what}: holds no options; a {wanted}")
    other = report.get("command", command)
    if other != command:
        raise ValueError(f"{what}: is of swapjax {printable(other)}; a {wanted}")
    try:
        return list(_of(kind, report["options"]))
    except ValueError as e:
        raise ValueError(f"{what}: {e}; a {wanted}") from None


def _of(kind: type, values: Mapping[str, Any]) -> Iterator[str]:
    """Write recorded options as words.

    Raises:
        ValueError: for what is no option, or no value of any.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{printable(name)} is no option")
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, dict) and dataclasses.is_dataclass(hints[name]):
            yield from _of(hints[name], value)
        elif isinstance(value, bool):
            yield option if value else f"--no-{name.replace('_', '-')}"
        elif isinstance(value, str | int | float):
            yield f"{option}={value}"
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):
            yield from (option, *value) if value else ()
        elif value is not None:
            raise ValueError(f"{printable(name)} is {printable(value)[:60]}")
