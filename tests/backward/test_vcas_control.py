"""The controller of VCAS beside NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapjax.backward.address import Site
from swapjax.backward.vcas_control import (
    LEAST,
    Budget,
    Seen,
    control,
    first_state,
    require_same_network,
    share_above,
)

BUDGET = Budget(activations=0.025, weights=0.05, step=0.01, factor=0.95, smoothing=0.6)
CUTS = (
    Site("a", "output", (0,), (4,), jnp.float32),
    Site("b", "output", (1, 0, 0), (4,), jnp.float32, (2,)),
    Site("c", "output", (1, 0, 3), (4,), jnp.float32, (2,)),
    Site("d", "output", (2,), (4,), jnp.float32),
)
ORDER = (("a", ()), ("b", (0,)), ("c", (0,)), ("b", (1,)), ("c", (1,)), ("d", ()))


def seen(added, row, sgd=1.0, own=1.0):
    """What was measured, with shares of examples from 0.1 to 0.6 or as given."""
    shares = {"a": 0.3, "b": [0.1, 0.5], "c": [0.2, 0.4], "d": 0.6}
    more = {name: jnp.asarray(x, jnp.float32) for name, x in shares.items()}
    less = {name: x - 0.05 for name, x in more.items()}
    return Seen(
        jnp.float32(sgd),
        jnp.float32(added),
        {"w": jnp.full(2, own)},
        {"w": jnp.asarray(row, jnp.float32)},
        more,
        less,
    )


def begun():
    state = first_state(
        CUTS, (CUTS[1].__class__("w", "output", (0,), (), "f4", (2,)),), ()
    )
    return state._replace(norm_share=jnp.float32(0.5), weights={"w": jnp.full(2, 0.5)})


@pytest.mark.parametrize("added", [0.02, 0.03, np.nan])
def test_rates_follow_the_variance_they_add(added):
    new = jax.jit(lambda s, x: control(s, x, ORDER, BUDGET))(
        begun(), seen(added, [0.04, 0.06])
    )
    fits = added <= 0.025
    assert new.norm_share == np.float32(0.49 if fits else 0.51)
    aims = np.array([0.3, 0.1, 0.2, 0.5, 0.4, 0.6]) - (0.05 if fits else 0)
    wanted = 0.6 + 0.4 * np.maximum.accumulate(aims)
    found = [float(new.activations[name][place]) for name, place in ORDER]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(new.weights["w"], [0.5 * 0.95, 0.5 / 0.95], rtol=1e-6)
    assert new.adapted == 1


def test_rates_stay_within_bounds():
    state, low = begun(), begun()._replace(weights={"w": jnp.full(2, LEAST)})
    high = state._replace(norm_share=jnp.float32(1), weights={"w": jnp.ones(2)})
    for _ in range(2):
        high = control(high, seen(1.0, [1.0, 1.0]), ORDER, BUDGET)
        low = control(low, seen(0.0, [0.0, 0.0]), ORDER, BUDGET)
    assert high.norm_share == 1
    assert list(high.weights["w"]) == [1, 1]
    assert list(low.weights["w"]) == [np.float32(LEAST)] * 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 100, width=32), min_size=6, max_size=6),
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2),
)
def test_shares_of_examples_have_the_shares_of_norms(norms, shares):
    found = jax.jit(share_above)(jnp.asarray(norms), jnp.asarray(shares))
    sums = np.cumsum(np.sort(np.float32(norms))[::-1], dtype=np.float32)
    for share, told in zip(shares, found, strict=True):
        count = round(float(told) * 6)
        assert 1 <= count <= 6
        assert count == 6 or sums[count - 1] >= np.float32(share) * sums[-1] * (
            1 - 1e-6
        )
        assert count == 1 or sums[count - 2] <= np.float32(share) * sums[-1] * (
            1 + 1e-6
        )


def test_the_state_of_another_network_is_told():
    with pytest.raises(ValueError, match="another network; its rates of activations"):
        require_same_network(begun(), CUTS[:3], ())
    with pytest.raises(ValueError, match="rates of weights and those wanted differ at"):
        require_same_network(begun(), CUTS, ())
