"""Runs that go on after a block, and what they tell on the way."""

import io

import block_networks as networks
import jax
import numpy as np
import pytest

import swapjax

BLOCKS = ["blocks[0]", "blocks[1]", "blocks[2]", "blocks[3]", "head"]


def prune(path=None, progress=False, **more):
    settings = {"sparsity": 0.5, "method": swapjax.wanda()} | more
    return swapjax.prune(
        networks.loss_fn, networks.make("stacked"), networks.examples(8), samples=4,
        batch=2, key=jax.random.key(0), sequential=True, checkpoint=path,
        progress=progress, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return prune()


def interrupt_after(number):
    def progress(told):
        if told.block == number:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("number", [2, 5])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, whole, number):
    path, seen = tmp_path / "state", []
    with pytest.raises(KeyboardInterrupt):
        prune(path, interrupt_after(number))
    found = prune(path, seen.append)
    for a, b in ((whole.params, found.params), (whole.masks, found.masks)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    for one, other in zip(whole.history, found.history, strict=True):
        one, other = (s.to_dict() | {"seconds": 0} for s in (one, other))
        assert str(one) == str(other)  # NaN is not NaN
    if number == 5:  # all is done
        assert not seen
        return
    assert [told.name for told in seen] == BLOCKS
    assert [told.seconds > 0 for told in seen] == [i >= number for i in range(5)]
    assert [np.isnan(told.left) for told in seen] == [i < number for i in range(5)]
    assert seen[-1].left == 0


def test_the_network_of_a_run_that_ended_lies_in_its_file(tmp_path, whole):
    found = prune(tmp_path / "state")
    kernel = found.params["blocks"]["up"]
    assert isinstance(kernel, np.memmap)
    kernel[:] = 0  # not in the file
    again = prune(tmp_path / "state")
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)


def test_the_state_of_another_run_is_refused(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        prune(path, interrupt_after(1))
    for name, more in (
        ("sparsity", {"sparsity": 0.25}),
        ("blocks", {"blocks": "layers"}),
    ):
        with pytest.raises(ValueError, match=f"another run .*{name} "):
            prune(path, **more)
    swapjax.prune(
        None, networks.make(), sparsity=0.5, method=swapjax.magnitude(),
        checkpoint=tmp_path / "stages",
    )  # fmt: skip
    with pytest.raises(ValueError, match="is not the state of a run of blocks"):
        prune(tmp_path / "stages")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere():
    show = swapjax.pruning.sequential.progress.show
    told = swapjax.Progress(2, 4, "layers/1", 3.0, 75.0, 3675.0)
    line = "block 2 of 4 (layers/1), 1:15 gone, 1:01:15 left"
    stream = io.StringIO()
    show(stream)(told)
    assert stream.getvalue() == f"{line}\n"
    stream = io.StringIO()
    stream.isatty = lambda: True
    show(stream)(told)
    assert stream.getvalue() == f"\r\x1b[K[{'#' * 12}{'-' * 12}] {line}"
