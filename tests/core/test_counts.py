"""Counts that leave the range of an int32, at shapes and limits that fit a test."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import swapjax
from swapjax.core import counts
from swapjax.sparsity import kept_index

MANY = jax.ShapeDtypeStruct((2**15, 2**13), jnp.bfloat16)  # 2^28 entries
MORE = jax.ShapeDtypeStruct((7 * 2**15, 2**14), jnp.bfloat16)
SEVERAL = {f"l{i}": {"kernel": MANY} for i in range(9)}
ONE = {"kernel": MORE}
SAID = {"several": "a group of 2,415,919,104 entries", "one": "a leaf of 3,758,096,384"}
KEY = jax.random.key(0)


@pytest.mark.parametrize("params", ["several", "one"])
@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.999])
@pytest.mark.parametrize(
    "rule", [swapjax.gmp(), swapjax.static(), swapjax.ste()], ids=str
)
def test_a_group_that_cannot_be_counted_is_told(params, sparsity, rule):
    tx = swapjax.sparse(
        optax.sgd(0.1), rule, sparsity=sparsity, key=KEY,
        schedule=None if rule.choose is None else swapjax.cubic(0, 9, initial=0.02),
    )  # fmt: skip
    tree = SEVERAL if params == "several" else ONE
    if rule.name == "static" and tree is SEVERAL:
        # Random masks are ranked leaf by leaf.
        jax.eval_shape(tx.init, tree)
        return
    with pytest.raises(ValueError, match=SAID[params]):
        jax.eval_shape(tx.init, tree)


def test_budgets_masks_and_momentum_tell_it_too():
    target = swapjax.plan(SEVERAL, 0.01)
    assert target.kept > counts.LIMIT
    with pytest.raises(ValueError, match=SAID["several"]):
        _ = target.budget
    with pytest.raises(ValueError, match=SAID["several"]):
        swapjax.gsm(0.01).init(SEVERAL)
    with pytest.raises(ValueError, match="keep it as several leaves, or exclude it"):
        _ = swapjax.plan(ONE, 0.5, allocation="erk").budget
    pattern = swapjax.plan(ONE, pattern=swapjax.NM(2, 4))
    with pytest.raises(ValueError, match=SAID["one"]):
        _ = pattern.budget
    with pytest.raises(ValueError, match="masks: values are checked here"):
        swapjax.density({"kernel": jax.ShapeDtypeStruct((2, 2), bool)})


def test_more_in_all_than_an_int32_holds_is_no_fault():
    params = {f"l{i}": {"kernel": MANY} for i in range(20)}
    target = swapjax.plan(params, 0.25, allocation="uniform")
    assert target.kept == 15 * 2**28
    assert target.budget.keep.tolist() == [3 * 2**26] * 20
    tx = swapjax.sparse(
        optax.sgd(0.1), swapjax.rigl(), plan=target, key=KEY,
        schedule=swapjax.constant(0, 9, every=3),
    )  # fmt: skip
    state = jax.eval_shape(tx.init, params)
    jax.eval_shape(tx.update, params, state, params)


numbers = st.lists(st.integers(0, counts.LIMIT), min_size=1, max_size=40)


@given(numbers, numbers, st.integers(-2, 2))
def test_sums_beyond_an_int32_are_compared_exactly(first, second, off):
    as_arrays = lambda values: [np.int32(v) for v in values]  # noqa: E731
    assert bool(counts.exceeds(as_arrays(first), as_arrays(second))) == (
        sum(first) > sum(second)
    )
    near = [min(max(first[0] + off, 0), counts.LIMIT), *first[1:]]
    assert bool(counts.exceeds(as_arrays(near), as_arrays(first))) == (
        sum(near) > sum(first)
    )


def test_an_array_beyond_the_limit_is_counted_in_parts(monkeypatch):
    mask = np.random.default_rng(0).random((5, 6, 7)) < 0.4
    assert counts.partial_counts(jnp.asarray(mask)).shape == ()
    monkeypatch.setattr(counts, "LIMIT", 100)
    assert counts.partial_counts(jnp.asarray(mask)).shape == (5, 6)
    assert counts.count_true(mask) == mask.sum()
    assert swapjax.density({"a": mask, "b": True}) == mask.sum() / mask.size


def test_entries_that_cannot_be_numbered_are_told():
    leaf = jax.ShapeDtypeStruct((2**15, 2**15), bool)
    with pytest.raises(ValueError, match="numbers all 3,221,225,472 prunable entries"):
        jax.eval_shape(kept_index.number, (leaf,) * 3)


def test_a_stack_counts_layer_by_layer():
    stack = {"kernel": jax.ShapeDtypeStruct((7, 2**15, 2**14), jnp.bfloat16)}
    target = swapjax.plan(stack, 0.5, allocation="uniform")
    assert target.budget.keep.tolist() == [2**28] * 7
    with pytest.raises(ValueError, match="a group of 3,758,096,384 entries"):
        swapjax.plan(stack, 0.5).budget  # noqa: B018
