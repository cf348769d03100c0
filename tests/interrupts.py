"""Runs that are stopped on their way."""

import importlib

from swapjax.core import files


def stop_at(**where):
    """Make a callback that stops a run at a record of its history.

    `stop_at(stage=2)` raises KeyboardInterrupt when it is told of the second stage.
    """
    ((field, number),) = where.items()

    def callback(record):
        if getattr(record, field) == number:
            raise KeyboardInterrupt

    return callback


def half_written(patch, number):
    """Press Ctrl-C while a file is half written, the one of this number."""
    write_atomically, calls = files.write_atomically, []

    def write_half(path, write):
        def cut(temporary):
            write(temporary)
            temporary.write_bytes(temporary.read_bytes()[:100])
            raise KeyboardInterrupt

        calls.append(path)
        write_atomically(path, cut if len(calls) == number else write)

    patch.setattr(files, "write_atomically", write_half)


def interrupt_stage(monkeypatch, number, error=KeyboardInterrupt):
    """Press Ctrl-C while a stage is at work, or let it fail."""
    driver = importlib.import_module("swapjax.pruning.stage")
    solve, calls = driver.solve, []

    def interrupted(*arguments, **options):
        calls.append(number)
        if len(calls) == number:
            raise error
        return solve(*arguments, **options)

    monkeypatch.setattr(driver, "solve", interrupted)
