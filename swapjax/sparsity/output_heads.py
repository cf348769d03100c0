"""Output heads: which of the layers that a loss reads are left out of a plan.

The last layer of a classifier is pruned like others, as all of the literature on small
networks has it. The head of a language model is not: each of its outputs is one token
of the vocabulary, as a row of the table of embeddings is, and a token that is rare
leaves no trace in the data that a method looks at.
"""

import re
from collections.abc import Mapping, Sequence

from swapjax.sparsity.layout import Layout

_HEAD = "is an output head"
_ADVICE = "output_heads=True prunes it"


def is_of_head(why: str) -> bool:
    """Tell whether a leaf is left out as a head, from why it is."""
    return why.startswith(_HEAD)


def without_heads(
    layout: Layout,
    tables: Mapping[str, tuple[int, ...]],
    pruned: bool | None,
    named: Sequence[str],
) -> tuple[Layout, tuple[tuple[str, str], ...]]:
    """Leave out output heads.

    Args:
        layout: the prunable leaves.
        tables: shapes of the leaves that are looked up, by path.
        pruned: whether heads are; None for all but those that have an output for each
            row of a table, and as many inputs as it has columns. Of those too where
            nothing else would be left.
        named: regular expressions; a head that one matches is pruned unless all heads
            are left out.

    Returns:
        The layout of the other leaves; the heads, and why.

    Raises:
        ValueError: where nothing is left.
    """
    if pruned:
        return layout, ()
    heads: dict[int, str] = {}
    for i, (path, shape, role) in enumerate(
        zip(layout.paths, layout.shapes, layout.roles, strict=True)
    ):
        if not role.is_output_head:
            continue
        if pruned is False:
            heads[i] = _HEAD
            continue
        mirrored = [t for t, rows in tables.items() if role.sides(shape) == rows[::-1]]
        if mirrored and not _is_named(path, named):
            heads[i] = f"{_HEAD} over the rows of {mirrored[0]}; {_ADVICE}"
    rest = [i for i in range(len(layout.paths)) if i not in heads]
    if not rest and pruned is False:
        raise ValueError(
            f"output_heads: False leaves nothing to prune of {', '.join(layout.paths)}"
        )
    if not heads or not rest:
        return layout, ()
    return layout.only(rest), tuple((layout.paths[i], why) for i, why in heads.items())


def _is_named(path: str, named: Sequence[str]) -> bool:
    try:
        return any(re.search(rule, path) for rule in named)
    except re.error:  # which is told where overrides are laid on layers
        return False
