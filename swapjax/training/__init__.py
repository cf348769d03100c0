"""Sparse training, and drivers that train, prune and train again."""

from swapjax.core.objective import Objective
from swapjax.training import rules
from swapjax.training.admm import admm
from swapjax.training.admm_state import AdmmState
from swapjax.training.drop_and_grow import exchange, random_score
from swapjax.training.elsa import elsa
from swapjax.training.epoch import Epoch
from swapjax.training.fit import Fitted, fit
from swapjax.training.gsm import gsm
from swapjax.training.lottery import Level, Ticket, lottery, reinit, shuffle
from swapjax.training.plasticity import Recovery, pruning_plasticity
from swapjax.training.residuals import Residuals, residuals
from swapjax.training.rule import MaskStep, Rule
from swapjax.training.rules import *
from swapjax.training.sharpness import sharpness_aware
from swapjax.training.sparse import sparse
from swapjax.training.state import SparseState, check_state, masks_of, until_mask_step
from swapjax.training.train_function import Trainer

__all__ = [
    "AdmmState",
    "Epoch",
    "Fitted",
    "Level",
    "MaskStep",
    "Objective",
    "Recovery",
    "Residuals",
    "Rule",
    "SparseState",
    "Ticket",
    "Trainer",
    "admm",
    "check_state",
    "elsa",
    "exchange",
    "fit",
    "gsm",
    "lottery",
    "masks_of",
    "pruning_plasticity",
    "random_score",
    "reinit",
    "residuals",
    "sharpness_aware",
    "shuffle",
    "sparse",
    "until_mask_step",
]
__all__ += rules.__all__
