"""Sparse training, and drivers that train, prune and train again."""

from swapjax.training import rules
from swapjax.training.drop_and_grow import exchange, random_score
from swapjax.training.epoch import Epoch
from swapjax.training.fit import Fitted, fit
from swapjax.training.gsm import gsm
from swapjax.training.lottery import Level, Ticket, lottery, reinit, shuffle
from swapjax.training.plasticity import Recovery, pruning_plasticity
from swapjax.training.rule import MaskStep, Rule
from swapjax.training.rules import *
from swapjax.training.sparse import sparse
from swapjax.training.state import SparseState, check_state, masks_of, until_mask_step
from swapjax.training.train_function import Trainer

__all__ = [
    "Epoch",
    "Fitted",
    "Level",
    "MaskStep",
    "Recovery",
    "Rule",
    "SparseState",
    "Ticket",
    "Trainer",
    "check_state",
    "exchange",
    "fit",
    "gsm",
    "lottery",
    "masks_of",
    "pruning_plasticity",
    "random_score",
    "reinit",
    "shuffle",
    "sparse",
    "until_mask_step",
]
__all__ += rules.__all__
