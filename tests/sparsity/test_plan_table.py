"""Plans as tables: narrow, and short where leaves are many."""

import jax
import jax.numpy as jnp

from swapjax.sparsity.planning import plan


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def llama(layers):
    """A network with the names of Hugging Face, unstacked."""
    params = {"lm_head.weight": floats(32000, 4096), "model.norm.weight": floats(4096)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            params[f"{block}self_attn.{name}_proj.weight"] = floats(4096, 4096)
        params[f"{block}mlp.up_proj.weight"] = floats(11008, 4096)
        params[f"{block}mlp.down_proj.weight"] = floats(4096, 11008)
        params[f"{block}input_layernorm.weight"] = floats(4096)
    return params


def test_alike_leaves_of_many_share_a_line_with_their_sums():
    made = plan(
        llama(32), 0.5, allocation="uniform",
        overrides={r"layers\.31\.mlp": 0.1, r"layers\.4\.self_attn\.v": 0.25},
    )  # fmt: skip
    lines = str(made).splitlines()
    assert max(map(len, lines)) <= 100
    paths = [line for line in lines if line.startswith("model.")]
    assert paths[:6] == [
        "model.layers.0-30.mlp.down_proj.weight",
        "model.layers.0-30.mlp.up_proj.weight",
        "model.layers.0-31.self_attn.k_proj.weight",
        "model.layers.0-31.self_attn.o_proj.weight",
        "model.layers.0-31.self_attn.q_proj.weight",
        "model.layers.0-3,5-31.self_attn.v_proj.weight",
    ]
    assert paths[6:] == [
        "model.layers.31.mlp.down_proj.weight",
        "model.layers.31.mlp.up_proj.weight",
        "model.layers.4.self_attn.v_proj.weight",
    ]
    row = lines[lines.index(paths[2]) + 1].split()
    kept = sum(n for n, p in zip(made.keep, made.paths, strict=True) if "k_proj" in p)
    assert row[:4] == ["4096x4096", "4096", "4096", f"{32 * 4096**2:,}"]
    assert row[4:] == [f"{kept:,}", "uniform"]
    assert lines[-1] == (
        "left out, belongs to a norm: model.layers.0-31.input_layernorm.weight, "
        "model.norm.weight"
    )


def test_lists_with_holes_stand_by_themselves():
    params = {f"a{i}b{j}/kernel": floats(4, 4) for i in range(5) for j in range(6)}
    assert str(plan(params, 0.5)).splitlines()[1].startswith("a0-4b0-5/kernel    4x4")
    del params["a1b2/kernel"]
    assert str(plan(params, 0.5)).count("/kernel") == 29


def test_few_leaves_have_a_line_each():
    lines = str(plan(llama(2), 0.5)).splitlines()
    assert sum("proj" in line for line in lines) == 12
    assert max(map(len, lines)) <= 100


def test_what_has_no_known_axes_is_named():
    params = {"fc": {"kernel": floats(4, 5), "bias": floats(5)}}
    told = str(plan(params, 0.5, include="fc")).splitlines()[-2:]
    assert told == [
        "stack, inputs and outputs are told by Flax Dense kernel",
        "stack, inputs and outputs are not known: fc/bias",
    ]
    one = plan(floats(4, 5), 0.5, axes={"": ("input", "output")})
    assert str(one).splitlines()[1].startswith("the array    4x5")
