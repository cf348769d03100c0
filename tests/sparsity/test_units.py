"""Channels, heads and experts that live or die as one, against loops."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.layers import whole
from networks.table import NETWORKS

import swapjax
from swapjax import Block, Channel, Expert, Head
from swapjax.roles.role import matrix
from swapjax.sparsity.budget import Budget, count_by_group, select
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.stacking import Stacking
from swapjax.sparsity.unit_names import attention_of, module_of
from swapjax.sparsity.units import Units

HEADS, DIM, WIDTH = 3, 2, 6


def attention(key, *, heads=HEADS, lead=()):
    """The matrices of an attention, as Flax has them."""
    keys = jax.random.split(key, 4)
    into, out = (*lead, WIDTH, heads, DIM), (*lead, heads, DIM, WIDTH)
    shapes = {"key": into, "out": out, "query": into, "value": into}
    return {
        name: {"kernel": jax.random.normal(k, shape)}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def mixture(key, *, experts=4, lead=()):
    """The matrices of a mixture of experts, and its router."""
    keys = jax.random.split(key, 3)
    shapes = {"router": (WIDTH, experts), "w_in": (experts, WIDTH, 5)}
    shapes["w_out"] = (experts, 5, WIDTH)
    return {
        name: jax.random.normal(k, (*lead, *shape))
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


MOE_AXES = {
    "router": ("input", "output"),
    "w_(in|out)": ("expert", "input", "output"),
}


def heads_of(kernels):
    """Which heads each matrix of an attention keeps something, and all, of."""
    found = {}
    for name, part in kernels.items():
        mask = np.asarray(part["kernel"])
        by_head = np.moveaxis(mask, -3 if name == "out" else -2, 0)
        by_head = by_head.reshape(len(by_head), -1)
        np.testing.assert_array_equal(by_head.any(1), by_head.all(1))
        found[name] = by_head.all(1).tolist()
    return found


def units_by_hand(pattern, role, shape):
    """Give each entry of a leaf the unit that it belongs to, by a loop."""
    stack = [a for a in role.stack if not isinstance(pattern, Expert) or a not in
             role.experts]  # fmt: skip
    if isinstance(pattern, Channel):
        along = dict.fromkeys(role.outputs, 1)
    elif isinstance(pattern, Expert):
        along = dict.fromkeys(role.experts, 1)
    elif len(role.outputs) == 2:
        along = {role.outputs[0]: 1}
    else:
        along = {role.inputs[0]: 1}
    found = {}
    for place in itertools.product(*map(range, shape)):
        unit = (*(place[a] for a in stack), *(place[a] // n for a, n in along.items()))
        found.setdefault(unit, []).append(place)
    return found


@st.composite
def leaves(draw):
    """A pattern, the role of a leaf that has such units, and its shape."""
    pattern = draw(st.sampled_from([Channel(), Expert(), Head()]))
    words = ["input", "output", *draw(st.sampled_from([(), ("stack",)]))]
    if isinstance(pattern, Head):
        words.append(draw(st.sampled_from(["input", "output"])))
    elif isinstance(pattern, Expert) or draw(st.booleans()):
        words.append("expert")
    axes = draw(st.permutations(words))
    shape = tuple(draw(st.integers(1, 3)) for _ in axes)
    return pattern, matrix(*axes), shape


@settings(deadline=None, max_examples=15)
@given(leaves(), st.integers(0, 99))
def test_means_and_masks_of_units_are_those_of_a_loop(leaf, seed):
    pattern, role, shape = leaf
    layout = Layout.of({"w": np.zeros(shape, np.float32)}, "w", roles=[role])
    units = Units.of(pattern, layout)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    mask = rng.random(shape) > 0.6

    @jax.jit
    def by_units(x, mask):
        (means,) = units.means((x,))
        numbers = jnp.arange(means.size).reshape(means.shape)
        return means, units.touched((mask,))[0], units.expand((numbers,))[0]

    means, touched, spread = jax.tree.map(np.asarray, by_units(x, mask))
    expected = units_by_hand(pattern, role, shape)
    assert {tuple(map(int, i)) for i in np.ndindex(means.shape)} == set(expected)
    assert units.sizes[0] == len(next(iter(expected.values())))
    for unit, places in expected.items():
        own = tuple(np.transpose(places))
        np.testing.assert_allclose(means[unit], x[own].mean(), rtol=1e-4, atol=1e-6)
        assert touched[unit] == mask[own].any()
        assert set(spread[own]) == {np.ravel_multi_index(unit, means.shape)}


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_blocks_are_those_of_a_loop(rows, columns, up, across):
    shape = (2, rows * up, columns * across)
    layout = Layout.of({"w": np.zeros(shape, np.float32)}, "w",
                       roles=[matrix("stack", "input", "output")])  # fmt: skip
    units = Units.of(Block(rows, columns), layout)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    parts = x.reshape(2, up, rows, across, columns)
    grid = np.random.default_rng(1).random((2, up, across)) > 0.5

    @jax.jit
    def by_units(x, grid):
        return units.means((x,)), units.touched((x > 1,)), units.expand((grid,))

    (means,), (touched,), (mask,) = by_units(x, grid)
    np.testing.assert_allclose(means, parts.mean(axis=(2, 4)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(touched, (parts > 1).any(axis=(2, 4)))
    np.testing.assert_array_equal(
        mask, grid.repeat(rows, axis=1).repeat(columns, axis=2)
    )


class TestHeads:
    def test_those_of_one_attention_live_and_die_together(self):
        params = {f"block{i}": attention(jax.random.key(i)) for i in range(2)}
        plan = swapjax.plan(params, 0.6, pattern=Head(), allocation="global")
        masks = swapjax.magnitude_masks(params, plan=plan)
        size = 4 * WIDTH * DIM
        kept = []
        for name, part in params.items():
            own = heads_of(masks[name])
            assert own["query"] == own["key"] == own["value"] == own["out"]
            for head in range(HEADS):
                into = [np.abs(part[n]["kernel"])[:, head].sum() for n in
                        ("query", "key", "value")]  # fmt: skip
                out = np.abs(part["out"]["kernel"])[head].sum()
                kept.append((float(sum(into) + out), own["query"][head]))
        # 2.4 of 6 heads; and one at least of each attention.
        assert plan.kept == 2 * size == size * sum(alive for _, alive in kept)
        for block in (kept[:HEADS], kept[HEADS:]):
            assert max(block)[1]

    def test_fused_ones_are_known_by_name(self):
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        rng = np.random.default_rng(0)
        params = {
            f"model.layers.{i}.{part}.weight": rng.normal(size=shape).astype("f4")
            for i in range(2)
            for part, shape in (
                *((f"self_attn.{n}", (WIDTH, WIDTH)) for n in names),
                ("mlp.up_proj", (9, WIDTH)),
                ("mlp.down_proj", (WIDTH, 9)),
            )
        }
        plan = swapjax.plan(params, 0.5, pattern=Head(size=2))
        assert [path for path in plan.paths if "mlp" in path] == []
        assert "heads of 2" in str(plan)
        assert "left out, has no heads: model.layers.0.mlp.down_proj" in str(plan)
        masks = swapjax.magnitude_masks(params, plan=plan)
        for i in range(2):
            own = [np.asarray(masks[f"model.layers.{i}.self_attn.{n}.weight"])
                   for n in names]  # fmt: skip
            # PyTorch: outputs come first.
            grids = [m.reshape(3, 2 * WIDTH) for m in own[:3]]
            grids.append(own[3].T.reshape(3, 2 * WIDTH))
            for grid in grids:
                np.testing.assert_array_equal(grid.any(1), grids[0].all(1))
                np.testing.assert_array_equal(grid.all(1), grids[0].all(1))

    @pytest.mark.parametrize("by_head", [False, True])
    def test_a_matrix_that_joins_parts_has_all_of_a_head(self, by_head):
        name = "query_key_value" if by_head else "in_proj"
        rng = np.random.default_rng(0)
        params = {
            f"attn.{name}.weight": rng.normal(size=(24, 8)).astype("f4"),
            "attn.out_proj.weight": rng.normal(size=(8, 8)).astype("f4"),
        }
        plan = swapjax.plan(params, 0.5, pattern=Head(size=2))
        masks = swapjax.magnitude_masks(params, plan=plan)
        joined = np.asarray(masks[f"attn.{name}.weight"])
        parts = (4, 3, 2, 8) if by_head else (3, 4, 2, 8)
        heads = np.moveaxis(joined.reshape(parts), 0 if by_head else 1, 0)
        alive = np.asarray(masks["attn.out_proj.weight"])[0, ::2]
        assert alive.sum() == 2
        np.testing.assert_array_equal(heads.reshape(4, -1).all(1), alive)
        np.testing.assert_array_equal(heads.reshape(4, -1).any(1), alive)

    def test_one_that_joins_more_queries_than_keys_is_named(self):
        params = {"attn.qkv_proj.weight": np.ones((24, 16), "f4"),
                  "attn.o_proj.weight": np.ones((16, 16), "f4")}  # fmt: skip
        message = "attn.qkv_proj.weight .* of 4 heads each by its name, and their outp"
        with pytest.raises(ValueError, match=message):
            swapjax.plan(params, 0.5, pattern=Head(size=2))

    @pytest.mark.parametrize(
        ("parts", "others"),
        [
            ("h.0.attn.c_attn.weight h.0.attn.c_proj.weight", "h.1.attn.c_attn.weight"),
            (
                "l/attention/self/query/weight l/attention/output/dense/weight",
                "l/output/dense/weight",
            ),
            (
                "l/attention/attention/query/weight l/attention/output/dense/weight",
                "l/output/dense/weight",
            ),
            ("b.0.attn.qkv.weight b.0.attn.proj.weight", "b.1.attn.proj.weight"),
            (
                "l/attention/q_lin/weight l/attention/out_lin/weight",
                "l/ffn/lin1/weight",
            ),
            ("l/attn/q_einsum/w l/attn/attn_vec_einsum/w", "l/mlp/linear/w"),
            ("a/~/mha/query/w a/~/mha/linear/w", "a/~/linear/w"),
            ("wq wo", "mlp/wo"),
            ("attn/query/kernel attn/out/kernel", "cross/query/kernel"),
        ],
    )
    def test_what_belongs_to_one_attention_is_told_by_its_path(self, parts, others):
        one = {attention_of(path) for path in parts.split()}
        assert len(one) == 1
        assert not one & {attention_of(path) for path in others.split()}

    @pytest.mark.parametrize(
        "names",
        ["qkv proj", "q_lin k_lin v_lin out_lin", "query_key_value dense"],
    )
    def test_all_parts_of_an_attention_have_its_heads(self, names):
        width = lambda name: 24 if "qkv" in name or "_key_" in name else 8  # noqa: E731
        params = {
            f"l.0.attention.{name}.weight": np.ones((width(name), 8), "f4")
            for name in names.split()
        }
        params["l.0.mlp.proj.weight"] = np.ones((8, 8), "f4")
        plan = swapjax.plan(params, 0.5, pattern=Head(size=2))
        assert len(plan.layout.paths) == len(params) - 1
        assert plan.units.grids == ((4,),)

    def test_fewer_keys_than_queries_share_theirs(self):
        many = attention(jax.random.key(0), heads=4)
        few = attention(jax.random.key(1), heads=2)
        params = {"attn": {**many, "key": few["key"], "value": few["value"]}}
        plan = swapjax.plan(params, 0.5, pattern=Head())
        own = heads_of(swapjax.magnitude_masks(params, plan=plan)["attn"])
        assert own["query"] == own["out"]
        assert own["key"] == own["value"]
        assert (sum(own["query"]), sum(own["key"])) == (2, 1)

    def test_what_is_called_otherwise_is_taken_where_include_says_so(self):
        params = {"mixer": {"a": np.ones((4, 2, 3), "f4"), "b": np.ones((4, 4), "f4")}}
        axes = {"a": ("input", "output", "output"), "b": ("input", "output")}
        with pytest.raises(ValueError, match="heads: none are found in mixer/a, mixer"):
            swapjax.plan(params, 0.5, pattern=Head(), axes=axes)
        plan = swapjax.plan(params, 0.5, pattern=Head(), axes=axes, include="a")
        assert plan.kept == 12
        with pytest.raises(
            ValueError, match=r"heads: mixer/b of shape .* has no heads"
        ):
            swapjax.plan(params, 0.5, pattern=Head(), axes=axes, include="a|b")

    def test_a_size_that_does_not_divide_is_named(self):
        params = {f"attn.{n}_proj.weight": np.ones((6, 6), "f4") for n in "qkvo"}
        with pytest.raises(
            ValueError, match=r"heads of 4: attn.k_proj.weight of shape \(6, 6\)"
        ):
            swapjax.plan(params, 0.5, pattern=Head(size=4))
        with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
            Head(size=0)
        with pytest.raises(ValueError, match="give size for heads that share an axis"):
            swapjax.plan(params, 0.5, pattern=Head())


class TestExperts:
    def test_they_live_and_die_in_all_matrices_and_the_router_stays(self):
        params = {"moe": mixture(jax.random.key(0))}
        plan = swapjax.plan(params, 0.5, pattern=Expert(), axes=MOE_AXES)
        assert ("moe/router", "has no experts") in plan.left_out
        masks = swapjax.magnitude_masks(params, plan=plan)["moe"]
        grids = [np.asarray(masks[n]).reshape(4, -1) for n in ("w_in", "w_out")]
        sums = sum(np.abs(params["moe"][n]).sum((1, 2)) for n in ("w_in", "w_out"))
        for grid in grids:
            np.testing.assert_array_equal(grid.any(1), sums >= np.sort(sums)[2])
            np.testing.assert_array_equal(grid.all(1), sums >= np.sort(sums)[2])
        # Floors keep one of the mixture, not all of them.
        least = swapjax.plan(params, 0.75, pattern=Expert(), axes=MOE_AXES)
        assert least.kept == least.total // 4

    def test_leaves_of_their_own_are_pruned_as_those_of_a_stack_are(self):
        rng = np.random.default_rng(0)
        up, down = (rng.normal(size=(11, *shape)).astype("f4") for shape in
                    ((WIDTH, 5), (5, WIDTH)))  # fmt: skip
        both = {"up": up, "down": down}
        apart = [{name: w[i] for name, w in both.items()} for i in range(11)]
        params = {"moe": {"experts": both}}
        lists = {"moe": {"experts": apart, "router": np.ones((WIDTH, 11), "f4")}}
        one = swapjax.plan(params, 0.6, pattern=Expert(),
                           axes={"up|down": ("expert", "input", "output")})  # fmt: skip
        two = swapjax.plan(lists, 0.6, pattern=Expert(),
                           axes={"up|down|router": ("input", "output")})  # fmt: skip
        assert one.kept == two.kept == 4 * 2 * WIDTH * 5
        stacked = swapjax.magnitude_masks(params, plan=one)["moe"]["experts"]
        masks = swapjax.magnitude_masks(lists, plan=two)["moe"]["experts"]
        for i in range(11):
            for name in both:
                np.testing.assert_array_equal(masks[i][name], stacked[name][i])
        leaves = two.layout.leaf_masks({"moe": {"experts": masks, "router": True}})
        assert int(count_by_group(leaves, two.budget)[0]) == two.kept
        assert "moe/router" in str(two)
        apart[3]["up"] = apart[3]["up"][:, :2]
        with pytest.raises(ValueError, match="moe/experts/0/down is in and those besi"):
            swapjax.plan(lists, 0.6, pattern=Expert(),
                         axes={"up|down|router": ("input", "output")})  # fmt: skip

    @pytest.mark.parametrize(
        ("path", "module"),
        [("a/moe/w_in", "a/moe"), ("moe/wi/kernel", "moe"), ("moe_0/w", "moe_0"),
         ("layers.3.mlp.experts.down_proj", "layers/3/mlp/experts")],
    )  # fmt: skip
    def test_what_belongs_to_one_mixture_is_told_by_its_path(self, path, module):
        assert module_of(path) == module

    def test_none_are_named(self):
        with pytest.raises(ValueError, match="experts: none are found in fc/kernel"):
            swapjax.plan({"fc": {"kernel": jnp.ones((3, 4))}}, 0.5, pattern=Expert())


class TestCounts:
    PARAMS = {  # noqa: RUF012
        "a": {"kernel": jax.random.normal(jax.random.key(0), (4, 10))},
        "b": {"kernel": jax.random.normal(jax.random.key(1), (7, 5))},
        "c": {"kernel": jax.random.normal(jax.random.key(2), (4, 3))},
    }

    @pytest.mark.parametrize("allocation", [None, "erk"])
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.8])
    def test_they_are_of_whole_units_and_near_the_sparsity(self, sparsity, allocation):
        plan = swapjax.plan(
            self.PARAMS, sparsity, pattern=Channel(), allocation=allocation
        )
        assert all(k % n == 0 for k, n in zip(plan.keep, plan.group_units, strict=True))
        # Half a channel of each size.
        assert abs(plan.kept - plan.total * (1 - sparsity)) <= (4 + 7) / 2
        masks = swapjax.magnitude_masks(self.PARAMS, plan=plan)
        for name, group in zip("abc", plan.groups, strict=True):
            mask = np.asarray(masks[name]["kernel"])
            np.testing.assert_array_equal(mask.any(0), mask.all(0))
            assert mask.sum() == plan.keep[group]
            norms = np.abs(self.PARAMS[name]["kernel"]).sum(0)
            assert norms[mask.all(0)].min() > norms[~mask.all(0)].max(initial=0)

    def test_uniform_gives_each_layer_its_share(self):
        plan = swapjax.plan(self.PARAMS, 0.4, pattern=Channel())
        assert plan.allocation == "uniform"
        assert [plan.keep[g] for g in plan.groups] == [4 * 6, 7 * 3, 4 * 2]
        for level in (0.1, 0.2, 0.4):
            stage = plan.at(level)
            assert abs(stage.kept - stage.total * (1 - level)) <= (4 + 7) / 2

    def test_a_global_budget_wants_units_of_one_size(self):
        with pytest.raises(
            ValueError,
            match="'global' needs units of one size; one of a/kernel has 4 entries, "
            "one of b/kernel 7; take allocation='uniform'",
        ):
            swapjax.plan(self.PARAMS, 0.5, pattern=Channel(), allocation="global")
        plan = swapjax.plan(
            self.PARAMS, 0.5, pattern=Channel(), allocation="global", exclude="b"
        )
        assert (plan.kept, len(plan.keep)) == (28, 1)

    def test_overrides_are_of_whole_units(self):
        plan = swapjax.plan(
            self.PARAMS, 0.5, pattern=Channel(), overrides={"a": 0.75, "c": 0.0}
        )
        assert [plan.keep[g] for g in plan.groups][::2] == [4 * 3, 12]
        params = {"attn": attention(jax.random.key(0))}
        with pytest.raises(ValueError, match="attn/key/kernel and attn/out/kernel sha"):
            swapjax.plan(
                params, 0.5, pattern=Head(), overrides={"key": 0.5, "out": 0.7}
            )
        plan = swapjax.plan(params, 0.5, pattern=Head(), overrides={"key": 0.5})
        assert plan.kept == 2 * 4 * WIDTH * DIM

    def test_outputs_that_are_not_known_are_named(self):
        params = {"odd": np.ones((3, 4), "f4")}
        message = r"channels: odd of shape \(3, 4\) has no outputs that are known"
        with pytest.raises(ValueError, match=message):
            swapjax.plan(params, 0.5, pattern=Channel(), include="odd")
        empty = {"fc": {"kernel": np.ones((0, 3), "f4")}, **self.PARAMS}
        with pytest.raises(ValueError, match=r"channels: fc/kernel .* is empty"):
            swapjax.plan(empty, 0.5, pattern=Channel())


class TestStacks:
    LAYERS = 3

    def networks(self):
        """Blocks in a list, and the same stacked, with ties between heads."""
        apart = [
            {
                "attn": attention(jax.random.key(i)),
                "moe": mixture(jax.random.key(10 + i)),
                "fc": {"kernel": jax.random.normal(jax.random.key(20 + i), (9, 36))},
            }
            for i in range(self.LAYERS)
        ]
        apart[1] = jax.tree.map(lambda x: jnp.round(2 * x), apart[1])
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *apart)
        return {f"block{i}": b for i, b in enumerate(apart)}, {"blocks": stacked}

    @pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
    @pytest.mark.parametrize("pattern", [Head(), Channel(), Expert()], ids=str)
    def test_give_the_masks_of_their_layers(self, pattern, allocation):
        apart, stacked = self.networks()
        wide = {
            "attn/(query|key|value)": ("input", "output", "output"),
            "attn/out": ("input", "input", "output"),
            "moe/router|fc": ("input", "output"),
            "moe/w_": ("expert", "input", "output"),
        }
        options = {"pattern": pattern, "allocation": allocation}
        if isinstance(pattern, Channel) and allocation == "global":
            options["include"] = "query|key|value"
        one = swapjax.plan(apart, 0.5, axes=wide, **options)
        deep = {k: ("stack", *words) for k, words in wide.items()}
        all_at_once = swapjax.plan(stacked, 0.5, axes=deep, **options)
        assert one.kept == all_at_once.kept
        assert sorted(one.keep) == sorted(all_at_once.keep)
        masks = swapjax.magnitude_masks(apart, plan=one)
        found = swapjax.magnitude_masks(stacked, plan=all_at_once)["blocks"]
        for i in range(self.LAYERS):
            own = masks[f"block{i}"]
            sliced = jax.tree.map(lambda m, i=i: m[i] if m.ndim else m, found)
            jax.tree.map(np.testing.assert_array_equal, own, sliced)
        # A layer of the stack may have a rule of its own.
        name = {"heads": "attn/key", "channels": "fc", "experts": "moe/w_in"}
        path = re.escape(f"blocks/{name[str(pattern)]}") + r".*\[1\]"
        if allocation == "uniform":
            lone = swapjax.plan(stacked, 0.5, axes=deep, overrides={path: 0}, **options)
            masks = swapjax.magnitude_masks(stacked, plan=lone)["blocks"]
            leaf = jax.tree.leaves(masks[name[str(pattern)].split("/")[0]])[0]
            if not isinstance(pattern, Expert):
                assert leaf[1].all()
                assert not leaf.all()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("linen scan, axis 1", Head()),
        ("equinox scan", Head(size=2)),
        ("llama, stacked", Head(size=2)),
        ("plain scan", Head(size=2)),
        ("mixture, scanned", Expert()),
        ("plain lstms in layers", Channel()),
    ],
)
def test_networks_are_pruned_stacked_as_not_stacked(name, pattern):
    row = NETWORKS[name]
    found = []
    for params, loss_fn, data in (row.make(), row.unstacked()):
        told = {"loss_fn": loss_fn, "batch": data}
        plan = swapjax.plan(params, 0.5, pattern=pattern, **told)
        found.append(whole(swapjax.magnitude_masks(params, plan=plan), params))
        assert plan.kept == plan.total // 2
    jax.tree.map(np.testing.assert_array_equal, row.split(found[0]), found[1])


def test_select_within_keeps_whole_units_of_what_is_there():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), "f4")}
    plan = swapjax.plan(params, 0.5, pattern=Channel())
    within = np.ones((4, 6), bool)
    within[:, :2] = False
    within[0, 2] = False
    masks = swapjax.magnitude_masks(params, plan=plan, within={"kernel": within})
    mask = np.asarray(masks["kernel"])
    assert not (mask & ~within).any()
    alive = mask.any(0)
    assert alive.sum() == 3
    np.testing.assert_array_equal(mask, within & alive)
    assert int(count_by_group((mask,), plan.budget)[0]) == mask.sum()
    within[:, :4] = False
    with pytest.raises(ValueError, match="in channels that have any"):
        swapjax.magnitude_masks(params, plan=plan, within={"kernel": within})


def test_what_is_no_pattern_is_named():
    for odd in (Head, "channel", 4):
        with pytest.raises(ValueError, match="pattern must be an NM, Channel, Head, E"):
            swapjax.plan({"kernel": np.ones((3, 4), "f4")}, 0.5, pattern=odd)


@pytest.mark.parametrize(
    ("pattern", "shapes", "words"),
    [
        (Channel(), [(4, 9), (4, 3)], "keeps 1 of 12 channels; .* 12 at most and 2"),
        (Block(2, 2), [(4, 8), (4, 4)], "keeps 1 of 12 blocks of 2x2; .* 2 at least"),
        (Channel(), [(4, 9), (2, 3)], "keeps 4 of 42 entries; .* and 6 at least"),
    ],
)
def test_budgets_below_the_floors_tell_what_they_count(pattern, shapes, words):
    params = {f"fc{i}": {"kernel": np.ones(s, "f4")} for i, s in enumerate(shapes)}
    with pytest.raises(ValueError, match=words):
        swapjax.plan(params, 0.91, pattern=pattern)


def test_scores_that_are_no_numbers_rank_lowest():
    scores = jnp.asarray([[1.0, jnp.nan, 3.0], [1.0, 9.0, -jnp.inf]])
    plan = swapjax.plan({"kernel": jnp.ones((2, 3))}, 0.6, pattern=Channel())
    (mask,) = select((scores,), plan.budget)
    np.testing.assert_array_equal(mask, [[True, False, False]] * 2)
    plain = Budget(jnp.asarray([2]), (0,), (0,), stacking=Stacking.none(1))
    assert plain.in_units is plain
    assert math.prod(plan.grids[0]) == 3


@pytest.mark.parametrize("pattern", [Head(), Channel()], ids=str)
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto,
                                  jax.sharding.AxisType.Explicit], ids=str)  # fmt: skip
def test_sharded_is_unsharded(kind, pattern):
    mesh = jax.make_mesh((2,), ("device",), axis_types=(kind,))
    params = {"attn": attention(jax.random.key(0), heads=4)}
    along = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("device"))
    plan = swapjax.plan(params, 0.5, pattern=pattern)
    masks = swapjax.magnitude_masks(jax.device_put(params, along), plan=plan)
    expected = swapjax.magnitude_masks(params, plan=plan)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)
