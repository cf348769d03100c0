"""Sparse training, and drivers that train, prune and train again."""

from swapjax.training.exchange import exchange, random_score
from swapjax.training.gsm import gsm
from swapjax.training.rules import (
    MaskStep,
    Rule,
    acdc,
    gmp,
    granet,
    granet_st,
    rigl,
    set_,
    static,
    ste,
)
from swapjax.training.state import SparseState, check_state, masks_of
from swapjax.training.transform import sparse

__all__ = [
    "MaskStep",
    "Rule",
    "SparseState",
    "acdc",
    "check_state",
    "exchange",
    "gmp",
    "granet",
    "granet_st",
    "gsm",
    "masks_of",
    "random_score",
    "rigl",
    "set_",
    "sparse",
    "static",
    "ste",
]
