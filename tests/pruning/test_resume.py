"""Runs of `prune` that were stopped go on, and only with their own state."""

import jax
import optax
import pytest
from interrupts import stop_at
from prune_runs import prune
from trees import equal

import swapjax
from swapjax import FineTune, GradientNoise
from swapjax.io import checkpoint


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_run_goes_on_bit_by_bit(problem, tmp_path, stream):
    params, (x, y) = problem
    state = tmp_path / "state.safetensors"
    options = {
        "stages": 4,
        "finetune": FineTune(optax.adam(1e-3), steps=3, batch=20),
        "noise": GradientNoise(1.0, 0.3),
    }

    def data():
        if not stream:
            return x, y
        order = range(0, 2000, 20)
        return ((x[i % 200 :][:20], y[i % 200 :][:20]) for i in order)

    whole = prune((params, data()), **options)
    with pytest.raises(KeyboardInterrupt):
        prune((params, data()), checkpoint=state, callback=stop_at(stage=2), **options)
    assert [p.name for p in tmp_path.iterdir()] == [state.name]
    seen = []
    resumed = prune((params, data()), checkpoint=state, callback=seen.append, **options)
    assert [stage.stage for stage in seen] == [3, 4]
    assert [stage.stage for stage in resumed.history] == [1, 2, 3, 4]
    assert equal(resumed.params, whole.params)
    assert equal(resumed.masks, whole.masks)
    # A finished run is read back at once.
    again = prune((params, data()), checkpoint=state, callback=seen.append, **options)
    assert len(seen) == 2
    assert equal(again.params, whole.params)


def test_a_run_without_a_key_resumes(problem, tmp_path):
    params, _ = problem
    options = {"sparsity": 0.8, "method": swapjax.magnitude(), "stages": 3}
    state = tmp_path / "state.safetensors"

    def interrupt(stage):
        if stage.stage == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swapjax.prune(
            None, params, **options, checkpoint=state, callback=stop_at(stage=2)
        )
    resumed = swapjax.prune(None, params, **options, checkpoint=state)
    assert equal(resumed.params, swapjax.prune(None, params, **options).params)
    assert len(resumed.history) == 3


def test_the_state_of_another_run_is_refused(problem, tmp_path):
    state = tmp_path / "state.safetensors"
    prune(problem, checkpoint=state)
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"belongs to another run \(samples was 60"):
        prune(problem, checkpoint=state, samples=50)
    moved = jax.tree.map(lambda p: p + 1e-6, problem[0])
    with pytest.raises(ValueError, match="belongs to another run"):
        prune((moved, problem[1]), checkpoint=state)
    assert state.read_bytes() == before


def test_another_optimizer_or_other_data_are_another_run(problem, tmp_path):
    params, (x, y) = problem
    state = tmp_path / "state.safetensors"
    tune = FineTune(optax.sgd(1e-3), steps=1, batch=20)
    prune(problem, checkpoint=state, finetune=tune)
    other = FineTune(optax.sgd(1e-2), steps=1, batch=20)
    with pytest.raises(ValueError, match=r"another run.*optimizer"):
        prune(problem, checkpoint=state, finetune=other)
    with pytest.raises(ValueError, match=r"another run \(data was"):
        prune((params, (x, y + 1)), checkpoint=state, finetune=tune)


def test_a_checkpoint_in_no_folder_is_refused_at_once(problem, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint: .*nowhere is not a folder"):
        prune(problem, checkpoint=tmp_path / "nowhere" / "state.safetensors")


def test_files_that_are_no_states_are_refused(problem, tmp_path):
    path = tmp_path / "params.safetensors"
    checkpoint.save_params(path, problem[0])
    with pytest.raises(ValueError, match="is not the state of a run of stages"):
        prune(problem, checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        prune(problem, checkpoint=path)


def test_a_state_of_another_version_is_refused(problem, tmp_path):
    """Files of swapjax 0.1 named no format."""
    state = tmp_path / "state.safetensors"
    prune(problem, checkpoint=state)
    arrays, metadata = checkpoint.read(state)
    assert metadata.pop("format") == "3"
    checkpoint.save_params(state, dict(arrays), metadata)
    with pytest.raises(ValueError, match="written by another version of swapjax"):
        prune(problem, checkpoint=state)
