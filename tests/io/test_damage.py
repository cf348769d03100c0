"""Damaged files of every kind are refused in a sentence, or read as they were."""

import json
import random

import hypothesis.strategies as st
import pytest
from damage import FaultError, Kind, Outcome, attack, damage_bytes
from damaged_files import kinds
from hypothesis import given, settings
from rebuild import rebuild_json

NAMES = (
    "data", "data, deflated", "data of images", "weights, .npz",
    "weights of PyTorch, .npz", "weights", "weights of others", "weights of PyTorch",
    "masks", "state of stages", "state of epochs", "state of levels", "rows of compare",
)  # fmt: skip
REBUILDS = 1  # a seed that rebuilds a file instead of damaging its bytes


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """By name: a kind of file, where to damage it, and what a sound one holds."""
    folder = tmp_path_factory.mktemp("sound")
    found = {}
    for number, kind in enumerate(kinds(folder)):
        path = folder / f"{number}{kind.suffix}"
        path.write_bytes(kind.content)
        found[kind.name] = kind, path, kind.read(path)
    assert tuple(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_in_a_sentence_or_changes_nothing(sound, name):
    kind, path, values = sound[name]

    # Reading the state of `fit` takes a tenth of a second.
    @settings(max_examples=30 if name == "state of epochs" else 250)
    @given(seed=st.integers(0, 2**64 - 1))
    def check(seed):
        attack(kind, path, values, random.Random(seed))

    check()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_damaged_is_read_as_it_was(sound, name):
    kind, path, values = sound[name]
    read = kind.read
    whole = Kind(name, kind.content, kind.suffix, read, lambda content, _: content)
    assert attack(whole, path, values, random.Random(REBUILDS)) is Outcome.SAME


# The judge itself.


def fake(path, read, **options):
    return Kind("fake", b"[1, 2]", ".json", read, rebuild_json, **options), path


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("a"), "KeyError"),
        (MemoryError(), "MemoryError"),
        (ValueError("no name"), "does not name"),
        (ValueError("{path}: two\nlines"), "is not one printable line"),
        (ValueError("{path}: \x1b[31mred"), "is not one printable line"),
    ],
)
def test_other_ends_than_a_sentence_are_faults(tmp_path, error, message):
    path = tmp_path / "f.json"
    if isinstance(error, ValueError):
        error = ValueError(str(error).format(path=path))

    def read(path):
        raise error

    with pytest.raises(FaultError, match=message):
        attack(*fake(path, read), {}, random.Random(0))


def test_other_values_are_a_fault_where_a_digest_covers_them(tmp_path):
    import numpy as np

    path, values = tmp_path / "f.json", {"a": np.ones(2), "b": np.ones(1)}
    other = {"a": np.zeros(2), "b": np.ones(1)}
    for kept, options, outcome in (
        (other, {"sealed": False}, Outcome.OTHER),
        ({"b": values["b"]}, {"parts": True, "sealed_rebuilt": True}, Outcome.PART),
        (values, {"sealed_rebuilt": True}, Outcome.SAME),
    ):
        kind, _ = fake(path, lambda path, kept=kept: kept, **options)
        assert attack(kind, path, values, random.Random(REBUILDS)) is outcome
    kind, _ = fake(path, lambda path: other, sealed_rebuilt=True)
    for seed in range(4):  # damaged and rebuilt
        with pytest.raises(FaultError, match="in silence"):
            attack(kind, path, values, random.Random(seed))
    kind, _ = fake(path, lambda path: {"a": np.full(2, np.nan)}, sealed=False)
    with pytest.raises(FaultError, match="not finite"):
        attack(kind, path, values, random.Random(REBUILDS))


def test_damage_is_the_same_each_time_and_nearly_always_there():
    content = json.dumps(list(range(300))).encode()
    damaged = [damage_bytes(content, random.Random(seed)) for seed in range(200)]
    assert damaged == [damage_bytes(content, random.Random(s)) for s in range(200)]
    assert sum(data == content for data in damaged) < 20
    assert len(set(damaged)) > 150
