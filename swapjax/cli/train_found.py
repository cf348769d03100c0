"""What parts of swapjax train found of a network, beside accuracy and layers."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from rich.table import Table

from swapjax.cli.console import console


class Found(NamedTuple):
    """What a part found, for the report, the picture and the screen.

    Attributes:
        result: by name, as JSON takes it.
        panels: what draws panels of the picture.
        shown: tables and sentences, in order.
    """

    result: dict[str, Any]
    panels: tuple[Callable[[Axes], None], ...] = ()
    shown: tuple[Table | str, ...] = ()


NOTHING = Found({})


def joined(parts: Iterable[Found]) -> Found:
    """Put what several parts found together."""
    whole = NOTHING
    for part in parts:
        whole = Found(
            whole.result | part.result,
            (*whole.panels, *part.panels),
            (*whole.shown, *part.shown),
        )
    return whole


def show(found: Found) -> None:
    """Show tables and sentences."""
    for part in found.shown:
        console.print(part, soft_wrap=isinstance(part, str))
