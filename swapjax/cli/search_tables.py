"""The spaces and proxies that swapjax search knows by name."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from swapjax import search
from swapjax.search import PROXIES as ARCHITECTURES
from swapjax.search.nasbench201 import OPS
from swapjax.search.space import Space


class SpaceRow(NamedTuple):
    """A space, for --space.

    Attributes:
        summary: what it is, for --help.
        make: makes it; ``channels=`` and ``cells=`` are those of the supernet.
    """

    summary: str
    make: Callable[..., Space]


class ProxyRow(NamedTuple):
    """What scores, for --proxy.

    Attributes:
        summary: what it is, for --help.
        needs: ``"nothing"``; ``"images"``, random ones without data; ``"labels"``.
        make: makes a score of operations, ``(space, shape=...)`` or ``(space, batch)``
            by what it needs.
        find: searches by itself: ``(space, key, images=..., ...) -> genotype``. Those
            with neither score whole architectures.
        alpha: of the removal by default: with ones, batch norm and an image of ones
            all operations of an edge tie at zero.
    """

    summary: str
    needs: str = "nothing"
    make: Callable[..., Any] | None = None
    find: Callable[..., Any] | None = None
    alpha: str = "ones"


@functools.lru_cache
def toy(channels: int = 8, cells: int = 1) -> Space:
    """Return a space of 64 cells: 3 edges, 4 operations, in three small stages."""
    ops = {name: op for name, op in OPS.items() if name != "avg_pool_3x3"}
    return search.cell_space("toy", ops, nodes=3, channels=channels, cells=cells)


SPACES = {
    "nb201": SpaceRow("NAS-Bench-201, cells of 6 edges, 5 operations", search.nb201),
    "darts": SpaceRow("DARTS, a normal and a reduction cell, 8 cells", search.darts),
    "mobilenet": SpaceRow("chains of 8 layers, 3 operations each", search.mobilenet),
    "toy": SpaceRow("cells of 3 edges, 4 operations, small: for a first try", toy),
}
_OPERATIONS = {
    "freeflow": ProxyRow(
        "what flows through an operation, in absolute weights, from an image of ones",
        make=search.freeflow,
    ),
    "freeflow-even": ProxyRow(
        "the same, once every convolution hands on as much as it gets; ours",
        make=functools.partial(search.freeflow, rescale=True),
    ),
    "synflow-ops": ProxyRow(
        "the same with batch norm and in float32, as a paper's code has it",
        make=search.synflow_ops,
        alpha="random",
    ),
    "snip-ops": ProxyRow(
        "how the loss of a batch moves with an operation", "labels", search.snip_ops
    ),
    "grasp-ops": ProxyRow(
        "how the gradient of that loss does", "labels", search.grasp_ops
    ),
    "perturb": ProxyRow(
        "how the patterns of ReLUs merge without an operation, from images of any kind",
        "images",
        find=search.perturb,
    ),
}
_KINDS = {"counts": "nothing", "weights": "nothing"}
_WORDS = {
    "counts": "counted, no score",
    "weights": "from weights alone",
    "images": "from images of any kind",
    "labels": "from images and labels",
}
PROXIES = _OPERATIONS | {
    name: ProxyRow(
        f"of whole networks, {_WORDS[row.needs]}; takes the best of --draws",
        _KINDS.get(row.needs, row.needs),
    )
    for name, row in ARCHITECTURES.items()
}
