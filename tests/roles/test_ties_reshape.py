"""Reshapes tie what has to go together, for any removal of units."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from swapjax.roles.ties.reshape import Reshape, blocks, resolve
from swapjax.roles.ties.union import Union

factors = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def joined(draw, sizes):
    """The same factors, some of them merged with their neighbours."""
    shape = [1]
    for size in sizes:
        if draw(st.booleans()):
            shape.append(size)
        else:
            shape[-1] *= size
    return tuple(shape)


@settings(deadline=None)
@given(st.data())
def test_what_is_left_is_the_same_before_and_after(data):
    sizes = data.draw(factors)
    old, new = (joined(data.draw, sizes) for _ in range(2))
    union = Union()
    before, after = ([union.fresh(n) for n in shape] for shape in (old, new))
    for labels in (*before, *after):
        if len(labels) == 1 or data.draw(st.integers(0, 3)) == 0:
            union.pin(labels, "stays")
    for left, right in blocks(old, new):
        part = Reshape(tuple(before[i] for i in left), tuple(after[i] for i in right))
        if len(left) == len(right) == 1:
            union.tie(before[left[0]], after[right[0]])
        else:
            resolve(part, union)
    units = np.unique(np.concatenate([union.roots(x) for x in (*before, *after)]))
    gone = [u for u in units if u and data.draw(st.booleans())]
    entries = np.arange(math.prod(old))
    kept = []
    for axes, shape in ((before, old), (after, new)):
        stay = [np.flatnonzero(~np.isin(union.roots(x), gone)) for x in axes]
        kept.append(entries.reshape(shape)[np.ix_(*stay)].reshape(-1))
    np.testing.assert_array_equal(*kept)


def test_sets_are_those_of_a_search_through_pairs():
    generator = np.random.default_rng(0)
    union, pairs = Union(), generator.integers(0, 60, (40, 2))
    labels = union.fresh(60)
    near = {i: {i} for i in range(60)}
    for a, b in pairs:
        union.tie(labels[[a]], labels[[b]])
        near[a].add(b)
        near[b].add(a)
    for start in range(60):
        reached, new = {start}, {start}
        while new:
            new = set().union(*(near[i] for i in new)) - reached
            reached |= new
        same = np.flatnonzero(union.roots(labels) == union.roots(labels[[start]]))
        assert set(same.tolist()) == {int(i) for i in reached}
    union.pin(labels[:1], "is first")
    tied = union.roots(labels) == 0
    assert union.reasons(labels[tied]) == ("is first",)
