"""The flops and bytes of the least that a stage has to do, for `peer_speed.py`."""

from typing import NamedTuple


class Work(NamedTuple):
    """The least that a stage has to do."""

    flops: float
    bytes: float


def refit(
    n: int, p: int, kept: int, *, supports: int, dampings: int, inverse: bool
) -> Work:
    """Count a re-fit through n x n systems.

    G is written once and read for its projection, and once more for each support that
    looks at it; its columns on a support are written, and read twice. Symmetric
    products, factors and inverses take half of what general ones would.
    """
    system = n**3 / 3 + (2 * n**3 / 3 if inverse else 0)
    flops = 8 * n * p + supports * (n**2 * kept + dampings * system)
    return Work(flops, 4 * (n * p * (1 + supports) + 3 * supports * n * kept))


def blocks(n: int, p: int, kept: int, block: int, *, dampings: int) -> Work:
    """Count WoodFisher in blocks larger than n, through n x n systems.

    The moment of each block once; for every damping its factor, the rows behind it for
    the diagonal of the inverse, and the same on what is kept.
    """
    factors = 2 * (p / block) * n**3 / 3
    flops = 8 * n * p + n**2 * p + dampings * (n**2 * p + n**2 * kept + factors)
    return Work(flops, 4 * n * p * (2 + 2 * dampings))
