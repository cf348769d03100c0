"""Which examples and keys each step of a training run takes."""

import collections
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import identity
from swapjax.core.checks import require_count
from swapjax.core.objective import Objective, as_objective, takes_keys
from swapjax.core.types import LossFn, Params
from swapjax.loops import feed, steps, streams
from swapjax.loops.streams import Stream


class Pace:
    """Which examples and keys each step of a run takes.

    Args:
        loss: plain, or an objective.
        params: arrays.
        data: a pytree of arrays, or batches; see `streams.take_data`.
        batch: examples a step; None where data are batches.
        batches: of an epoch, where data are batches; None for one pass over them.
        key: of the run.
        on_host: whether arrays stay there; None by their size.

    Attributes:
        objective: the loss.
        each: the steps of an epoch.

    Raises:
        ValueError: as `fit` does for data, batch, batches and on_host.
    """

    def __init__(
        self,
        loss: LossFn | Objective,
        params: Params,
        data: Any,
        *,
        batch: int | None,
        batches: int | None,
        key: jax.Array,
        on_host: bool | None,
    ) -> None:
        self.objective = as_objective(loss)
        self._draws, self._key = takes_keys(loss), key
        replays = self.objective.replays
        require_count("replays of the objective", replays)
        fits = streams.taken_by(loss, params)
        data = streams.take_data(data, fits, batch or 1)
        self._goes_on, self._gone = batches is not None, 0
        if isinstance(data, Stream):
            if batch is not None:
                raise ValueError(
                    f"batch: data are batches, which say how large they are; got "
                    f"{batch}, leave it out"
                )
            if on_host is not None:
                raise ValueError("on_host: is for arrays, and data are batches")
            self._batches = _count_batches(data, batches)
        else:
            if batches is not None:
                raise ValueError(
                    "steps_per_epoch: is for data in batches; an epoch of arrays takes "
                    "each example once"
                )
            if batch is None:
                raise ValueError(
                    "batch: data are arrays; say how many examples a step takes"
                )
            require_count("batch", batch)
            self._on_host = feed.stays_on_host(data, on_host)
            data = data if self._on_host else jax.tree.map(jnp.asarray, data)
            self._batches = steps.per_epoch(data, batch, "batch")
        self._data, self._batch = data, batch
        self.each = self._batches * replays

    def describe(self) -> str:
        """Fingerprint the data; batches have none but how many there are of them."""
        if isinstance(self._data, Stream):
            return f"{self._batches} batches"
        return identity.digest(self._data)

    def begin(self, params: Params) -> Any:
        """Look at data, all of arrays, and return the first state of the objective."""
        first = self._data
        if isinstance(first, Stream):
            first = first.peek()
            if first is None:
                raise ValueError("data: there are no batches in it")
        self.objective.check(params, first)
        first = jax.tree.map(lambda x: x[: self._batch], first)
        return jax.tree.map(jnp.asarray, self.objective.init(params, first))

    def steps(self, params: Params, epoch: int) -> Iterator[tuple[Any, Any, Any]]:
        """Yield data, an index into them and keys, of some steps of an epoch at a time.

        The batches of epochs that an interrupted run has done are gone through first.

        Args:
            params: that the objective checks batches with.
            epoch: its number, from 1; higher than in the call before.

        Raises:
            ValueError: for batches that end early.
        """
        done = (epoch - 1) * self.each
        if isinstance(self._data, Stream):
            for _ in range(self._gone + 1, epoch):
                collections.deque(self._take(self._data), maxlen=0)
            self._gone = epoch
        for data, index in self._feed(params, epoch):
            count = len(index)
            keys = steps.step_keys(self._key, done, count) if self._draws else None
            yield data, index, keys
            done += count

    def _feed(self, params: Params, epoch: int) -> Iterator[feed.Fed]:
        data, replays = self._data, self.objective.replays
        if isinstance(data, Stream):
            return feed.from_batches(self._checked(data, params, epoch), replays)
        take = feed.from_host if self._on_host else feed.from_device
        assert self._batch is not None
        first = (epoch - 1) * self._batches
        last = first + self._batches
        return take(data, self._key, self._batch, first, last, replays)

    def _checked(self, stream: Stream, params: Params, epoch: int) -> Iterator:
        """Yield the batches of an epoch; the objective looks at those of the first."""
        for number, batch in enumerate(self._take(stream)):
            if epoch == 1 and number:
                self.objective.check(params, batch)
            yield batch

    def _take(self, stream: Stream) -> Iterator:
        if self._goes_on:
            yield from stream.take(self._batches)
            return
        stream.restart()
        yield from stream.take(self._batches, again=False)
        if stream.peek() is not None:
            raise ValueError(
                f"data: the iterable goes on after {self._batches} batches, as many as "
                "a pass was told to have; steps_per_epoch= takes so many each epoch"
            )


def _count_batches(stream: Stream, wanted: int | None) -> int:
    """Count the batches of an epoch.

    Raises:
        ValueError: for an iterator, which cannot tell, and for none.
    """
    if wanted is not None:
        require_count("steps_per_epoch", wanted)
        return wanted
    if not stream.repeats:
        raise ValueError(
            "data: an iterator of batches can be seen once only; say how many an epoch "
            "takes of it with steps_per_epoch=, or give what begins anew, such as a "
            "function that makes the iterator"
        )
    found = stream.count()
    if not found:
        raise ValueError("data: there are no batches in it")
    return found
