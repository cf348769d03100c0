"""Checkpoints of Hugging Face's kind, in and out."""

import hub_files as hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import swapjax
from swapjax.core import trees
from swapjax.io import checkpoint
from swapjax.io.huggingface import Leaf, open_checkpoint

ARRAYS = hub.tensors()


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("stacked", [False, True])
def test_what_was_not_changed_is_saved_to_the_byte(tmp_path, shards, stacked):
    folder = hub.save(tmp_path / "in", ARRAYS, shards)
    source = open_checkpoint(folder, hub.names(stacked=stacked))
    source.save(tmp_path / "out", source.load())
    assert _files(tmp_path / "out") == _files(folder)
    # Leaf by leaf, for what does not fit into memory.
    source.save(tmp_path / "out", source.read)
    assert _files(tmp_path / "out") == _files(folder)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_become_leaves(tmp_path, stacked, mapped):
    names = hub.names(stacked=stacked)
    source = open_checkpoint(hub.save(tmp_path, ARRAYS, 2), names)
    params = source.load(mapped=mapped)
    assert set(params) == {"words", "layers", "head"}
    for i in range(hub.LAYERS):
        layer = params["layers"] if stacked else params["layers"][i]
        take = lambda x, i=i: x[i] if stacked else x  # noqa: E731
        name = f"encoder.layer.{i}."
        np.testing.assert_array_equal(
            take(layer["up"]["kernel"]), ARRAYS[f"{name}up.weight"].T
        )
        np.testing.assert_array_equal(
            take(layer["up"]["bias"]), ARRAYS[f"{name}up.bias"]
        )
    assert params["head"]["kernel"].dtype == np.float16
    assert isinstance(params["words"], np.memmap if mapped else jax.Array)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert source.shapes() == shapes


def test_the_library_of_others_reads_what_was_pruned(tmp_path):
    folder = hub.save(tmp_path / "in", ARRAYS)
    source = open_checkpoint(folder, hub.names(stacked=True))
    params = source.load(dtype=jnp.float32)
    assert params["head"]["kernel"].dtype == jnp.float32
    masks = swapjax.magnitude_masks(params, 0.5)
    pruned = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks)
    source.save(tmp_path / "out.safetensors", pruned)
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == set(ARRAYS)
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    for name, mask in source.by_name(masks):
        assert found[name].dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(found[name], np.where(mask, ARRAYS[name], 0))
    np.testing.assert_array_equal(found["position_ids"], ARRAYS["position_ids"])


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", None])
def test_nested_listed_and_scanned_trees_have_the_same_masks(tmp_path, allocation):
    folder = hub.save(tmp_path, ARRAYS)
    turned = {"layer_": {}, "layers/": {}, "layers": {}}
    for where, names in turned.items():
        for name, leaf in hub.names(stacked=where == "layers").items():
            if isinstance(leaf, Leaf):
                leaf = Leaf(leaf.path.replace("layers/{", f"{where}{{"), leaf.axes)
            elif leaf:
                leaf = leaf.replace("layers/{", f"{where}{{")
            names[name] = leaf
    found = []
    for names in turned.values():
        source = open_checkpoint(folder, names)
        params = source.load(dtype=jnp.float32)
        pattern = swapjax.NM(2, 4) if allocation is None else None
        plan = swapjax.plan(
            params,
            None if pattern else 0.6,
            pattern=pattern,
            allocation=allocation,
            exclude=["words"] if allocation else ["words", "head"],
            axes={
                "(up|down)/kernel": ("stack", "input", "output")
                if params.get("layers") and isinstance(params["layers"], dict)
                else ("input", "output")
            },
        )
        masks = swapjax.magnitude_masks(params, plan=plan)
        found.append(dict(source.by_name(masks)))
    nested, listed, scanned = found
    assert set(nested) == set(listed) == set(scanned)
    assert not all(mask.all() for mask in nested.values())
    for name, mask in nested.items():
        np.testing.assert_array_equal(mask, listed[name])
        np.testing.assert_array_equal(mask, scanned[name])


def test_without_a_map_names_are_paths(tmp_path):
    arrays = {**ARRAYS, "unused.weight": np.ones((0, 3), "f")}
    source = open_checkpoint(hub.save(tmp_path / "in", arrays, 2))
    params = source.load()
    assert params["unused"]["weight"].shape == (0, 3)
    assert isinstance(params["encoder"]["layer"], list)
    weight = params["encoder"]["layer"][2]["up"]["weight"]
    np.testing.assert_array_equal(weight, ARRAYS["encoder.layer.2.up.weight"])
    assert params["position_ids"].dtype == jnp.int32  # as the file has it when saved
    source.save(tmp_path / "out", params)
    assert _files(tmp_path / "out") == _files(tmp_path / "in")


