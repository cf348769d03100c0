"""Runs of rules on given gradients, and the sorts that tell what rules do."""

import math
from fractions import Fraction

import numpy as np
import optax
from sparse_runs import (
    FINAL,
    KEY,
    QUICK,
    STEPS,
    by_gradients,
    follow,
    gradients,
    initial,
)

from swapjax import constant, cubic
from swapjax.training import check_state, sparse

RATE, BETA = 0.05, 0.9

MASK_STEPS = 2, 4, 6, 8

GRADUAL = cubic(2, 8, every=2, initial=0.4)

STEADY = constant(2, 8, every=2)


def make(rule, schedule, optimizer=None, **options):
    """A rule with momentum, or with another optimizer."""
    goal = {} if "plan" in options else {"sparsity": FINAL}
    settings = {**goal, "schedule": schedule, "steps": STEPS, "key": KEY}
    momentum = optax.sgd(RATE, momentum=BETA)
    return sparse(optimizer or momentum, rule, **(settings | options))


def run(tx, params=None, given=None):
    """Params and states after 0, 1, ... updates by the known gradients."""
    params = initial() if params is None else params
    step = by_gradients(tx, compiler_options=QUICK)
    trail = follow(step, params, tx.init(params), given or gradients())
    assert step._cache_size() == 1
    check_state(trail[-1][1])
    return trail


def ranked(values, places):
    """Places by their value, the largest first."""
    return sorted(places, key=lambda i: (-values[i], i))


def strongest(values, masks, keep):
    """The largest of all leaves together within masks, and one at least of each."""
    order = [
        (-abs(float(v.flat[i])), leaf, i)
        for leaf, (v, m) in enumerate(zip(values, masks, strict=True))
        for i in np.flatnonzero(m)
    ]
    order.sort()
    sure = [next(e for e in order if e[1] == leaf) for leaf in range(len(values))]
    rest = [e for e in order if e not in sure]
    new = [np.zeros(m.shape, bool) for m in masks]
    for _, leaf, i in (sure + rest)[:keep]:
        new[leaf].flat[i] = True
    return new


def keep_at(t):
    """How many of all 72 entries the cubic schedule keeps at a mask step."""
    i = min(MASK_STEPS.index(t) if t in MASK_STEPS else 3, 3)
    left = (1 - Fraction(i, 3)) ** 3
    return math.floor(72 * (1 - Fraction(7, 10) + Fraction(3, 10) * left) + 0.5)
