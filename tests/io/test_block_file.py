"""A state that grows within its file: interruptions, damage, other runs."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from swapjax.io.block_file import BlockFile

ARRAYS = {
    "stack": ((3, 2, 4), np.float32),
    "half": ((5,), jnp.bfloat16),
    "mask": ((2, 3), bool),
}
RUN = {"method": "wanda()"}


def open_file(path, run=RUN):
    return BlockFile(path, ARRAYS, run, "blocks", blocks=3, room=200)


def fill(file, number):
    """Write block 0, 1 or 2, of a slice each, and of the other arrays at last."""
    parts = [("stack", number, np.full((2, 4), number + 1))]
    if number == 2:
        parts += [("half", None, np.arange(5)), ("mask", None, np.eye(2, 3) > 0)]
    file.write(parts, {"block": number})


def test_what_is_written_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "state"
    for number in range(3):
        file = open_file(path)
        assert file.records == tuple({"block": i} for i in range(number))
        fill(file, number)
    file = open_file(path)
    np.testing.assert_array_equal(file.read("stack", 1), np.full((2, 4), 2.0))
    views = file.views()
    assert set(views) == set(ARRAYS)
    views["stack"][0] = -1  # of this process alone
    others = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(others["stack"][:, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(views["half"], np.arange(5, dtype=jnp.bfloat16))
    np.testing.assert_array_equal(others["mask"], np.eye(2, 3) > 0)


@pytest.mark.parametrize("torn", [1, 20, 60])
def test_a_block_that_was_being_written_is_not_done(tmp_path, torn):
    path = tmp_path / "state"
    file = open_file(path)
    fill(file, 0)
    before = path.read_bytes()
    fill(file, 1)
    after = path.read_bytes()
    # All of the array was written, and of the record no more than its beginning.
    cut = after.index(b'{"note": {"block": 1}') - 40 + torn
    path.write_bytes(after[:cut] + before[cut:])
    file = open_file(path)
    assert file.records == ({"block": 0},)
    fill(file, 1)
    assert path.read_bytes() == after


def test_another_run_and_damage_are_refused(tmp_path):
    path = tmp_path / "state"
    file = open_file(path)
    fill(file, 0)
    with pytest.raises(ValueError, match=r"another run \(method was wanda\(\), is"):
        open_file(path, {"method": "magnitude()"})
    good = path.read_bytes()
    place = good.index(np.full((2, 4), 1, np.float32).tobytes())
    path.write_bytes(good[:place] + b"\1" + good[place + 1 :])
    with pytest.raises(ValueError, match="differs from what was written in block 1"):
        open_file(path)
    path.write_bytes(good[:-1])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        open_file(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        open_file(path)
    safetensors.numpy.save_file({"stack": np.ones(3)}, path)
    with pytest.raises(ValueError, match="is not the state of a run of blocks"):
        open_file(path)


def test_records_and_arrays_that_have_no_room_are_refused(tmp_path):
    file = open_file(tmp_path / "state")
    with pytest.raises(ValueError, match="has no room in its file"):
        file.write([], "long" * 60)
    with pytest.raises(ValueError, match=r"stack: got shape \(3,\)"):
        file.write([("stack", 0, np.ones(3))], None)
    with pytest.raises(ValueError, match="which safetensors do not hold"):
        BlockFile(
            tmp_path / "b", {"a": ((1,), object)}, RUN, "blocks", blocks=1, room=9
        )
