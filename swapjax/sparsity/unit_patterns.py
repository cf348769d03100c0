"""What of a leaf lives or dies as one: blocks, channels, attention heads, experts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from swapjax.core.checks import require_count
from swapjax.roles.role import Role
from swapjax.sparsity.cuts import Cut, Shape, along
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.unit_groups import ChannelGroups
from swapjax.sparsity.unit_names import (
    attention_of,
    expert_of,
    head_axes,
    is_called_attention,
    module_of,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """Keep or remove blocks of a leaf's last two axes, as block-sparse kernels want.

    Of a Flax kernel these are inputs and outputs.

    Attributes:
        rows: entries along the axis before the last.
        columns: entries along the last.

    Raises:
        ValueError: for other than whole numbers from 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        require_count("rows", self.rows)
        require_count("columns", self.columns)

    def cuts(self, layout: Layout) -> tuple[Cut | str, ...]:
        """Cut leaves into blocks, or say why one is not cut."""
        return tuple(map(self._cut, layout.shapes, layout.roles))

    def module(self, path: str) -> str:
        """Tell leaves apart: each has blocks of its own."""
        return path

    def _cut(self, shape: Shape, role: Role) -> Cut | str:
        rank = len(shape)
        if any(axis >= rank - 2 for axis in role.stack):
            return "has layers along its last two axes"
        if rank < 2 or shape[-2] % self.rows or shape[-1] % self.columns:
            return "does not divide into blocks"
        tile = (1,) * (rank - 2) + (self.rows, self.columns)
        return Cut(tile, tuple(i for i in range(rank) if i not in role.stack))

    def __str__(self) -> str:
        return f"blocks of {self.rows}x{self.columns}"


@dataclasses.dataclass(frozen=True)
class Channel:
    """Keep or remove all weights of an output of a layer at once: whole channels.

    The inputs of the next layer that read it, and biases, stay as they are.

    Attributes:
        groups: from `swapjax.find_ties`, where layers that are tied to each other, as
            by a residual sum or a gate, are to keep the same channels, each by the mean
            of the scores of all that it has in the plan, inputs of next layers
            included. What is left of masks, of biases and of next layers, is then that
            of `swapjax.tie_masks`. None for layers that each keep their own.

    Raises:
        ValueError: for groups that are none.
    """

    groups: Any = None

    def __post_init__(self) -> None:
        if self.groups is not None and not isinstance(self.groups, ChannelGroups):
            object.__setattr__(self, "groups", ChannelGroups.of(self.groups))

    def cuts(self, layout: Layout) -> tuple[Cut | str, ...]:
        """Cut leaves into outputs, or say why one is not cut."""
        return tuple(map(_channels, layout.shapes, layout.roles))

    def reads(self, layout: Layout) -> tuple[tuple[int, str, Cut], ...]:
        """Cut leaves into inputs that groups have: number, module, and cut."""
        if self.groups is None:
            return ()
        return self.groups.reads(layout)

    def module(self, path: str) -> str:
        """Tell leaves apart: each has channels of its own, or those of its group."""
        return path if self.groups is None else self.groups.module(path)

    def __str__(self) -> str:
        return "channels"


