"""The blocks of a network, in the order of its program.

A block is the largest unit that a network repeats: what lies under ``layers/3/``, or
one step of a scan over stacked layers. What is in no such unit is a block by itself.
"""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from swapjax.activations.segments import Program, Segment, cut
from swapjax.activations.segments_unroll import Ref
from swapjax.core.text import printable
from swapjax.roles.role import Role

_NUMBER = re.compile(r"\d+")
# A numbered part of a path before others, which Hugging Face parts by dots.
_PART = re.compile(r"(?<![^/.])[^/.]*\d[^/.]*(?=[/.])")


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A part of a program, and what is prunable in it.

    Attributes:
        name: the path that its leaves begin with, ``layers/3`` or ``layers[3]``; empty
            for a part without prunable leaves.
        segment: the part.
        refs: its prunable leaves, or slices of them, in the order of params.
    """

    name: str
    segment: Segment
    refs: tuple[Ref, ...]


class _Run(NamedTuple):
    """Operations that read the leaves of one block, from the first to the last."""

    label: Hashable
    first: int
    last: int


def find_blocks(
    program: Program, roles: Mapping[str, Role], blocks: str | None = None
) -> tuple[Block, ...]:
    """Cut a program into blocks, where the fewest bytes go from one to the next.

    Args:
        program: of a loss.
        roles: those of the prunable leaves, by path.
        blocks: a regular expression that is searched in the paths of leaves: those in
            which it finds the same text are of one block, as of ``layers/[0-9]+``.
            ``"layers"`` makes a block of each layer. By default units that repeat.

    Returns:
        The blocks, in order; together they are the whole program.

    Raises:
        ValueError: for a regular expression that is none or matches no prunable leaf,
            and a loss with a penalty of weights; naming the leaf, for one that is not
            reached by data, one whose layers cannot be told apart in the program, one
            layer that it takes slices of, and one that is read in two blocks.
    """
    labels = _labels(program, roles, blocks)
    _require_no_penalty(program, labels)
    runs = _runs(program, labels)
    sizes = program.bytes_at()
    cuts = []
    for before, after in itertools.pairwise(runs):
        between = range(before.last + 1, after.first + 1)
        cuts.append(min(between, key=sizes.__getitem__))
    found = []
    for segment in cut(program, cuts):
        prunable = (r for r in segment.reads if program.paths[r.leaf] in roles)
        refs = tuple(sorted(prunable, key=lambda r: (r.leaf, r.row or 0)))
        found.append(Block(_name(program, refs), segment, refs))
    _require_all(program, roles, found)
    return tuple(found)


def units(paths: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[str | None]:
    """Find the largest unit that repeats around each leaf.

    A unit is what lies under a numbered part of a path, as ``layers/3`` or ``block_3``,
    if another number has leaves of the same names and shapes. Its neighbours are units
    then too, whatever they hold.

    Args:
        paths: of all leaves of params.
        shapes: theirs.

    Returns:
        The path of the unit of each leaf, None for one in no unit.
    """
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    levels: list[list[tuple[str, str]]] = []
    for leaf, path in enumerate(paths):
        # A leaf by itself is no unit: those of a list of arrays are layers.
        heads = [path[: part.end()] for part in _PART.finditer(path)]
        levels.append([(_NUMBER.sub("#", head), head) for head in heads])
        for kind, head in levels[-1]:
            members[kind][head].append(leaf)

    def repeats(kind: str) -> bool:
        structures = [
            tuple(sorted((paths[i].removeprefix(head), shapes[i]) for i in leaves))
            for head, leaves in members[kind].items()
        ]
        return len(set(structures)) < len(structures)

    known = {kind: repeats(kind) for kind in members}
    return [next((h for kind, h in of if known[kind]), None) for of in levels]


def _labels(
    program: Program, roles: Mapping[str, Role], blocks: str | None
) -> dict[Ref, Hashable]:
    """Tell the block of everything that operations read; None for what is in any."""
    paths = program.paths
    shapes = [tuple(kind.shape) for kind in program.unrolled.leaves]
    read = {
        ref for o in program.unrolled.operations for ref in program.unrolled.reads(o)
    }
    if blocks == "layers":
        return {ref: ref if paths[ref.leaf] in roles else None for ref in read}
    own = units(paths, shapes) if blocks is None else _matches(blocks, paths, roles)
    found: dict[Ref, Hashable] = {}
    for ref in read:
        shape, unit = shapes[ref.leaf], own[ref.leaf]
        if ref.row is not None and blocks is None:
            found[ref] = ("", shape[0], ref.row)
        elif unit is not None:
            found[ref] = (unit, ref.row)
        elif paths[ref.leaf] in roles or len(shape) > 1:
            found[ref] = ref
        else:
            found[ref] = None
    return found


def _matches(
    blocks: str, paths: Sequence[str], roles: Mapping[str, Role]
) -> list[str | None]:
    """Find what a regular expression finds in each path."""
    try:
        found = [re.search(blocks, path) for path in paths]
    except (re.error, TypeError) as e:
        raise ValueError(
            f"blocks: {blocks!r} is not a regular expression: {e}"
        ) from None
    pairs = zip(paths, found, strict=True)
    if not any(match for path, match in pairs if path in roles):
        raise ValueError(
            f"blocks: {printable(blocks)!r} matches no prunable leaf of params"
        )
    return [None if match is None else match.group() for match in found]


def _require_no_penalty(program: Program, labels: Mapping[Ref, Hashable]) -> None:
    """Raise for a number that is made of the weights of several blocks.

    Raises:
        ValueError: naming two of the leaves.
    """
    made, kinds = program.unrolled.made, program.unrolled.kinds
    for operation in program.unrolled.operations:
        for x in operation.operands:
            if not isinstance(x, int) or kinds[x].shape or not made.get(x):
                continue
            inside = sorted(made[x], key=lambda ref: (ref.leaf, ref.row or 0))
            several = {labels[ref]: program.paths[ref.leaf] for ref in inside}
            if len(several) > 1:
                first, second, *_ = several.values()
                raise ValueError(
                    f"loss_fn: has a term of weights alone, {first} and {second} among "
                    "them; leave penalties out, sequential never holds all weights"
                )


def _runs(program: Program, labels: Mapping[Ref, Hashable]) -> list[_Run]:
    """List the operations of each block, where those of one follow each other."""
    runs: list[_Run] = []
    for number, operation in enumerate(program.unrolled.operations):
        read = {labels[ref] for ref in program.unrolled.reads(operation)} - {None}
        if not read:
            continue
        if runs and runs[-1].label in read:
            runs[-1] = runs[-1]._replace(last=number)
        else:
            # Where one operation reads several units, it is of the first of them.
            runs.append(_Run(min(read, key=str), number, number))
    return runs


def _name(program: Program, refs: Sequence[Ref]) -> str:
    """Name a block by what the paths of its leaves have in common."""
    if not refs:
        return ""
    split = [re.split(r"([/.])", program.paths[ref.leaf]) for ref in refs]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    name = "".join(common).rstrip("/.")
    indices = {ref.row for ref in refs}
    (index,) = indices if len(indices) == 1 else (None,)
    return name if index is None else f"{name}[{index}]"


def _require_all(
    program: Program, roles: Mapping[str, Role], blocks: Sequence[Block]
) -> None:
    """Raise unless every layer is in one block.

    Raises:
        ValueError: naming the first leaf that is not.
    """
    owners: dict[Ref, list[Block]] = defaultdict(list)
    for block in blocks:
        for ref in block.refs:
            owners[ref].append(block)
    for leaf, path in enumerate(program.paths):
        if path not in roles:
            continue
        length = (*program.unrolled.leaves[leaf].shape, 1)[0]
        read = {ref.row for ref in owners if ref.leaf == leaf}
        stacked = roles[path].axes[:1] == ("stack",) and length > 1
        if stacked and None in read:
            raise ValueError(
                f"blocks: {path} holds {length} layers, which the program of loss_fn "
                "takes out in a way that cannot be cut; go over them with "
                "jax.lax.scan, or leave sequential out"
            )
        if not stacked and length > 1 and read - {None}:
            raise ValueError(
                f"blocks: {path} is one layer, of which the program of loss_fn takes "
                "slices, which cannot be told apart; leave sequential out"
            )
        missing = [i for i in range(length) if i not in read]
        if not read or (None not in read and missing):
            named = path if not read else f"{path}[{missing[0]}]"
            raise ValueError(
                f"params: {named} is not reached by the program of loss_fn; leave it "
                "out with swapjax.plan(..., exclude=...)"
            )
    for ref, several in owners.items():
        if len(several) > 1:
            path = program.paths[ref.leaf]
            named = " and ".join(block.name or "another" for block in several[:2])
            raise ValueError(
                f"blocks: {path} is read in several of them, {named}; give blocks= a "
                "regular expression that puts them together, or leave sequential out"
            )


def describe(blocks: Sequence[Block]) -> Any:
    """Tell what blocks there are, for the state of a run."""
    return [(block.name, [tuple(ref) for ref in block.refs]) for block in blocks]
