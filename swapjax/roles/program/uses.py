"""Uses of leaves in a program, and what a leaf is that has several."""

from typing import NamedTuple

from swapjax.roles.role import Axis, Kind, Role, matrix

SOURCE = "the program"
_MIXED = "is multiplied with an axis that numbers both inputs and outputs"


class Use(NamedTuple):
    """One use of a leaf.

    Attributes:
        leaf: its number.
        kind: as that of a role.
        how: of what is no matrix, to follow the path of the leaf in a sentence.
        axes: of a matrix.
        groups: of a convolution.
        pixels: the axes of those of its kernel.
        weak: whether any other use is believed before this one.
    """

    leaf: int
    kind: Kind
    how: str = ""
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    pixels: tuple[int, ...] = ()
    weak: bool = False

    def sentence(self) -> str:
        """Tell the use, after the path of the leaf."""
        if self.kind != "matrix":
            return self.how
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"is multiplied with axes ({', '.join(self.axes)}){groups}"


# Of a value that is the output of a layer: what the leaf does is known.
PASSED = Use(-1, "matrix")


class Uses:
    """All uses that a program makes of its leaves.

    Attributes:
        weak: whether what is found now is, as in the program of a derivative.
    """

    def __init__(self) -> None:
        self.weak = False
        self._uses: dict[int, dict[Use, None]] = {}
        self._void: set[Use] = set()
        self._ends: dict[int, str] = {}
        self._later: dict[int, dict[int, Axis]] = {}
        self._summed: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether any leaf is used with data."""
        return bool(self._uses)

    def add(self, use: Use) -> Use:
        """Note a use."""
        if self.weak:
            use = use._replace(weak=True)
        self._uses.setdefault(use.leaf, {})[use] = None
        return use

    def void(self, use: Use) -> None:
        """Take a use back, which turned out to be a part of another."""
        self._void.add(use)

    def end(self, leaf: int, primitive: str) -> None:
        """Note where a leaf could not be followed, before it met data."""
        self._ends.setdefault(leaf, primitive)

    def later(self, leaf: int, marks: int, word: Axis) -> None:
        """Note what later products tell of axes that a first one did not know."""
        self._later.setdefault(leaf, {})[marks] = word

    def summed(self, leaf: int, marks: int) -> None:
        """Note output axes that a later layer sums over."""
        self._summed[leaf] = self._summed.get(leaf, 0) | marks

    def role(self, leaf: int) -> Role:
        """Decide what a leaf does."""
        uses = [u for u in self._uses.get(leaf, ()) if u not in self._void]
        uses = [u for u in uses if not u.weak] or uses
        if not uses:
            end = self._ends.get(leaf)
            what = f"enters the loss through {end}" if end else "meets no data"
            return Role("unknown", reason=what)
        one = uses[0]
        for other in uses[1:]:
            joined = _join(one, other)
            if joined is None:
                second = other.sentence().removeprefix("is ")
                both = f"{one.sentence()}, and {second}"
                return Role("unknown", reason=both, is_ambiguous=True)
            one = joined
        if one.kind == "matrix":
            axes = self._corrected(one)
            pixels = tuple(i for i in one.pixels if axes[i] == "input")
            return matrix(*axes, groups=one.groups, pixels=pixels, reason=SOURCE)
        return Role(one.kind, reason=one.how)

    def _corrected(self, use: Use) -> tuple[Axis, ...]:
        """Correct the axes of a first product by what came after; see `outputs`."""
        axes = list(use.axes)
        for marks, word in self._later.get(use.leaf, {}).items():
            if not marks & self._summed.get(use.leaf, 0):
                for i in range(len(axes)):
                    if marks >> i & 1:
                        axes[i] = word
        return tuple(axes) if {"input", "output"} <= set(axes) else use.axes


def _join(one: Use, other: Use) -> Use | None:
    """Join two uses that agree, or return None."""
    if {one.kind, other.kind} == {"table", "vector"}:
        return one if one.kind == "table" else other  # a code book, with distances
    if one.kind != other.kind:
        return None
    if one.kind != "matrix":
        return one
    if one.groups != other.groups:
        return None
    axes: list[Axis] = []
    for a, b in zip(one.axes, other.axes, strict=True):
        if a != b and {a, b} != {"stack", "expert"}:
            return None
        axes.append(a if a == b else "stack")
    pixels = tuple(sorted({*one.pixels, *other.pixels}))
    return one._replace(axes=tuple(axes), pixels=pixels)


def matrix_use(
    leaf: int,
    shape: tuple[int, ...],
    words: list[set[Axis]],
    *,
    narrow: bool,
    groups: int = 1,
    pixels: int = 0,
    how: str,
    weak: bool,
) -> Use:
    """Make the use of a leaf in a product.

    Args:
        leaf: its number.
        shape: of the leaf.
        words: what was found of each of its axes, which may be nothing.
        narrow: whether the leaf is repeated along an axis of the product, so that it
            is the scale of inputs or of outputs unless it has axes of both.
        groups: of a convolution.
        pixels: marks of those of its kernel.
        how: the sentence of a vector.
        weak: see `Use`.
    """
    if any({"input", "output"} <= found for found in words):
        return Use(leaf, "unknown", _MIXED, weak=weak)
    axes = [_word(found) for found in words]
    long = {w for w, size in zip(axes, shape, strict=True) if size > 1}
    if {"input", "output"} <= long or ("input" in axes and not narrow):
        places = tuple(i for i in range(len(shape)) if pixels >> i & 1)
        return Use(leaf, "matrix", "", _filled(axes, shape), groups, places, weak)
    return Use(leaf, "vector", how, weak=weak)


def _word(found: set[Axis]) -> Axis | None:
    for word in ("input", "output", "stack", "expert"):
        if word in found:
            return word
    return None


def _filled(axes: list[Axis | None], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Find words for axes of which nothing is known: mostly those of size one."""
    filled: list[Axis] = []
    for i, (word, size) in enumerate(zip(axes, shape, strict=True)):
        unit = size == 1 and word not in ("input", "output")
        if not unit:
            filled.append(word or "stack")
        elif all(w in ("stack", "expert") for w in filled):
            rest = [*filled, *axes[i + 1 :]]
            filled.append("stack" if len(rest) > 1 else "output")
        elif "output" not in [*filled, *axes[i + 1 :]]:
            filled.append("output")
        else:
            filled.append(filled[-1])
    return tuple(filled)
