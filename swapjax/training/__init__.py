"""Sparse training, and drivers that train, prune and train again."""

from swapjax.training.exchange import exchange, random_score
from swapjax.training.lottery import Level, Ticket, lottery, reinit, shuffle
from swapjax.training.plasticity import Recovery, pruning_plasticity
from swapjax.training.trainer import Trainer

__all__ = [
    "Level",
    "Recovery",
    "Ticket",
    "Trainer",
    "exchange",
    "lottery",
    "pruning_plasticity",
    "random_score",
    "reinit",
    "shuffle",
]
