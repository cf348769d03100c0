"""PyTorch's weights: transposed convolutions, pruned ones, wrapped names."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from trees import equal

from swapjax.io import checkpoint
from swapjax.io.torch_weights import to_arrays

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def nest(leaves):
    """A tree of dicts from leaves by path."""
    tree = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[name] = jnp.asarray(leaf)
    return tree


def load(tmp_path, arrays, like, **options):
    np.savez(tmp_path / "w.npz", **arrays)
    return checkpoint.load_params(tmp_path / "w.npz", like, **options)


# Transposed convolutions.


def transposed_sum(x, weight, stride):
    """What PyTorch computes of x [..., in] with a weight [in, out, ...].

    ``y[o, s i + a] += x[c, i] w[c, o, a]`` over channels in, positions and taps.
    """
    taps = weight.shape[2:]
    sides = [(n - 1) * stride + k for n, k in zip(x.shape[:-1], taps, strict=True)]
    y = np.zeros((*sides, weight.shape[1]))
    for at in np.ndindex(*x.shape[:-1]):
        part = tuple(
            slice(stride * i, stride * i + k) for i, k in zip(at, taps, strict=True)
        )
        y[part] += np.moveaxis(np.einsum("c,co...->o...", x[at], weight), 0, -1)
    return y


@pytest.mark.parametrize("taps", [(3,), (2, 3), (3, 2, 2)])
@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_transposed_convolutions_compute_what_they_do_there(
    tmp_path, taps, outputs, turned
):
    weight, x = draw(2, outputs, *taps), draw(*(3,) * len(taps), 2)
    layer = nnx.ConvTranspose(
        2, outputs, taps, strides=2, padding="VALID", use_bias=False,
        transpose_kernel=turned, rngs=nnx.Rngs(0),
    )  # fmt: skip
    # A kernel of transpose_kernel=True lies as PyTorch's would for a convolution.
    names = [] if turned else ["kernel"]
    like = nnx.state(layer)
    nnx.update(layer, load(tmp_path, {"weight": weight}, like, transposed=names))
    wanted = transposed_sum(x, weight, 2)
    # Flax pads by a row of zeros where taps are fewer than the stride.
    got = np.asarray(layer(x[None]))[0][tuple(map(slice, wanted.shape))]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


SQUARE = draw(4, 4, 3, 3)
PLAIN, TURNED = SQUARE.transpose(2, 3, 1, 0), SQUARE.transpose(2, 3, 0, 1)[::-1, ::-1]


@pytest.mark.parametrize(
    "layer",
    ["conv2", "layer1.0.conv1", "downsample.0", "module.Conv_0", "shortcut.0.conv",
     "input_conv", "out_conv", "groupconv", "group_conv", "firstConv", "conv_type"],
)  # fmt: skip
def test_a_name_may_tell_of_a_convolution(tmp_path, layer):
    path = f"{layer.removeprefix('module.').replace('.', '/')}/kernel"
    like = nest({path: np.zeros((3, 3, 4, 4))})
    assert equal(load(tmp_path, {f"{layer}.weight": SQUARE}, like), nest({path: PLAIN}))


@pytest.mark.parametrize(
    "layer",
    ["up", "up3", "dec.deconv2", "upconv1", "ConvTranspose_0", "conv_transpose2d",
     "decoder.tconv", "Upsample", "transposed", "dec_tconv", "trans_conv", "conv_t",
     "ConvT_2"],
)  # fmt: skip
def test_a_name_may_tell_of_a_transposed_one_which_is_said(tmp_path, layer):
    path = f"{layer.replace('.', '/')}/kernel"
    like = nest({path: np.zeros((3, 3, 4, 4))})
    with pytest.warns(UserWarning, match=f"{layer}.weight is taken for the kernel of"):
        loaded = load(tmp_path, {f"{layer}.weight": SQUARE}, like)
    assert equal(loaded, nest({path: TURNED}))
    # Being told is better.
    told = load(tmp_path, {f"{layer}.weight": SQUARE}, like, transposed=())
    assert equal(told, nest({path: PLAIN}))


@pytest.mark.parametrize(
    "layer",
    ["features.3", "0", "net.1.layer", "up1.conv", "decoder.conv1", "generator.2",
     "deconvs.0", "mixer", "conv_up", "up2_conv", "decoder_conv"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (3, 3, 1, 1), (5, 5, 7)])
def test_where_neither_shape_nor_name_tells_one_must_say(tmp_path, layer, shape):
    path = f"{layer.replace('.', '/')}/kernel"
    weight = draw(*shape)
    like = nest({path: np.zeros((*shape[2:], *shape[:2]))})
    arrays = {f"{layer}.weight": weight}
    message = (
        rf"w\.npz: {layer}\.weight may be the kernel of .* transposed=\['{path}'\]"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path, arrays, like)
    axes = range(2, len(shape))
    plain = load(tmp_path, arrays, like, transposed=())
    assert equal(plain, nest({path: weight.transpose(*axes, 1, 0)}))
    turned = np.flip(weight.transpose(*axes, 0, 1), tuple(range(len(axes))))
    told = load(tmp_path, arrays, like, transposed=[path])
    assert equal(told, nest({path: turned}))


def test_a_shape_may_tell_of_a_transposed_convolution_which_is_said(tmp_path):
    weight = draw(2, 5, 3, 3)
    turned = weight.transpose(2, 3, 0, 1)[::-1, ::-1]
    for layer in ("a", "net/3", "up/2"):
        path, name = f"{layer}/kernel", f"{layer.replace('/', '.')}.weight"
        like = nest({path: np.zeros((3, 3, 2, 5))})
        with pytest.warns(UserWarning, match=f"{name} is taken for .* by its shape"):
            loaded = load(tmp_path, {name: weight}, like)
        assert equal(loaded, nest({path: turned}))
        assert equal(load(tmp_path, {name: weight}, like, transposed=[path]), loaded)
    # Name and shape agree: nothing is left to say.
    like = nest({"up/kernel": np.zeros((3, 3, 2, 5))})
    loaded = load(tmp_path, {"up.weight": weight}, like)
    assert equal(loaded, nest({"up/kernel": turned}))


def test_what_is_called_a_convolution_is_not_taken_for_a_transposed_one(tmp_path):
    like = nest({"conv/kernel": np.zeros((3, 3, 2, 5))})
    weight = draw(2, 5, 3, 3)
    with pytest.raises(ValueError, match=r"conv\.weight has the shape of a transposed"):
        load(tmp_path, {"conv.weight": weight}, like)
    with pytest.raises(ValueError, match=r"conv/kernel is \(3, 3, 5, 2\), wanted"):
        load(tmp_path, {"conv.weight": weight}, like, transposed=())
    told = load(tmp_path, {"conv.weight": weight}, like, transposed=["conv/kernel"])
    assert told["conv"]["kernel"].shape == (3, 3, 2, 5)
    # Neither fits: the shape is told.
    with pytest.raises(ValueError, match=r"conv/kernel is \(3, 3, 5, 7\), wanted"):
        load(tmp_path, {"conv.weight": draw(7, 5, 3, 3)}, like)
    with pytest.raises(ValueError, match=r"transposed: b/kernel is no leaf"):
        load(tmp_path, {"conv.weight": weight}, like, transposed=["b/kernel"])


def test_grouped_convolutions_and_linens_modules_are_taken(tmp_path):
    weight = draw(6, 1, 3, 3)
    layer = nn.Conv(6, (3, 3), feature_group_count=6, use_bias=False)
    like = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 6)))["params"]
    loaded = load(tmp_path, {"weight": weight}, like)
    np.testing.assert_array_equal(loaded["kernel"], weight.transpose(2, 3, 1, 0))
    with pytest.raises(ValueError, match="kernel is"):  # [in, out / groups, h, w]
        load(tmp_path, {"weight": draw(6, 2, 3, 3)}, like, transposed=["kernel"])


# Names.


def every_layer():
    """A network of many layers here, and its arrays there."""
    dense, table, vector = draw(3, 3), draw(5, 3), draw(3)
    theirs = {
        "fc.weight": dense, "fc.bias": vector, "emb.weight": table, "ln.weight": vector,
        "ln.bias": vector, "bn.weight": vector, "bn.bias": vector,
        "bn.running_mean": vector, "bn.running_var": vector,
        "bn.num_batches_tracked": np.asarray(3), "temperature": np.float32(2),
    }  # fmt: skip
    ours = nest({
        "fc/kernel": dense.T, "fc/bias": vector, "emb/embedding": table,
        "ln/scale": vector, "ln/bias": vector, "bn/scale": vector, "bn/bias": vector,
        "bn/mean": vector, "bn/var": vector, "temperature": np.float32(2),
    })  # fmt: skip
    return ours, theirs


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod.",
     "model._orig_mod.", "_orig_mod.model."],
)  # fmt: skip
def test_wrappers_fall_off_and_one_name_alike_does_not_matter(tmp_path, prefix):
    ours, theirs = every_layer()
    named = {prefix + name: array for name, array in theirs.items()}
    assert equal(load(tmp_path, named, ours), ours)
    inside = {name.replace("fc.", "fc._orig_mod."): a for name, a in named.items()}
    assert equal(load(tmp_path, inside, ours), ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module.fc.weight": 0}, r"fc\.weight and module\.fc\.weight are both fc/ker"),
        ({"fc/kernel": 0}, r"fc\.weight and fc/kernel are both fc/kernel"),
        ({"fc.weight_g": 0}, r"fc\.weight_g is a part of a weight that PyTorch compu"),
        ({"fc.weight_orig": 0}, r"fc\.weight_orig is a part of a weight"),
        ({"fc.parametrizations.weight.original0": 0}, r"original0 is a part of a weig"),
        ({"fc.weight_orig": 0, "fc.weight_mask": 1}, r"fc\.weight and its _orig are"),
        ({"rnn.weight_ih_l0": 0}, "not of this network rnn/weight_ih_l0"),
        ({"attn.in_proj_weight": 0}, "not of this network attn/in_proj_weight"),
        ({"x\x1b[31m.weight": 0}, r"not of this network x\\x1b\[31m/weight"),
    ],
)
def test_names_that_collide_or_fit_nothing_are_told(tmp_path, change, message):
    ours, theirs = every_layer()
    more = {name: np.full((3, 3), value) for name, value in change.items()}
    with pytest.raises(ValueError, match=rf"w\.npz: .*{message}"):
        load(tmp_path, theirs | more, ours)


@pytest.mark.parametrize("kind", [np.float32, bool, np.uint8])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.module."])
def test_pruned_weights_are_what_their_masks_leave(tmp_path, kind, prefix):
    ours, theirs = every_layer()
    mask = np.tri(3)
    weight = np.where(mask, theirs.pop("fc.weight"), np.nan).astype(np.float32)
    theirs |= {"fc.weight_orig": weight, "fc.weight_mask": mask.astype(kind)}
    theirs |= {"ln.bias_orig": theirs.pop("ln.bias"), "ln.bias_mask": np.zeros(3)}
    named = {prefix + name: array for name, array in theirs.items()}
    loaded = load(tmp_path, named, ours)
    np.testing.assert_array_equal(
        loaded["fc"]["kernel"], jnp.where(mask.T == 1, ours["fc"]["kernel"], 0)
    )
    np.testing.assert_array_equal(loaded["ln"]["bias"], np.zeros(3))


@pytest.mark.parametrize(
    "mask", [np.full((3, 3), 0.5), np.ones((3, 1)), np.full((3, 3), np.nan),
             np.full((3, 3), "1")]
)  # fmt: skip
def test_what_is_no_mask_of_a_weight_is_refused(tmp_path, mask):
    arrays = {"fc.weight_orig": draw(3, 3), "fc.weight_mask": mask}
    with pytest.raises(ValueError, match=r"fc\.weight_mask is no mask of \(3, 3\)"):
        load(tmp_path, arrays, nest({"fc/kernel": np.zeros((3, 3))}))


def test_dotted_names_of_ours_and_weights_of_equinox_are_not_transposed(tmp_path):
    square = draw(3, 3)
    for name, path in (("fc.kernel", "fc/kernel"), ("fc.weight", "fc/weight")):
        like = nest({path: np.zeros((3, 3))})
        assert equal(load(tmp_path, {name: square}, like), nest({path: square}))


def test_what_pytorch_holds_beside_arrays_is_named():
    class Tensor:
        def detach(self):
            raise NotImplementedError("Cannot copy out of meta tensor; no data!\nmore")

    for tensors, message in (
        ({0: np.zeros(3)}, "state dict: 0 is a name, not a string"),
        ({"a": Tensor()}, "a: is no array: Cannot copy out of meta tensor; no data!$"),
        ({"a": [[1], [1, 2]]}, "a: is no array: "),
        ({"a": {"b": 1}}, "a: is a dict, not an array"),
        ({"a\x1b": None}, r"a\\x1b: is a NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            to_arrays(tensors)


def test_loading_says_nothing_else(tmp_path):
    ours, theirs = every_layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, theirs, ours)
