"""A small space that the tests of the room share."""

import jax
import pytest
from small_spaces import CLASSES, SHAPE

from swapjax import search
from swapjax.search.nasbench201 import OPS


@pytest.fixture(scope="session")
def tiny():
    """NAS-Bench-201's cells, two in each of two stages, of 2 and 4 channels."""
    return search.cell_space("tiny", OPS, channels=2, cells=2, stages=2)


@pytest.fixture(scope="session")
def theta(tiny):
    return tiny.init(jax.random.key(0), SHAPE, CLASSES)
