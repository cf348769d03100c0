"""Back-propagation that leaves out what is small, at random and without bias."""

from swapjax.backward.address import Site
from swapjax.backward.blocks_objective import BlocksState, drop_blocks
from swapjax.backward.cost import Layer, find_layers, mac_ratio
from swapjax.backward.mark import site
from swapjax.backward.noise import GradientNoise, gradient_noise
from swapjax.backward.objective import prune_backward
from swapjax.backward.operator import prune_gradient
from swapjax.backward.placement import find_sites
from swapjax.backward.report import BackwardCost, LayerCost, SiteZeros, measure
from swapjax.backward.shared import require_fresh_keys
from swapjax.backward.state import BackwardState, SiteState
from swapjax.backward.thresholds import added_variance, expected_zeros
from swapjax.backward.vcas_control import VcasState
from swapjax.backward.vcas_objective import vcas

__all__ = [
    "BackwardCost",
    "BackwardState",
    "BlocksState",
    "GradientNoise",
    "Layer",
    "LayerCost",
    "Site",
    "SiteState",
    "SiteZeros",
    "VcasState",
    "added_variance",
    "drop_blocks",
    "expected_zeros",
    "find_layers",
    "find_sites",
    "gradient_noise",
    "mac_ratio",
    "measure",
    "prune_backward",
    "prune_gradient",
    "require_fresh_keys",
    "site",
    "vcas",
]
