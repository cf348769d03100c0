"""Damage to files: what may happen to them, and what reading them must come to.

A file is damaged as disks and transfers do it (bits, chunks, ends), or rebuilt with
other content and valid checksums, as a program with a fault or someone with a purpose
would. A reader may refuse it in one line that names the file, or accept it. Accepted
damage must leave what is read as it was, bit for bit, if checksums or a digest cover
the file; otherwise another value is as good as the first, but whole: finite, and of the
right shape and dtype. Everything else is a fault.
"""

import dataclasses
import enum
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Outcome(enum.StrEnum):
    """What reading a damaged file came to."""

    REFUSED = "refused"
    SAME = "same"
    PART = "part"
    OTHER = "other values"


class FaultError(AssertionError):
    """What should never happen to a reader of damaged files."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file, and how it is read.

    Attributes:
        name: of the kind.
        content: of a sound file.
        suffix: of its name.
        read: what is in a file, by name; raises ValueError for a damaged one.
        rebuild: gives the bytes of a file with other content and valid checksums.
        sealed: whether checksums or a digest cover every value.
        sealed_rebuilt: whether a digest covers them that rebuilding does not renew.
        parts: whether what is missing is made anew, so that a part may be read.
    """

    name: str
    content: bytes
    suffix: str
    read: Callable[[Path], Arrays]
    rebuild: Callable[[bytes, random.Random], bytes]
    sealed: bool = True
    sealed_rebuilt: bool = False
    parts: bool = False


def attack(kind: Kind, path: Path, sound: Arrays, chance: random.Random) -> Outcome:
    """Damage a file, read it, and judge.

    Args:
        kind: of file.
        path: to write the damaged file to.
        sound: what is read of the sound one.
        chance: draws the damage.

    Raises:
        FaultError: for any other end than a sentence or a whole result.
    """
    rebuilt = chance.random() < 0.5
    damage = kind.rebuild if rebuilt else damage_bytes
    content = damage(kind.content, chance)
    path.write_bytes(content)
    try:
        found = kind.read(path)
    except ValueError as e:
        require_sentence(str(e), path)
        return Outcome.REFUSED
    except Exception as e:
        raise FaultError(f"{type(e).__name__}: {e}") from e
    if same(found, sound):
        return Outcome.SAME
    if kind.parts and all(
        name in sound and same({"": found[name]}, {"": sound[name]}) for name in found
    ):
        return Outcome.PART
    if kind.sealed_rebuilt if rebuilt else kind.sealed:
        raise FaultError("other values in silence")
    require_whole(found)
    return Outcome.OTHER


def require_sentence(message: str, path: Path) -> None:
    """Raise unless a message is one printable line that names a file."""
    if str(path) not in message:
        raise FaultError(f"does not name {path}: {message}")
    if not message.isprintable():
        raise FaultError(f"is not one printable line: {message!r}")


def require_whole(found: Arrays) -> None:
    """Raise for values that are not finite, or are no numbers."""
    for name, array in found.items():
        if array.dtype.kind not in "biufV":
            raise FaultError(f"{name} is of {array.dtype}")
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise FaultError(f"{name} is not finite")


def same(found: Arrays, sound: Arrays) -> bool:
    """Whether two sets of arrays agree in every bit."""
    return list(found) == list(sound) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in zip(found.values(), sound.values(), strict=True)
    )


# Bytes, whatever they mean.

_EXTREMES = (0, 1, 2, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63)


def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    """Do to bytes what disks, transfers and editors do."""
    return chance.choice(_BYTES)(content, chance)


def _flip(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _flip_near_an_end(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    near = chance.randrange(min(len(data), 400))
    data[near if chance.random() < 0.5 else -1 - near] = chance.randrange(256)
    return bytes(data)


def _chunk(content: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(content))
    return start, min(len(content), start + chance.choice((1, 2, 8, 60, 1000)))


def _cut(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] if chance.random() < 0.8 else content[at:]


def _delete(content: bytes, chance: random.Random) -> bytes:
    start, end = _chunk(content, chance)
    return content[:start] + content[end:]


def _double(content: bytes, chance: random.Random) -> bytes:
    start, end = _chunk(content, chance)
    at = end if chance.random() < 0.5 else chance.randrange(len(content))
    return content[:at] + content[start:end] + content[at:]


def _swap(content: bytes, chance: random.Random) -> bytes:
    size = chance.choice((1, 8, 64))
    if len(content) < 2 * size:
        return content[::-1]
    a = chance.randrange(len(content) - 2 * size + 1)
    b = chance.randrange(a + size, len(content) - size + 1)
    return b"".join(
        (content[:a], content[b : b + size], content[a + size : b],
         content[a : a + size], content[b + size :])
    )  # fmt: skip


def _insert(content: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(content) + 1), chance.choice((1, 4, 100))
    filler = bytes(size) if chance.random() < 0.5 else chance.randbytes(size)
    return content[:at] + filler + content[at:]


def _overwrite(content: bytes, chance: random.Random) -> bytes:
    start, end = _chunk(content, chance)
    filler = bytes(end - start) if chance.random() < 0.5 else b"\xff" * (end - start)
    return content[:start] + filler + content[end:]


def _extreme(content: bytes, chance: random.Random) -> bytes:
    size = chance.choice((2, 4, 8))
    number = (chance.choice(_EXTREMES) % 2 ** (8 * size)).to_bytes(size, "little")
    at = chance.randrange(len(content))
    return content[:at] + number + content[at + size :]


def _digits(content: bytes, chance: random.Random) -> bytes:
    places = [i for i, byte in enumerate(content) if 48 <= byte < 58]
    if not places:
        return _flip(content, chance)
    data = bytearray(content)
    data[chance.choice(places)] = chance.choice(b"0123456789-. e")
    return bytes(data)


_BYTES = (
    _flip, _flip, _flip_near_an_end, _cut, _delete, _double, _swap, _insert, _overwrite,
    _extreme, _digits,
)  # fmt: skip


# Values of JSON.

_VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, 1e300, float("nan"),
    float("inf"), "", "0", "NaN", "a\x1b[31mb", "é" * 3, [], [0], [-1], {}, {"a": 1},
    [[[]]], "x" * 5000,
)  # fmt: skip


def damage_json(value: Any, chance: random.Random) -> Any:
    """Put another value somewhere into a tree of lists and dicts."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        match chance.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                odd = chance.choice(("", "\x1b[2J", f"{key} ", key.upper(), "value"))
                return {odd if k == key else k: v for k, v in value.items()}
            case 2:
                return value | {key: value[chance.choice(sorted(value))]}
        return value | {key: damage_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        match chance.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case 2:
                return value[::-1]
        return [*value[:at], damage_json(value[at], chance), *value[at + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "[") and chance.random() < 0.8:
        return json.dumps(damage_json(json.loads(value), chance))
    if isinstance(value, int | float) and chance.random() < 0.5:
        return chance.choice((value + 1, -value, value * 2, float(value), str(value)))
    return chance.choice(_VALUES)
