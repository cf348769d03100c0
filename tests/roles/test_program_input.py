"""What roles are found for, and what they are refused for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.roles.find import find_roles
from swapjax.roles.program import trace_roles
from swapjax.roles.role import Role, matrix

IN_OUT = matrix("input", "output")


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


x, square = floats(2, 5), floats(5, 5)


def product(p, x):
    return jnp.mean(x @ p)


def test_a_loss_that_fails_says_for_which_shapes():
    with pytest.raises(TypeError, match="contracting dimensions") as failed:
        trace_roles(lambda p, b: product(p, b["x"]), floats(4, 3), {"x": x})
    note = (
        "loss_fn was traced for a batch of float32[2, 5], to see what each leaf of "
        "params does"
    )
    assert note in failed.value.__notes__


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": "a"}, "^batch: x must be an array of numbers, got a str$"),
        (np.array([None]), "^batch: it must be an .*, got a ndarray of object$"),
    ],
)
def test_a_batch_of_other_things_than_numbers_is_an_error(batch, message):
    with pytest.raises(ValueError, match=message):
        trace_roles(product, square, batch)


def test_numbers_keys_and_switches_are_data():
    def loss(p, b):
        return product(p, b["x"] * jax.random.uniform(b["key"]) * b["on"] * b["n"])

    batch = {"x": x, "key": jax.random.key(0), "on": True, "n": 2}
    assert trace_roles(loss, square, batch) == (IN_OUT,)


def test_functions_and_switches_of_a_module_stay_as_they_are():
    def loss(p, x):
        return product(p["w"], p["act"](x)) if p["trains"] else 0.0

    params = {"act": jnp.tanh, "trains": True, "w": square}
    none = Role("unknown")
    for found in (find_roles(params, loss, x), find_roles(params)):
        assert found == (none, none, IN_OUT)
        assert found[0].reason == found[1].reason == "is no array"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("w", r"axes: must give words by regular expression, .* got 'w'"),
        ({3: ("input",)}, "axes: 3 is not a regular expression"),
        ({"w": 2}, "axes: w has 2 axes, .*; give a word for each, got 2"),
        ({"w": ("input",)}, r"give a word for each, got \('input',\)"),
    ],
)
def test_axes_of_other_kinds_are_errors(axes, message):
    with pytest.raises(ValueError, match=message):
        find_roles({"w": square}, axes=axes)


def test_a_loss_may_leave_it_to_the_compiler_where_arrays_lie():
    kind = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((4,), ("model",), axis_types=kind)

    def place(*spec):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    def over(*spec):
        return jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=place(*spec))

    wide, tall, x = over(None, "model"), over("model"), over()

    def loss(p, x):
        return jnp.mean((x @ p[0]) @ p[1])

    def explicit(p, x):
        return jnp.mean(jnp.dot(x @ p[0], p[1], out_sharding=place()))

    for function in (loss, explicit):
        assert trace_roles(function, (wide, tall), x) == (IN_OUT, IN_OUT)
    with pytest.raises(ValueError, match="must be traceable"):
        trace_roles(lambda p, x: float(x[0, 0]), wide, x)


def test_a_loss_is_a_function():
    with pytest.raises(ValueError, match=r"^loss_fn must be a function .*, got 3$"):
        find_roles(square, 3, x)
