"""swapjax search: an architecture before any training."""

import functools

from swapjax.cli import search_report, search_run
from swapjax.cli.console import console, require_writable
from swapjax.cli.output import draw, folder
from swapjax.cli.search_options import Search, check
from swapjax.cli.search_tables import PROXIES
from swapjax.core.text import printable
from swapjax.experiments import report

_STATE = "search.json"
_RESULTS = ("report.json", "search.png")


def search(options: Search) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments, data and tables, and where another run writes to
            the folder; results in it are then as they were.
    """
    check(options)
    require_writable(options.out, "--out")
    tables = search_report.load(options)
    with folder(options.out, (_STATE, *_RESULTS)) as output:
        setup = search_run.set_up(options)
        console.print(_introduction(options, setup), soft_wrap=True)
        rows = search_run.run(options, setup, options.out / _STATE)
        found = search_report.find(setup, rows, tables)
        told = search_report.summary(options, setup.space, rows, found)
        output.replace({_RESULTS[0]: lambda path: report.write_json(path, told)})
        draw(
            functools.partial(search_report.figure, options, setup.space, rows, found),
            options.out / _RESULTS[1],
        )
        (options.out / _STATE).unlink(missing_ok=True)
    search_report.tell(found)
    console.print(
        f"Written to {printable(options.out)}: {', '.join(_RESULTS)}.", soft_wrap=True
    )


def _introduction(options: Search, setup: search_run.Setup) -> str:
    text = f"Searching {options.space}, {setup.space.size:,} architectures, by "
    text += options.proxy
    proxy = PROXIES[options.proxy]
    if proxy.find is not None:
        return f"{text}."
    if proxy.make is None:
        return (
            f"{text}: the best of {min(options.draws, setup.space.size)} random ones."
        )
    return f"{text}, {options.steps} removal{'s' if options.steps > 1 else ''}."
