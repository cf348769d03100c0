"""Output heads, found in programs and by names."""

import jax
import jax.numpy as jnp
import pytest

from swapjax.core import trees
from swapjax.roles.names import name_roles
from swapjax.roles.program import trace_roles

WIDTH, WORDS = 4, 7


def _shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def _heads(loss_fn, params, batch):
    roles = trace_roles(loss_fn, params, batch)
    pairs = zip(trees.paths(params), roles, strict=True)
    return [path for path, role in pairs if role.is_output_head]


X, TOKENS = _shape(3, WIDTH), _shape(2, 5, dtype="int32")
SQUARE = _shape(WIDTH, WIDTH)


def _entropy(logits):
    return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])


def test_the_last_layer_of_a_perceptron_is_one():
    def loss(p, x):
        x = jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]
        return _entropy(x @ p["c"] + p["bias"]) + 0.1 * jnp.sum(p["a"] ** 2)

    params = {"a": SQUARE, "b": SQUARE, "c": SQUARE, "bias": _shape(WIDTH)}
    assert _heads(loss, params, X) == ["c"]


def test_a_residual_stream_ends_in_none():
    def block(x, w):
        return x + jnp.tanh(x @ w["up"]) @ w["down"]

    layer = {"up": SQUARE, "down": SQUARE}

    def listed(p, x):
        for w in p:
            x = block(x, w)
        return jnp.mean(x**2)

    def scanned(p, x):
        x, _ = jax.lax.scan(lambda x, w: (block(x, w), None), x, p)
        return jnp.mean(x**2)

    stack = jax.tree.map(lambda w: _shape(3, *w.shape), layer)
    assert _heads(listed, [layer] * 3, X) == []
    assert _heads(scanned, stack, X) == []

    def with_head(p, x):
        x, _ = jax.lax.scan(lambda x, w: (block(x, w), None), x, p["blocks"])
        return _entropy(x @ p["out"])

    params = {"blocks": stack, "out": SQUARE}
    assert _heads(with_head, params, X) == ["out"]
    assert _heads(jax.checkpoint(with_head), params, X) == ["out"]


def test_several_losses_have_several_heads():
    def loss(p, x):
        x = jnp.tanh(x @ p["trunk"])
        return _entropy(x @ p["one"]) + _entropy(x @ p["two"])

    params = {"one": SQUARE, "trunk": SQUARE, "two": SQUARE}
    assert _heads(loss, params, X) == ["one", "two"]


def test_what_attention_reads_is_none():
    def loss(p, tokens):
        x = p["table"][tokens]
        read = jax.nn.softmax((x @ p["q"]) @ jnp.swapaxes(x @ p["k"], 1, 2)) @ x
        return jax.lax.cond(
            tokens[0, 0] > 0, lambda x: _entropy(x @ p["head"]), jnp.mean, read
        )

    params = {"head": _shape(WIDTH, WORDS), "k": SQUARE, "q": SQUARE}
    params["table"] = _shape(WORDS, WIDTH)
    # Queries and keys end in the loss too, through no further matrix but the head.
    assert _heads(loss, params, TOKENS) == ["head"]


def test_loops_of_while_settle():
    def loss(p, x):
        x = jax.lax.while_loop(
            lambda c: jnp.sum(c) < 3.0, lambda c: jnp.tanh(c @ p["core"]), x
        )
        return _entropy(x @ p["head"])

    assert _heads(loss, {"core": SQUARE, "head": SQUARE}, X) == ["head"]


@pytest.mark.parametrize(
    ("path", "is_head"),
    [
        ("lm_head.weight", True),
        ("model/head/kernel", True),
        ("classifier.weight", True),
        ("heads.0.weight", False),
        ("head_proj/kernel", False),
        ("attention/heads/kernel", False),
        ("fc3/kernel", False),
    ],
)
def test_names_tell_heads_too(path, is_head):
    (role,) = name_roles([path], [(4, 3)])
    assert role.is_output_head is is_head
