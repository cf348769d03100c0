"""Find what lives or dies together from the program of a network.

Of each axis of each value that a program computes, every place has a label; equations
tie labels to each other: entry by entry, through a product whose sum runs over both,
through reshapes, concatenations, loops. What is tied is a unit: a channel with its
batch norm, the rows of the next kernel that read it, and all that a residual sum adds
it to. Torch-Pruning's DepGraph (Fang et al. 2023, arXiv:2301.12900) finds such groups
from the backward graph, layer by layer; here they come from equations alone, so that
no kind of layer needs to be known.

A place is pinned, and stays, where it belongs to data or results, or goes through what
cannot be followed.
"""

from swapjax.roles.ties.find import find_ties
from swapjax.roles.ties.groups import Group, Member
from swapjax.roles.ties.ties import Product, Ties

__all__ = ["Group", "Member", "Product", "Ties", "find_ties"]
