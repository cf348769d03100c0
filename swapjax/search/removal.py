"""Prune a supernet's operations before training until an architecture is left."""

from typing import Any, NamedTuple

import jax
import numpy as np

from swapjax.core import checks
from swapjax.search.draw import Deviation, he
from swapjax.search.freeflow import OperationScore
from swapjax.search.genotype import Genotype
from swapjax.search.space import Space

SCOPES = ("global", "edge")
ALPHAS = ("ones", "random")
_DEVIATION = 1e-3  # of random alpha, as in the code of the paper's second version

Tables = dict[str, np.ndarray]


class Found(NamedTuple):
    """An architecture, and how it was found.

    Attributes:
        genotype: the operations that are left.
        scores: of all operations of the whole supernet, before any was removed: for
            each kind of cell float64[edges, ops].
        survived: for each kind of cell int[edges, ops]: the steps after which an
            operation was still there. Those of the genotype have all of them, those
            that were left out at the start -1.
        counts: how many operations were left after each step.
    """

    genotype: Genotype
    scores: Tables
    survived: Tables
    counts: tuple[int, ...]


def remove(
    space: Space,
    score: OperationScore,
    key: jax.Array,
    *,
    shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    steps: int = 1,
    scope: str = "global",
    keep_none: bool = False,
    alpha: str = "ones",
    redraw: bool = False,
    deviation: Deviation = he,
) -> Found:
    """Remove the operations that score least, until a genotype is left.

    Weights are drawn once, all operations start alive. At each step all that are alive
    are scored; the best of every edge is protected, or in spaces whose genotypes have
    some of the edges only, the best on as many edges into each node. Of the rest those
    with the lowest scores go, so that the number that is left falls geometrically:
    ``n_k = n_0 (n_f / n_0)^(k / steps)``, rounded. One step takes the best at once.
    The schedule is that of SynFlow (arXiv 2006.05467); whether the first version of
    arXiv 2106.11542 removes in such steps is not known to us.

    Equal scores go by the order of the space: the first stays. Everything is exact, and
    the same for the same key. The score is compiled once for all steps.

    Args:
        space: of the supernet.
        score: such as `freeflow`: ``score(theta, alpha) -> scores``, higher to keep.
        key: of the weights, and of alpha where that is random.
        shape: of one image.
        classes: how many logits.
        steps: between which is scored anew.
        scope: ``"global"``: all operations compete; ``"edge"``: those of one edge, or
            of one node where genotypes have some of the edges only, each at the pace
            of the schedule.
        keep_none: whether ``none`` may be chosen where the space lets it be. As it
            always scores zero, it is else left out from the start.
        alpha: ``"ones"``, or ``"random"``, normal of deviation 0.001, which the
            paper's code has and which then decides a good part of the ranking.
        redraw: draw weights anew at each step, which averages over draws.
        deviation: standard deviation of a convolution's weights, from its shape.

    Raises:
        ValueError: for scores that are NaN or infinite; all operations of an edge tied
            at zero; genotypes of ``none`` alone; options out of range.
    """
    checks.require_count("steps", steps)
    for name, value, known in ("scope", scope, SCOPES), ("alpha", alpha, ALPHAS):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    out = set(space.never) | (set() if keep_none else {"none"})
    if not set(space.ops) - out:
        raise ValueError(f"space {space.name} has no operation but {sorted(out)}")
    start = _alpha(space, alpha, key)
    alive = {
        kind: np.tile([op not in out for op in space.ops], (len(edges), 1))
        for kind, edges in space.edges.items()
    }
    survived = {kind: np.where(rows, 0, -1) for kind, rows in alive.items()}
    groups = _groups(space, scope)
    totals = [_count(alive, group) for group in groups]
    finals = [len(_protected(space, alive, alive, group)) for group in groups]

    theta = space.init(key, shape, classes, deviation=deviation)
    first: Tables = {}
    counts = []
    for step in range(1, steps + 1):
        if redraw and step > 1:
            drawn = jax.random.fold_in(key, step)
            theta = space.init(drawn, shape, classes, deviation=deviation)
        now = {kind: start[kind] * alive[kind] for kind in space.kinds}
        scores = _checked(space, score(theta, now), alive)
        first = first or scores
        for group, total, final in zip(groups, totals, finals, strict=True):
            target = round(total * (final / total) ** (step / steps))
            _kill(space, scores, alive, group, max(target, final))
        for kind, rows in alive.items():
            survived[kind][rows] = step
        counts.append(sum(int(rows.sum()) for rows in alive.values()))

    last = {kind: np.where(alive[kind], scores[kind], -np.inf) for kind in space.kinds}
    genotype = space.genotype(last)
    if all(op == "none" for _, choices in genotype.cells for _, _, op in choices):
        raise ValueError(
            "genotype: all operations are none, so that nothing is computed"
        )
    return Found(genotype, first, survived, tuple(counts))


