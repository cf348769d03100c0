"""Names of tensors and the leaves that they become."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.io.names import Leaf, nested, slots


def _refused(names, mapped, told):
    with pytest.raises(ValueError, match=told):
        slots("file", names, mapped)


def test_layers_are_listed_or_stacked():
    names = ["h.1.w", "h.0.w", "h.2.w"]
    listed, kept = slots("file", names, {"h.{i}.w": "h/{i}"})
    assert {path: slot.names for path, slot in listed.items()} == {
        "h/1": ("h.1.w",),
        "h/0": ("h.0.w",),
        "h/2": ("h.2.w",),
    }
    stacked, _ = slots("file", names, {"h.{i}.w": "h"})
    assert stacked["h"].names == ("h.0.w", "h.1.w", "h.2.w")
    assert stacked["h"].stack == (3,)
    assert kept == ()


def test_two_numbers_stack_in_the_order_of_the_name():
    names = [f"h.{i}.e.{j}" for i in range(2) for j in range(3)]
    found, _ = slots("file", names, {"h.{i}.e.{j}": "w"})
    assert found["w"].stack == (2, 3)
    assert found["w"].names == tuple(names)
    found, _ = slots("file", names, {"h.{i}.e.{j}": "h/{i}/w"})
    assert found["h/1/w"].names == tuple(names[3:])


def test_numbers_from_zero_make_a_list():
    assert nested({"a/1": 1, "a/0": 0, "b/x": 2}) == {"a": [0, 1], "b": {"x": 2}}
    assert nested({"a/0": 0, "a/2": 2}) == {"a": {"0": 0, "2": 2}}
    assert nested({"": 3}) == 3


def test_maps_that_do_not_fit_are_refused():
    two = ["a.weight", "b.weight"]
    _refused(two, {"a.weight": "a"}, "names has no line for b.weight; map them, or")
    _refused(two, {"{i}.weight": "a"}, "names has no line for a.weight, b.weight")
    _refused(["h.0", "h.1"], {"h.{i}": "w", "h.0": "v"}, "both match h.0")
    _refused(
        two, {"a.weight": "w", "b.weight": "w"}, "a.weight and b.weight are both w"
    )
    _refused(two, {"*.weight": None, "c.*": None}, r"nothing in it is called 'c.\*'")
    _refused(["h.0", "h.2"], {"h.{i}": "w"}, "stacks 2 tensors, but none of number 1")
    _refused(two, {"a.weight": "w", "b.weight": "w/x"}, "w is a leaf, and w/x would")
    _refused(two, {"a.weight": "w/{i}", "b.*": None}, "must count each of .'i'. once")
    _refused(["h.0.0"], {"h.{i}.{i}": "w"}, "must count each")
    _refused(two, {"a.weight": 3}, "must be a name and map to a Leaf, a path or None")
    _refused(two, ["a.weight"], "names: must map names of the file to leaves")
    _refused(["a.b", "a/b"], None, "differ in dots and slashes alone")


def test_names_of_others_may_be_anything():
    _refused(["h.0", "h.999999999"], {"h.{i}": "w"}, "none of number 1, 2")
    _refused([f"h.{'9' * 5000}"], {"h.{i}": "w"}, "has no line for h.999")
    for name in ("", "a.", ".a", "a..b"):
        _refused([name, "b"], None, "has a part without a name; map it to another path")
    assert slots("file", [""], None)[0][""].names == ("",)


def test_many_names_are_told_by_a_few():
    _refused([f"w{i}" for i in range(9)], {"w0": "a"}, "w1, w2, w3, w4 and 4 more;")


@given(st.permutations(range(3)), st.integers(1, 3), st.booleans())
def test_the_way_back_undoes_the_way_in(axes, size, split):
    array = np.arange(24 * size).reshape(2 * size, 3, 4)
    turned = array.transpose(axes).shape
    shape = (turned[0], 1, -1) if split else None
    leaf = Leaf("w", tuple(axes), shape)
    np.testing.assert_array_equal(leaf.theirs(leaf.ours(array), array.shape), array)
