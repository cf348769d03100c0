"""What a report tells of a network in one form, and of a leaf."""

import dataclasses

from swapjax.deploy.sizes import Size
from swapjax.deploy.timing import Time


@dataclasses.dataclass(frozen=True)
class Form:
    """A network as it is run.

    Attributes:
        name: ``"dense"``, ``"masked"`` or ``"shrunk"``.
        size: of its params.
        macs: multiplications of its matrix products and convolutions for the batch,
            each with its addition.
        macs_left: those whose weight is not zero, what a machine would do that skips
            zeros.
        time: what was measured; None if nothing was.
        of_dense: the time as a fraction of that of dense, the median of rounds.
    """

    name: str
    size: Size
    macs: int
    macs_left: int
    time: Time | None
    of_dense: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A leaf of params.

    Attributes:
        path: of the leaf.
        shape: of the leaf.
        entries: how many it has.
        nonzeros: how many are not zero where masks are applied.
        macs: multiplications that it enters, for the batch.
        macs_left: those with what is not zero.
        shrunk_shape: of the leaf in the smaller network; None without one.
        shrunk_macs: multiplications there.
    """

    path: str
    shape: tuple[int, ...]
    entries: int
    nonzeros: int
    macs: int
    macs_left: int
    shrunk_shape: tuple[int, ...] | None = None
    shrunk_macs: int | None = None