Group = list[tuple[str, list[int]]]  # kinds of cells, and edges of each that compete


def _groups(space: Space, scope: str) -> list[Group]:
    """Return who competes with whom."""
    if scope == "global":
        return [
            [(kind, list(range(len(edges)))) for kind, edges in space.edges.items()]
        ]
    return [[(kind, part)] for kind in space.kinds for part in _parts(space, kind)]


def _parts(space: Space, kind: str) -> list[list[int]]:
    """Return sets of edges of which the same number is kept each."""
    edges = space.edges[kind]
    if space.kept is None:
        return [[i] for i in range(len(edges))]
    nodes = sorted({to for _, to in edges})
    return [[i for i, (_, to) in enumerate(edges) if to == node] for node in nodes]


def _protected(
    space: Space, scores: Tables, alive: Tables, group: Group
) -> list[tuple[str, int, int]]:
    """Return the operations that a genotype would have now: kind, edge, operation."""
    found = []
    for kind, edges in group:
        table = np.where(alive[kind], scores[kind], -np.inf)
        for part in _parts(space, kind):
            if not set(part) <= set(edges):
                continue
            order = sorted(part, key=lambda i: -table[i].max())
            found += [(kind, i, int(table[i].argmax())) for i in order[: space.kept]]
    return found


def _kill(
    space: Space, scores: Tables, alive: Tables, group: Group, target: int
) -> None:
    """Mark the lowest of a group as dead, in place, but those that are protected."""
    protected = _protected(space, scores, alive, group)
    for kind, edge, op in protected:
        rivals = alive[kind][edge] & (scores[kind][edge] == 0)
        if scores[kind][edge, op] == 0 and rivals.sum() > 1:
            raise ValueError(
                f"scores: the best {int(rivals.sum())} operations on edge "
                f"{space.edges[kind][edge]} of {kind} tie at zero, so that none of "
                "them is best"
            )
    rest = [
        (kind, edge, int(op))
        for kind, edges in group
        for edge in edges
        for op in np.flatnonzero(alive[kind][edge])
        if (kind, edge, int(op)) not in protected
    ]
    # Of equal scores the later one goes first, as the best is the first of them.
    rest.reverse()
    rest.sort(key=lambda place: scores[place[0]][place[1:]])
    for kind, edge, op in rest[: len(rest) + len(protected) - target]:
        alive[kind][edge, op] = False


def _count(alive: Tables, group: Group) -> int:
    return sum(int(alive[kind][edges].sum()) for kind, edges in group)


def _alpha(space: Space, how: str, key: jax.Array) -> dict[str, Any]:
    if how == "ones":
        return {kind: np.asarray(x) for kind, x in space.alpha().items()}
    keys = jax.random.split(jax.random.fold_in(key, 0), len(space.kinds))
    return {
        kind: _DEVIATION * np.asarray(jax.random.normal(k, x.shape))
        for k, (kind, x) in zip(keys, space.alpha().items(), strict=True)
    }


def _checked(space: Space, scores: Any, alive: Tables) -> Tables:
    """Bring scores to the host, if they are numbers."""
    space.check_rows("scores", scores)
    found = {kind: np.asarray(scores[kind], np.float64) for kind in space.kinds}
    for kind, table in found.items():
        bad = int(np.sum(~np.isfinite(table) & alive[kind]))
        if bad:
            raise ValueError(
                f"scores: {bad} of {int(alive[kind].sum())} operations of {kind} score "
                "NaN or infinity"
            )
    return found
