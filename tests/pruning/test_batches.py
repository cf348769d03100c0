"""Stages and fine-tuning from batches that begin anew."""

import jax
import numpy as np
import optax
import pytest
from interrupts import stop_at
from prune_runs import KEY, LR, prune
from trees import equal

from swapjax import FineTune


class Loader:
    """Batches of 25 examples, and no length."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        for i in range(0, 200, 25):
            yield tuple(x[i : i + 25] for x in self.data)


def test_a_loader_serves_stages_fine_tuning_and_resuming(problem, tmp_path):
    params, data = problem
    tune = FineTune(optax.sgd(1e-2), steps=12)
    options = {"stages": 3, "finetune": tune, "samples": 60}
    whole = prune((params, Loader(data)), **options)
    # The same, of an iterator that goes on where the loader begins anew.
    again = (batch for _ in range(9) for batch in Loader(data))
    assert equal(prune((params, again), **options).params, whole.params)

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        prune((params, Loader(data)), checkpoint=path, callback=stop_at(stage=2),
              **options)  # fmt: skip
    resumed = prune((params, Loader(data)), checkpoint=path, **options)
    assert equal(resumed[:2], whole[:2])


def test_a_list_of_batches_is_told_from_a_pytree(problem):
    params, (x, y) = problem
    options = {"samples": 200, "key": KEY}
    listed = prune((params, list(Loader((x, y)))), **options)
    piece = prune((params, lambda: iter([(x, y)])), **options)
    assert equal(listed.params, piece.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, listed.masks, piece.masks))


def test_too_few_batches_say_how_many_came(problem):
    params, data = problem
    saying = r"the iterable ended after 8 batches of 200 examples, fewer than the 300 "
    with pytest.raises(ValueError, match=saying):
        prune((params, Loader(data)), samples=300, method=LR)
