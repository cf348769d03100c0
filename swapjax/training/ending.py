"""What is said after an epoch, and whether training ends with it."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

from swapjax.training.epoch import Epoch
from swapjax.training.settle import tell, tell_unsettled

_ENDED = "a callback ended training"  # with its reason, of the last epoch's status


def warn(state: Any, history: tuple[Epoch, ...], last: bool, level: int = 3) -> str:
    """Say what is wrong with masks after an epoch, and warn of it if that is new.

    Args:
        state: of the optimizer.
        history: the epochs before.
        last: whether no epoch follows.
        level: of the stack that warnings are put down to.
    """
    said = tell(state)
    missing = tell_unsettled(state) if last else ""
    before = {epoch.status for epoch in history}
    for text in (said if said not in before else "", missing):
        if text:
            warnings.warn(f"fit: {text}", stacklevel=level)
    return "; ".join(filter(None, (said, missing)))


def said_by(callback: Callable[[Epoch], None] | None, epoch: Epoch) -> str:
    """Tell of an epoch; return that training is to end with it, and why, or nothing.

    Args:
        callback: of `swapjax.training.fit`.
        epoch: the last one.
    """
    try:
        if callback is not None:
            callback(epoch)
    except StopIteration as e:
        return f"{_ENDED}: {e}" if str(e) else _ENDED
    return ""


def ended(
    history: tuple[Epoch, ...], said: str, state: Any, last: bool
) -> tuple[Epoch, ...]:
    """Keep in the last epoch why training ended with it, and warn of it.

    Args:
        history: the epochs, the last one included.
        said: as `said_by` returns it.
        state: of the optimizer.
        last: whether no epoch was to follow.
    """
    status = history[-1].status
    if not last:
        status = warn(state, history, last=True, level=4)
    if said != _ENDED:
        warnings.warn(f"fit: {said}", stacklevel=3)
    status = "; ".join(filter(None, (said, status)))
    return *history[:-1], dataclasses.replace(history[-1], status=status)


def left(history: tuple[Epoch, ...], epochs: int) -> range:
    """Return the numbers of the epochs to come: none where a callback ended training.

    Args:
        history: the epochs so far.
        epochs: how many there are to be.
    """
    status = history[-1].status if history else ""
    if not status.startswith(_ENDED):
        return range(len(history) + 1, epochs + 1)
    if status.startswith(f"{_ENDED}:"):
        warnings.warn(f"fit: {status}", stacklevel=3)
    return range(0)
