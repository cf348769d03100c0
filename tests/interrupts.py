"""Runs that are stopped on their way."""

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


def stop_while_writing(patch, number):
    """Press Ctrl-C while the safetensors file of some number is half written."""
    write, calls = files.write_atomically, []

    def half(path, save):
        def cut(temporary):
            save(temporary)
            calls.append(path)
            if len(calls) == number:
                temporary.write_bytes(temporary.read_bytes()[:100])
                raise KeyboardInterrupt

        is_state = str(path).endswith(".safetensors")
        write(path, cut if is_state else save)

    patch.setattr(files, "write_atomically", half)
