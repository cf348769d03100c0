"""Roles of flat dicts with the names of PyTorch and Hugging Face."""

import pytest
from role_words import roles_of, words_of

D, WIDE, VOCAB, EXPERTS = 16, 64, 50, 8


def linear(name, outputs, inputs, bias=True):
    found = {f"{name}.weight": (outputs, inputs)}
    return found | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name, bias=True):
    return {f"{name}.weight": (D,)} | ({f"{name}.bias": (D,)} if bias else {})


def layers(make, prefix="model.layers"):
    return {k: v for i in range(2) for k, v in make(f"{prefix}.{i}").items()}


def llama_attention(at):
    return {
        f"{at}.input_layernorm.weight": (D,),
        f"{at}.post_attention_layernorm.weight": (D,),
        f"{at}.self_attn.q_proj.weight": (D, D),
        f"{at}.self_attn.k_proj.weight": (D // 2, D),
        f"{at}.self_attn.v_proj.weight": (D // 2, D),
        f"{at}.self_attn.o_proj.weight": (D, D),
    }


ENDS = {
    "model.embed_tokens.weight": (VOCAB, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (VOCAB, D),
}


def llama(at):
    return {
        **llama_attention(at),
        f"{at}.mlp.gate_proj.weight": (WIDE, D),
        f"{at}.mlp.up_proj.weight": (WIDE, D),
        f"{at}.mlp.down_proj.weight": (D, WIDE),
    }


def mixtral(at):
    at_experts = f"{at}.block_sparse_moe.experts"
    return {
        **llama_attention(at),
        f"{at}.block_sparse_moe.gate.weight": (EXPERTS, D),
        **{f"{at_experts}.{i}.w1.weight": (WIDE, D) for i in range(EXPERTS)},
        **{f"{at_experts}.{i}.w2.weight": (D, WIDE) for i in range(EXPERTS)},
    }


def gpt2(at):
    def conv1d(name, inputs, outputs):
        return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}

    return {
        **norm(f"{at}.ln_1"),
        **conv1d(f"{at}.attn.c_attn", D, 3 * D),
        **conv1d(f"{at}.attn.c_proj", D, D),
        **conv1d(f"{at}.mlp.c_fc", D, WIDE),
        **conv1d(f"{at}.mlp.c_proj", WIDE, D),
    }


def nano_gpt(at):
    return {
        f"{at}.ln_1.weight": (D,),
        f"{at}.attn.c_attn.weight": (3 * D, D),
        f"{at}.attn.c_proj.weight": (D, D),
        f"{at}.mlp.c_fc.weight": (WIDE, D),
        f"{at}.mlp.c_proj.weight": (D, WIDE),
    }


def bert(at):
    return {
        **linear(f"{at}.attention.self.query", D, D),
        **linear(f"{at}.attention.output.dense", D, D),
        **norm(f"{at}.attention.output.LayerNorm"),
        **linear(f"{at}.intermediate.dense", WIDE, D),
        **linear(f"{at}.output.dense", D, WIDE),
    }


WTE = {"wte.weight": (VOCAB, D), "wpe.weight": (20, D)}
# Each network, and the words of its leaves that are neither vectors nor Linear weights.
NETWORKS = {
    "llama": ({**ENDS, **layers(llama)}, {"model.embed_tokens.weight": "table"}),
    "mixtral": ({**ENDS, **layers(mixtral)}, {"model.embed_tokens.weight": "table"}),
    "gpt2": (
        {**WTE, **layers(gpt2, "h"), **norm("ln_f")},
        {
            "wte.weight": "table", "wpe.weight": "table",
            **{
                f"h.{i}.{name}.weight": "io"
                for i in range(2)
                for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
            },
        },
    ),
    "nanogpt": (
        {**WTE, **layers(nano_gpt, "h")},
        {"wte.weight": "table", "wpe.weight": "table"},
    ),
    "bert": (
        {
            "embeddings.word_embeddings.weight": (VOCAB, D),
            "embeddings.position_embeddings.weight": (20, D),
            "embeddings.token_type_embeddings.weight": (2, D),
            **norm("embeddings.LayerNorm"),
            **layers(bert, "encoder.layer"),
            **linear("pooler.dense", D, D),
        },
        {
            f"embeddings.{name}_embeddings.weight": "table"
            for name in ("word", "position", "token_type")
        },
    ),
    "vit": (
        {
            "vit.embeddings.cls_token": (1, 1, D),
            "vit.embeddings.position_embeddings": (1, 5, D),
            "vit.embeddings.patch_embeddings.projection.weight": (D, 3, 4, 4),
            "vit.embeddings.patch_embeddings.projection.bias": (D,),
            **layers(bert, "vit.encoder.layer"),
            **norm("vit.layernorm"),
            **linear("classifier", 10, D),
        },
        {"vit.embeddings.patch_embeddings.projection.weight": "oiii"},
    ),
    "clip": (
        {
            "embeddings.class_embedding": (D,),
            "embeddings.patch_embedding.weight": (D, 3, 4, 4),
            "embeddings.position_embedding.weight": (5, D),
            "logit_scale": (),
        },
        {
            "embeddings.patch_embedding.weight": "oiii",
            "embeddings.position_embedding.weight": "table",
        },
    ),
    "whisper": (
        {
            "model.encoder.conv1.weight": (D, 8, 3),
            "model.encoder.conv1.bias": (D,),
            "model.encoder.conv2.weight": (D, D, 3),
            "model.encoder.conv2.bias": (D,),
            "model.decoder.embed_positions.weight": (20, D),
            "model.decoder.embed_tokens.weight": (VOCAB, D),
            "model.decoder.layers.0.self_attn.k_proj.weight": (D, D),
            **linear("model.decoder.layers.0.fc1", WIDE, D),
        },
        {
            "model.encoder.conv1.weight": "oii",
            "model.encoder.conv2.weight": "oii",
            "model.decoder.embed_positions.weight": "table",
            "model.decoder.embed_tokens.weight": "table",
        },
    ),
    "resnet": (
        {
            "conv1.weight": (D, 3, 7, 7),
            **norm("bn1"),
            "bn1.running_mean": (D,), "bn1.running_var": (D,),
            "bn1.num_batches_tracked": (),
            "layer1.0.conv1.weight": (D, D, 3, 3),
            "layer1.0.downsample.0.weight": (D, D, 1, 1),
            **norm("layer1.0.downsample.1"),
            "features.1.conv.0.0.weight": (WIDE, 1, 3, 3),
            "conv_norm.0.weight": (D, 3, 41, 11), "features.2.weight": (D, 3, 3, 5),
            **linear("fc", 10, D),
        },
        {
            "conv1.weight": "oiii", "layer1.0.conv1.weight": "oiii",
            "layer1.0.downsample.0.weight": "oiii",
            "features.1.conv.0.0.weight": "oiii",
            "conv_norm.0.weight": "oiii", "features.2.weight": "oiii",
        },
    ),
    "u-net": (
        {
            "up1.up.weight": (D, 8, 2, 2), "up1.up.bias": (8,),
            "deconv.weight": (D, D, 2, 2), "deconv.bias": (D,),
            "up1.conv.weight": (8, D, 3, 3), "up1.conv.bias": (8,),
            **linear("time_embed.0", WIDE, D),
        },
        {
            "up1.up.weight": "ioii", "deconv.weight": "ioii",
            "up1.conv.weight": "oiii",
        },
    ),
    "recurrent": (
        {
            f"rnn.{kind}_{name}_l{i}{way}": (48, *axes[i])
            for name in ("ih", "hh")
            for kind, axes in (("weight", ((8,), (D,))), ("bias", ((), ())))
            for i in range(2)
            for way in ("", "_reverse")
        },
        {},
    ),
    "attention": (
        {
            "attn.in_proj_weight": (3 * D, D), "attn.in_proj_bias": (3 * D,),
            **linear("attn.out_proj", D, D),
            "other.q_proj_weight": (D, D), "other.k_proj_weight": (D, 8),
        },
        {},
    ),
    "weight norm": (
        {
            "fc.weight_g": (D, 1), "fc.weight_v": (D, 8), "fc.bias": (D,),
            "conv.parametrizations.weight.original0": (D, 1, 1),
            "conv.parametrizations.weight.original1": (D, 8, 3),
        },
        {"conv.parametrizations.weight.original1": "oii"},
    ),
    "sequential": (
        {"0.weight": (D, 3, 5), **norm("1"), **linear("4", 10, WIDE)},
        {"0.weight": "oii"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    shapes, expected = NETWORKS[name]
    for path, found in words_of(shapes).items():
        is_linear = "weight" in path and len(shapes[path]) == 2 and "_g" not in path
        assert found == expected.get(path, "oi" if is_linear else "vector"), path


def test_stacked_networks():
    """`torch.func.stack_module_state` and vmap put an axis before all leaves."""
    for name in ("llama", "gpt2", "bert", "vit", "resnet", "recurrent"):
        shapes, _ = NETWORKS[name]
        once = words_of(shapes)
        stacked = words_of({path: (5, *shape) for path, shape in shapes.items()})
        for path, word in once.items():
            is_matrix = set(word) <= set("eios")
            assert stacked[path] == ("s" + word if is_matrix else word), (name, path)


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [
        ((EXPERTS, 2 * WIDE, D), (EXPERTS, D, WIDE), "eoi"),  # Mixtral and Qwen
        ((EXPERTS, D, 2 * WIDE), (EXPERTS, WIDE, D), "eio"),  # Llama 4
    ],
)
def test_experts_in_one_leaf(up, down, expected):
    at = "model.layers.0.mlp"
    shapes = {
        f"{at}.gate.weight": (EXPERTS, D),
        f"{at}.experts.gate_up_proj": up,
        f"{at}.experts.down_proj": down,
    }
    assert list(words_of(shapes).values()) == ["oi", expected, expected]
    biased = {
        f"{at}.experts.gate_up_proj": (EXPERTS, D, 2 * WIDE),
        f"{at}.experts.gate_up_proj_bias": (EXPERTS, 2 * WIDE),
    }
    assert list(words_of(biased).values()) == ["eio", "vector"]


def test_the_bias_tells_which_axis_of_a_weight_is_outputs():
    assert words_of({"fc.weight": (4, 5), "fc.bias": (5,)})["fc.weight"] == "io"
    assert words_of({"fc.weight": (5, 4), "fc.bias": (5,)})["fc.weight"] == "oi"
    assert words_of({"fc.weight": (5, 4)})["fc.weight"] == "oi"


def test_reasons_name_the_convention():
    shapes = {**ENDS, **gpt2("h.0")}
    told = dict(zip(shapes, (role.reason for role in roles_of(shapes)), strict=True))
    assert told["lm_head.weight"] == "PyTorch Linear weight"
    assert told["h.0.attn.c_proj.weight"] == "PyTorch Conv1D weight"
    assert told["model.norm.weight"] == "belongs to a norm"
    assert told["model.embed_tokens.weight"] == "is a table of embeddings"