def test_heads_are_cut_out_of_rows(tmp_path):
    weight = np.arange(24.0, dtype=np.float32).reshape(6, 4)
    hub.save(tmp_path / "in", {"q.weight": weight, "o.weight": weight.T.copy()})
    names = {
        "q.weight": Leaf("query", (1, 0), (-1, 3, 2)),
        "o.weight": Leaf("out", (1, 0), (3, 2, -1)),
    }
    source = open_checkpoint(tmp_path / "in", names)
    params = source.load()
    x = np.ones(4, np.float32)
    heads = jnp.einsum("i,ihs->hs", x, params["query"])
    np.testing.assert_array_equal(heads.reshape(-1), weight @ x)
    assert params["out"].shape == (3, 2, 4)
    source.save(tmp_path / "out", params)
    assert _files(tmp_path / "out") == _files(tmp_path / "in")


def test_a_tree_of_another_make_is_filled(tmp_path):
    eqx = pytest.importorskip("equinox")
    linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    like = eqx.filter(linear, eqx.is_array)
    arrays = {"fc.weight": ARRAYS["head.weight"], "fc.bias": np.ones(3, np.float32)}
    source = open_checkpoint(
        hub.save(tmp_path, arrays), {"fc.weight": "weight", "fc.bias": "bias"}
    )
    filled = source.load(like)
    assert jax.tree.structure(filled) == jax.tree.structure(like)
    assert filled.weight.dtype == jnp.float32
    np.testing.assert_array_equal(filled.weight, arrays["fc.weight"])
    assert callable(filled)
    source.save(tmp_path / "out.safetensors", filled)
    assert set(load_file(tmp_path / "out.safetensors")) == set(arrays)
    with pytest.raises(ValueError, match=r"like: has bias of shape .2,., wanted .3,."):
        source.load({"weight": linear.weight, "bias": jnp.ones(2)})


def test_params_that_do_not_fit_are_refused(tmp_path):
    source = open_checkpoint(hub.save(tmp_path, ARRAYS), hub.names(stacked=False))
    params = source.load()
    lost = {k: v for k, v in params.items() if k != "head"}
    with pytest.raises(ValueError, match="params: lacks head/kernel; has more besides"):
        source.save(tmp_path / "out", {**lost, "more": jnp.ones(2)})
    big = {**params, "head": {"kernel": jnp.full((hub.WIDTH, 3), 1e6)}}
    with pytest.raises(ValueError, match=r"head.weight: does not fit into float16"):
        source.save(tmp_path / "out", big)
    small = {**params, "words": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"params: has words of shape .2, 2., wanted"):
        source.save(tmp_path / "out", small)
    assert not list((tmp_path / "out").glob("*"))
    sharded = open_checkpoint(hub.save(tmp_path / "two", ARRAYS, 2))
    with pytest.raises(ValueError, match=r"path: .* is where the checkpoint lies"):
        sharded.save(tmp_path / "two", sharded.load())


def test_shapes_that_do_not_fit_the_map_are_refused(tmp_path):
    folder = hub.save(tmp_path, ARRAYS)
    names = hub.names(stacked=True)
    for odd, told in [
        (Leaf("head/kernel", (2, 0, 1)), r"shape \(3, 4\), which axes \(2, 0, 1\)"),
        (Leaf("head/kernel", None, (5, -1)), r"shape \(3, 4\), which shape \(5, -1\)"),
    ]:
        with pytest.raises(ValueError, match=f"names: head.weight is of {told}"):
            open_checkpoint(folder, {**names, "head.weight": odd}).load()
    wider = {**ARRAYS, "encoder.layer.1.up.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"layer.1.up.weight is float32 of shape"):
        open_checkpoint(hub.save(tmp_path, wider), names).shapes()


def test_floats_of_other_kinds_come_through(tmp_path):
    arrays = {"w": np.asarray(ARRAYS["head.weight"], jnp.bfloat16)}
    source = open_checkpoint(hub.save(tmp_path / "in", arrays))
    params = source.load(dtype=jnp.float32)
    assert params["w"].dtype == jnp.float32
    source.save(tmp_path / "out", params)
    assert _files(tmp_path / "out") == _files(tmp_path / "in")


def test_a_file_of_swapjax_is_left_to_its_own_reader(tmp_path):
    checkpoint.save_params(tmp_path / "own.safetensors", {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"swapjax wrote it; swapjax.io.checkpoint"):
        open_checkpoint(tmp_path / "own.safetensors")


def test_paths_of_both_kinds_name_the_same_leaves(tmp_path):
    source = open_checkpoint(hub.save(tmp_path, ARRAYS), hub.names(stacked=False))
    assert set(trees.paths(source.load())) == set(source.slots)
    with pytest.raises(ValueError, match="path: head is no leaf of"):
        source.read("head")