@dataclasses.dataclass(frozen=True)
class Head:
    """Keep or remove whole attention heads, in all matrices of an attention at once.

    A matrix has heads if two of its axes count outputs, as ``[inputs, heads, dim]``, or
    inputs, as ``[heads, dim, outputs]``. One that keeps them in one axis, as
    ``q_proj/weight`` does, is known by its name, and is cut with `size`. Of these a
    plan takes what is called as a part of an attention, or is in what is called so, and
    leaves all else out; with ``include`` it takes what that says.

    What belongs to one attention and has the same number of heads shares them. Keys and
    values that have fewer than queries share theirs with each other. One that joins
    queries, keys and values, as ``qkv`` and ``c_attn`` do, has all of a head.

    Attributes:
        size: entries of a head along an axis that counts heads and their entries in
            one; None where no matrix has such an axis.

    Raises:
        ValueError: for other than a whole number from 1.
    """

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            require_count("size", self.size)

    def found(self, layout: Layout) -> Sequence[bool]:
        """Tell which leaves a plan takes that was not told which."""
        axes = head_axes(layout, fused=self.size is not None)
        return [
            place is not None and is_called_attention(path)
            for path, place in zip(layout.paths, axes, strict=True)
        ]

    def cuts(self, layout: Layout) -> tuple[Cut | str, ...]:
        """Cut leaves into heads, or say why one is not cut.

        Raises:
            ValueError: for a leaf that does not divide into heads of this size.
        """
        axes = head_axes(layout, fused=self.size is not None)
        found: list[Cut | str] = []
        leaves = zip(layout.paths, layout.shapes, layout.roles, axes, strict=True)
        for path, shape, role, place in leaves:
            if place is None:
                found.append("has no heads")
                continue
            size = 1
            if place.fused:
                assert self.size is not None  # since none is fused without
                size = self.size * place.runs * place.parts
            if shape[place.axis] % size:
                raise ValueError(
                    f"pattern {self}: {path} of shape {shape} does not divide into "
                    f"heads along axis {place.axis}; give another size, or exclude it"
                )
            cut = along(shape, role.stack, {place.axis: size})
            runs = ((place.axis, place.runs),) if place.runs > 1 else ()
            found.append(cut._replace(runs=runs))
        self._require_all_joined(layout, found)
        return tuple(found)

    def _require_all_joined(self, layout: Layout, cuts: list[Cut | str]) -> None:
        """Raise where a matrix joins more queries than keys, by the way out.

        Raises:
            ValueError: naming it.
        """
        outs = {}
        leaves = list(zip(layout.paths, layout.shapes, layout.roles, cuts, strict=True))
        for path, shape, role, cut in leaves:
            if isinstance(cut, Cut) and cut.axes[0] in role.inputs:
                outs[self.module(path)] = shape[cut.axes[0]] // cut.tile[cut.axes[0]]
        for path, shape, _, cut in leaves:
            if isinstance(cut, Cut) and cut.runs:
                heads = shape[cut.axes[0]] // cut.tile[cut.axes[0]]
                wanted = outs.get(self.module(path), heads)
                if wanted != heads and cut.runs[0][1] > 2:
                    raise ValueError(
                        f"pattern {self}: {path} of shape {shape} joins queries, keys "
                        f"and values of {heads} heads each by its name, and their "
                        f"outputs have {wanted}; exclude it"
                    )

    @property
    def advice(self) -> str:
        """What else may find heads."""
        more = "" if self.size else "; give size for heads that share an axis"
        return f"{more}; say with include which leaves have any"

    def module(self, path: str) -> str:
        """Find the attention that a leaf belongs to."""
        return attention_of(path)

    def __str__(self) -> str:
        return "heads" if self.size is None else f"heads of {self.size}"


@dataclasses.dataclass(frozen=True)
class Expert:
    """Keep or remove whole experts, in all matrices of a mixture at once.

    Experts are axes of a leaf; its role tells them. Or they are leaves of their own,
    below ``experts/3``. All other leaves, routers among them, are left out of the plan:
    a router may still choose an expert that is gone, which then adds nothing.
    """

    def cuts(self, layout: Layout) -> tuple[Cut | str, ...]:
        """Cut leaves into experts, or say why one is not cut."""
        listed: dict[str, set[int]] = {}
        places = list(map(expert_of, layout.paths))
        for mixture, number in filter(None, places):
            listed.setdefault(mixture, set()).add(number)
        found: list[Cut | str] = []
        for shape, role, place in zip(layout.shapes, layout.roles, places, strict=True):
            cut = _experts(shape, role)
            if place is not None and not role.experts:
                own = sorted(listed[place[0]])
                cut = along(shape, role.stack, {})
                cut = cut._replace(place=(own.index(place[1]), len(own)))
            found.append(cut)
        return tuple(found)

    @property
    def advice(self) -> str:
        """What else may find experts."""
        return "; say with axes= which axis counts them"

    def found(self, layout: Layout) -> Sequence[bool]:
        """Tell which leaves a plan takes that was not told which."""
        return [not isinstance(cut, str) for cut in self.cuts(layout)]

    def module(self, path: str) -> str:
        """Find the mixture that a leaf belongs to."""
        place = expert_of(path)
        return module_of(path) if place is None else place[0]

    def __str__(self) -> str:
        return "experts"


UnitPattern = Block | Channel | Head | Expert


def _channels(shape: Shape, role: Role) -> Cut | str:
    if not role.outputs:
        reason = role.reason if role.kind != "matrix" else "has none"
        return f"has no outputs that are known, it {reason or 'is no matrix'}"
    return along(shape, role.stack, dict.fromkeys(role.outputs, 1))


def _experts(shape: Shape, role: Role) -> Cut | str:
    if not role.experts:
        return "has no experts"
    stack = tuple(i for i in role.stack if i not in role.experts)
    return along(shape, stack, dict.fromkeys(role.experts, 1))
