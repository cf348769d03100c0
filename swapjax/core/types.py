"""The vocabulary of the house, its type aliases and its status codes.

========== =====================================================================
word       meaning
========== =====================================================================
params     any pytree of arrays: a Flax dict, an nnx state, an Equinox module
masks      a pytree with the treedef of params; a leaf is ``bool[shape]``, or
           the scalar ``True`` where a leaf is never pruned, as one of shape ()
           never is; what is never pruned is in no count
leaves     the prunable arrays alone, a tuple in the order of params
support    where a mask is True
sparsity   the fraction of zeros among the *prunable* entries
density    one minus sparsity
layout     where the prunable leaves lie among those of params
plan       a layout, and how many entries to keep of its leaves
budget     a plan's counts as the solver sees them, traced under jit
pattern    n of every m entries along an axis, instead of any entries
rows       the operator G: one loss gradient per example, or per mini-batch
layer      a leaf as the matrix of a linear map, with the moment of what it reads
moment     the mean of ``a a^T`` over examples, summed over positions in each
score      arrays like the leaves; large means keep
coupling   how the projections of the pruned weights are matched with those of
           the reference weights
epsilon    entropic regularisation of a coupling, in units of its cost
damping    lambda, the ridge that holds the weights near the reference
stage      one round of gradients, support and re-fit
block      a part of the program of a loss, pruned by itself: what a network
           repeats, or a layer
rule       in sparse training, which weights to drop and to grow
mask step  in sparse training, an update with which masks change
========== =====================================================================
"""

import enum
from collections.abc import Callable
from typing import Any

import jax

Params = Any
Masks = Any
Leaves = tuple[jax.Array, ...]
LossFn = Callable[[Params, Any], jax.Array]


class Status(enum.IntEnum):
    """How a solver ended, or what a mask step met; under jit an ``int32``."""

    CONVERGED = 0
    ITERATION_LIMIT = 1
    TRANSPORT_NOT_CONVERGED = 2
    DAMPED = 3
    RANK_DEFICIENT = 4
    NOT_FINITE = 5
    BLIND_GROWTH = 6
    NOT_MASKED = 7
    OVER_BUDGET = 8
    NOT_REFITTED = 9

    @property
    def sentence(self) -> str:
        """What happened, for a human."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "The solver met its tolerance.",
    Status.ITERATION_LIMIT: (
        "The alternation between coupling and weights stopped at its limit of rounds, "
        "still moving."
    ),
    Status.TRANSPORT_NOT_CONVERGED: (
        "Sinkhorn stopped at its iteration limit; the coupling's column sums are off "
        "by the marginal error that is reported."
    ),
    Status.RANK_DEFICIENT: (
        "The rows do not determine the weights and damping is zero; the smallest "
        "change that fits was taken."
    ),
    Status.NOT_FINITE: (
        "Something became infinite or NaN: an objective, and the weights were kept "
        "without a re-fit; or weights and gradients in training."
    ),
    Status.BLIND_GROWTH: (
        "Gradients were zero wherever masks are False, so that entries grew by their "
        "index; do not multiply by masks in the loss, params are zero there already."
    ),
    Status.NOT_MASKED: (
        "Params were not zero where masks are False; apply the updates of "
        "swapjax.sparse to the params that it was given, and nothing after them."
    ),
    Status.OVER_BUDGET: (
        "The rule chose more entries than its budget, or some outside of within; "
        "swapjax.select keeps to both."
    ),
    Status.DAMPED: (
        "A system was singular, or rounding hid the damping asked for; it was raised "
        "to what details report."
    ),
    Status.NOT_REFITTED: (
        "The re-fit was judged worse than none, by the loss of the stage's examples or "
        "by another criterion, so that the weights that are kept stayed as they were."
    ),
}
