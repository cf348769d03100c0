"""Leaves that reach a product through what makes something else of zeros."""

import jax
import jax.numpy as jnp
import pytest

from swapjax.roles.program import trace_roles

SHAPE = jax.ShapeDtypeStruct((5, 3), jnp.float32)
x = jax.ShapeDtypeStruct((2, 5), jnp.float32)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("exp", lambda p: jnp.exp(p)),
        ("exp", lambda p: jax.nn.softplus(p)),
        ("exp", lambda p: jax.nn.softmax(p)),
        ("logistic", lambda p: jnp.clip(jax.nn.sigmoid(p) * 1.2 - 0.1, 0, 1)),
        ("", lambda p: p * jax.nn.sigmoid(p)),
        ("", lambda p: jnp.tanh(jax.nn.relu(p))),
        ("", lambda p: jnp.sign(p) * 2 ** jnp.round(jnp.log2(jnp.abs(p)))),
        ("", lambda p: p * jax.lax.rsqrt(jnp.sum(p**2, 0) + 1e-6)),
        ("", lambda p: p - jnp.log(jnp.sum(jnp.exp(p), 0))),
    ],
)
def test_a_leaf_whose_zeros_do_not_stay_is_no_matrix(name, kernel):
    (role,) = trace_roles(lambda p, x: jnp.mean(x @ kernel(p)), SHAPE, x)
    if name:
        assert role.kind == "unknown"
        wanted = f"goes through {name}, which keeps no zeros, before it meets data"
        assert role.reason == wanted
    else:
        assert role.axes == ("input", "output")


def test_gates_are_no_matrices_but_what_they_gate_is():
    def loss(p, x):
        return jnp.mean(x @ (p["w"] * jax.nn.sigmoid(p["gate"])))

    gate, w = trace_roles(loss, {"gate": SHAPE, "w": SHAPE}, x)
    assert (gate.kind, w.kind) == ("unknown", "matrix")
