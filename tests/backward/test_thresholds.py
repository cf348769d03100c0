"""Predicted thresholds against a queue, and rates."""

import collections
import statistics

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.backward import rates
from swapjax.backward.thresholds import deviation, predicted, pushed, quantile

NUMBERS = st.floats(0, 8, width=16)


@hypothesis.given(
    st.lists(st.tuples(NUMBERS | st.just(np.inf) | st.just(np.nan), st.booleans())),
)
def test_a_fifo_is_a_queue(steps):
    """Which takes what is finite and comes of some entries."""
    queue = collections.deque(maxlen=3)
    deviations, filled = jnp.zeros(3), jnp.asarray(0)
    for new, some in steps:
        if some and np.isfinite(new):
            queue.append(new)
        n = jnp.asarray(10.0 if some else 0.0)
        deviations, filled = pushed(deviations, filled, jnp.asarray(new), n)
    wanted = statistics.fmean(queue) if len(queue) == 3 else 0
    assert int(filled) == len(queue)
    assert float(predicted(deviations, filled)) == pytest.approx(wanted, rel=1e-5)


def test_deviations_are_of_all_entries_or_of_those_that_are_not_zero():
    told = jnp.asarray([[6.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    factor = np.sqrt(np.pi / 2)
    np.testing.assert_allclose(deviation(told), [1.5 * factor, 0], rtol=1e-6)
    np.testing.assert_allclose(deviation(told, dense=True), [2 * factor, 0], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 0.99])
def test_a_schedule_is_a_rate_a_step(rate):
    wanted = statistics.NormalDist().inv_cdf((1 + rate) / 2)
    assert quantile(rate) == pytest.approx(wanted, abs=1e-12)
    step = jnp.asarray(3)
    for given in (rate, lambda step: rate + 0 * step):
        assert float(rates.level(given, step)) == pytest.approx(wanted, rel=1e-5)
