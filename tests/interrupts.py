"""Runs that are stopped on their way."""


def stop_at(**where):
    """Make a callback that stops a run at a record of its history.

    `stop_at(stage=2)` raises KeyboardInterrupt when it is told of the second stage.
    """
    ((field, number),) = where.items()

    def callback(record):
        if getattr(record, field) == number:
            raise KeyboardInterrupt

    return callback
