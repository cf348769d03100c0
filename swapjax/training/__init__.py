"""Sparse training, and drivers that train, prune and train again."""

from swapjax.training.exchange import exchange, random_score

__all__ = ["exchange", "random_score"]
