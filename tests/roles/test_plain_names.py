"""Roles of networks written by hand, and of names that tell nothing."""

import pytest
from role_words import roles_of, words_of

from swapjax.roles.names import name_roles


@pytest.mark.parametrize(
    "name",
    ["w", "W", "w1", "w_2", "wq", "wo", "w_in", "w_out", "W_hh", "Uz", "weights",
     "qkv", "q_proj", "dt_proj", "up", "down", "router", "head"],
)  # fmt: skip
def test_names_of_matrices(name):
    assert words_of({name: (4, 5)}) == {name: "io"}
    assert words_of({name: (2, 4, 5)}) == {name: "unknown"}
    assert words_of({name: (3, 3, 4, 5)}) == {name: "unknown"}
    assert words_of({name: (5,)}) == {name: "unknown"}


@pytest.mark.parametrize(
    "name", ["b", "b1", "b_in", "bias", "scale", "gamma", "beta", "offset", "scale1"]
)
def test_names_of_vectors(name):
    assert words_of({name: (4,)}) == {name: "vector"}


@pytest.mark.parametrize("name", ["pos_embed", "pos_embedding", "cls_token"])
def test_names_of_what_is_added(name):
    assert words_of({name: (1, 7, 4)}) == {name: "vector"}


@pytest.mark.parametrize("name", ["embedding", "wte", "wpe", "emb", "tok_embeddings"])
def test_names_of_tables(name):
    assert words_of({name: (9, 4)}) == {name: "table"}


@pytest.mark.parametrize("name", ["0", "theta", "x", "window", "warp", "logits"])
def test_names_that_tell_nothing(name):
    (role,) = roles_of({name: (4, 5)})
    assert (role.kind, role.axes) == ("unknown", ())
    assert role.reason == "has no name that tells what it does"


def test_a_bare_array_and_no_array():
    assert [role.kind for role in name_roles([""], [(4, 5)])] == ["unknown"]
    assert name_roles([], []) == ()


def test_the_bias_tells_which_axis_of_a_matrix_is_outputs():
    assert words_of({"w1": (5, 4), "b1": (5,)})["w1"] == "oi"
    assert words_of({"w1": (4, 5), "b1": (5,), "b": (4,)})["w1"] == "io"
    assert words_of({"kernel": (5, 4), "bias": (5,)})["kernel"] == "oi"


def test_two_factors():
    assert words_of({"a": (8, 4), "b": (4, 12)}) == {"a": "unknown", "b": "unknown"}
    assert words_of({"a": (8,), "b": (4,)})["b"] == "vector"


def test_the_bias_tells_a_convolution():
    assert words_of({"c1/w": (3, 3, 8, 16), "c1/b": (16,)})["c1/w"] == "iiio"
    assert words_of({"c1/w": (16, 8, 3, 3), "c1/b": (16,)})["c1/w"] == "oiii"
    assert words_of({"conv/w": (3, 8, 16), "conv/b": (16,)})["conv/w"] == "iio"
    assert words_of({"c1/w": (4, 8, 16), "c1/b": (16,)})["c1/w"] == "unknown"
    assert words_of({"c1/w": (16, 3, 3, 16), "c1/b": (16,)})["c1/w"] == "unknown"


def test_a_window_told_by_its_module_fits_one_order():
    assert words_of({"conv_transpose/w": (3, 3, 5, 8)})["conv_transpose/w"] == "unknown"
    found = words_of({"conv/w": (3, 3, 5, 8), "depthwise/w": (8, 1, 3, 2)})
    assert found == {"conv/w": "iiio", "depthwise/w": "oiii"}


def test_kernels_and_weights_of_plain_dicts():
    assert words_of({"fc/kernel": (4, 5)}) == {"fc/kernel": "io"}
    assert words_of({"kernel": (3, 3, 8, 16)}) == {"kernel": "iiio"}
    assert words_of({"conv/kernel": (3, 8, 16)}) == {"conv/kernel": "iio"}
    assert words_of({"fc/weight": (5, 4)}) == {"fc/weight": "oi"}
    assert words_of({"conv/weight": (16, 8, 3, 3)}) == {"conv/weight": "oiii"}


def test_gemma():
    at = "transformer/layer_0"
    expected = {
        "transformer/embedder/input_embedding": ((100, 16), "table"),
        f"{at}/attn/q_einsum/w": ((4, 16, 8), "oio"),
        f"{at}/attn/kv_einsum/w": ((2, 1, 16, 8), "ooio"),
        f"{at}/attn/attn_vec_einsum/w": ((4, 8, 16), "iio"),
        f"{at}/mlp/gating_einsum": ((2, 16, 64), "sio"),
        f"{at}/mlp/linear": ((64, 16), "io"),
        f"{at}/pre_attention_norm/scale": ((16,), "vector"),
    }
    found = words_of({path: shape for path, (shape, _) in expected.items()})
    assert found == {path: word for path, (_, word) in expected.items()}


def test_keras():
    shapes = {
        "gru/kernel": (3, 12),
        "gru/recurrent_kernel": (4, 12),
        "gru/bias": (2, 12),
    }
    found = words_of(shapes)
    assert found["gru/recurrent_kernel"] == "io"
    assert found["gru/bias"] == "vector"
