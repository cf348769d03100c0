"""What tests of pruning share."""

import pytest
from prune_runs import setting


@pytest.fixture(scope="session")
def problem():
    """The small network, and examples to prune it by."""
    return setting()
