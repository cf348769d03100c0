"""Back-propagation that leaves out what is small, at random and without bias."""

from swapjax.backward.address import Site
from swapjax.backward.mark import site
from swapjax.backward.objective import prune_backward
from swapjax.backward.operator import prune_gradient
from swapjax.backward.placement import find_sites
from swapjax.backward.state import BackwardState, SiteState, require_fresh_keys
from swapjax.backward.thresholds import added_variance, expected_zeros

__all__ = [
    "BackwardState",
    "Site",
    "SiteState",
    "added_variance",
    "expected_zeros",
    "find_sites",
    "prune_backward",
    "prune_gradient",
    "require_fresh_keys",
    "site",
]
