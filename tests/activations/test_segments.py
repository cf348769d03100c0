"""Programs cut into parts: together they are the whole, and equal ones are one."""

import itertools

import block_networks as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax import plan
from swapjax.activations.segments import Program, cut, join
from swapjax.activations.segments_blocks import find_blocks, units
from swapjax.activations.segments_unroll import Ref


def trace(loss_fn, params, batch, **rules):
    layout = plan(params, 0.5, loss_fn=loss_fn, batch=batch, **rules).layout
    program = Program(loss_fn, params, batch, layout.paths)
    return program, dict(zip(layout.paths, layout.roles, strict=True))


def run(parts, params, batch):
    leaves, program = jax.tree.leaves(params), parts[0].program
    values = program.inputs(batch)
    for part in parts:
        values = part.after(values, part(part.take(leaves), values))
    return program.returned(values)


class TestCut:
    @pytest.mark.parametrize("kind", ["listed", "stacked"])
    def test_parts_one_after_the_other_are_the_whole(self, kind):
        params, batch = networks.make(kind), networks.examples()
        program, _ = trace(networks.loss_fn, params, batch)
        for cuts in ([20, 47, 90], [3, 3]):
            found = run(cut(program, cuts), params, batch)
            np.testing.assert_allclose(found, networks.loss_fn(params, batch), 1e-6)

    def test_a_part_takes_and_gives_what_goes_over_its_cuts(self):
        params, batch = networks.make(), networks.examples()
        program, _ = trace(networks.loss_fn, params, batch)
        sizes = program.bytes_at()
        parts = cut(program, range(1, len(program)))
        live = set(program.unrolled.data)
        for part, size in zip(parts, sizes, strict=False):
            assert live == program.live(part.start)
            kinds = [program.unrolled.kinds[i] for i in live]
            assert size == sum(k.size * k.dtype.itemsize for k in kinds)
            assert set(part.takes) <= live
            live = set(part.after(dict.fromkeys(live), dict.fromkeys(part.gives)))

    def test_parts_are_functions_of_a_leaf_with_its_gradient(self):
        params, batch = networks.make(), networks.examples()
        program, roles = trace(networks.loss_fn, params, batch)
        blocks = find_blocks(program, roles)
        leaves, values = jax.tree.leaves(params), program.inputs(batch)
        first, *_, last = (block.segment for block in blocks[1:])
        values = blocks[0].segment(blocks[0].segment.take(leaves), values) | values
        ref = blocks[1].refs[0]
        whole = join(first, last)
        function = whole.of_leaf(ref, whole.take(leaves), values)
        found = jax.grad(lambda leaf: function(leaf)[0])(leaves[ref.leaf])
        wanted = jax.tree.leaves(jax.grad(networks.loss_fn)(params, batch))
        np.testing.assert_allclose(found, wanted[ref.leaf], rtol=1e-4, atol=1e-6)

    def test_constants_are_told_apart_but_not_compiled_in(self):
        scales = [np.full(3, 2.0, np.float32), np.full(3, 5.0, np.float32)]

        def loss_fn(params, x):
            for kernel, scale in zip(params, scales, strict=True):
                x = jnp.tanh(x @ kernel) * scale
            return jnp.sum(x)

        params, x = [jnp.eye(3), -jnp.eye(3)], np.ones((2, 3), np.float32)
        program, roles = trace(loss_fn, params, x)
        parts = [block.segment for block in find_blocks(program, roles)]
        np.testing.assert_allclose(run(parts, params, x), loss_fn(params, x), 1e-6)

    def test_callbacks_that_differ_are_told_apart(self):
        def add(x, much):
            return jax.pure_callback(lambda x: np.asarray(x) + much, x, x)

        def loss_fn(params, x):
            for i, kernel in enumerate(params):
                x = add(x, np.float32(i)) @ kernel
            return jnp.sum(x)

        params, x = [jnp.eye(3)] * 2, np.ones((2, 3), np.float32)
        program, roles = trace(loss_fn, params, x)
        parts = [block.segment for block in find_blocks(program, roles)]
        assert parts[0].run is not parts[1].run
        assert run(parts, params, x) == loss_fn(params, x) == 12

    def test_cuts_out_of_order_are_refused(self):
        program, _ = trace(lambda p, x: jnp.sum(x @ p), jnp.eye(2), jnp.eye(2))
        with pytest.raises(ValueError, match="cuts in order, of 0 to 2, got 2 and 1"):
            program.segment(2, 1)


class TestBlocks:
    @pytest.mark.parametrize("kind", ["listed", "nested", "stacked"])
    def test_equal_blocks_share_one_function(self, kind):
        params, batch = networks.make(kind), networks.examples()
        blocks = find_blocks(*trace(networks.loss_fn, params, batch))
        names = {"listed": "{}/{}", "nested": "{}/block_{}", "stacked": "{}[{}]"}[kind]
        wanted = [names.format("blocks", i) for i in range(4)]
        assert [block.name for block in blocks] == ["", *wanted, "head"]
        assert [len(block.refs) for block in blocks] == [0, 6, 6, 6, 6, 1]
        # Only what the blocks hand on goes from one to the next, and the labels.
        assert all(len(block.segment.takes) == 1 for block in blocks[1:-1])
        assert len({block.segment.run for block in blocks[1:-1]}) == 1
        parts = [block.segment for block in blocks]
        found = run(parts, params, batch)
        np.testing.assert_allclose(found, networks.loss_fn(params, batch), 1e-6)

    def test_slices_of_a_stack_are_blocks_without_a_scan(self):
        def loss_fn(params, x):
            for i in range(3):
                x = jnp.tanh(x @ params["kernel"][i] + params["bias"][i])
            return jnp.sum(x)

        params = {"kernel": np.ones((3, 4, 4)), "bias": np.ones((3, 4))}
        blocks = find_blocks(*trace(loss_fn, params, np.ones((2, 4))))
        assert [block.name for block in blocks] == [f"kernel[{i}]" for i in range(3)]
        assert [block.refs for block in blocks] == [(Ref(1, i),) for i in range(3)]

    def test_a_slice_with_steps_is_no_row_of_a_stack(self):
        def loss_fn(params, x):
            return jnp.sum(x @ params[1:2, ::2][0]) + jnp.sum(x @ params[0, :2])

        params, x = jnp.arange(32.0).reshape(2, 4, 4), np.ones((2, 2), np.float32)
        program, _ = trace(loss_fn, params, x)
        found = run(cut(program, []), params, x)
        np.testing.assert_allclose(found, loss_fn(params, x), 1e-6)

        def by_rows(params, x):
            for i in range(2):
                start, stop = (i, 0, 0), (i + 1, 4, 4)
                x = x @ jax.lax.slice(params, start, stop, (2, 1, 1))[0]
            return jnp.sum(x)

        blocks = find_blocks(*trace(by_rows, params, np.ones((2, 4), np.float32)))
        assert [block.refs for block in blocks] == [(Ref(0, 0),), (Ref(0, 1),)]

    def test_a_scan_that_goes_backwards_stacks_what_it_returns(self):
        def loss_fn(params, x):
            x, seen = jax.lax.scan(
                lambda x, w: (jnp.tanh(x @ w), x), x, params, reverse=True
            )
            return jnp.sum(x) + jnp.sum(seen * jnp.arange(3.0)[:, None, None])

        draw = np.random.default_rng(0).normal
        params, x = draw(size=(3, 4, 4)), draw(size=(2, 4))
        program, roles = trace(loss_fn, params, x)
        blocks = find_blocks(program, roles)
        assert [block.refs[0].row for block in blocks] == [2, 1, 0]
        found = run([block.segment for block in blocks], params, x)
        np.testing.assert_allclose(found, loss_fn(params, x), 1e-5)

    def test_a_regular_expression_and_layers_tell_blocks(self):
        params, batch = networks.make(), networks.examples()
        traced = trace(networks.loss_fn, params, batch)
        blocks = find_blocks(*traced, r"blocks/[01]|blocks/[23]")
        assert len(find_blocks(*traced, "layers")) == 25
        assert [block.name for block in blocks][1:] == [
            *(f"blocks/{i}" for i in range(4)), "head"
        ]  # fmt: skip
        (_, both, _) = find_blocks(*traced, "blocks")
        assert both.name == "blocks"
        assert len(both.refs) == 24

    def test_units_that_repeat_are_found_where_they_are_equal(self):
        shapes = {
            "stem": (3, 8), "layer1/0/a": (8, 8), "layer1/1/a": (8, 8),
            "layer2/0/a": (8, 16), "layer2/0/b": (8, 16), "layer2/1/a": (16, 16),
            "mlp/0": (4, 4), "mlp/1": (4, 4), "Dense_0/kernel": (4, 5),
            "Dense_1/kernel": (5, 6), "model.layers.0.mlp.up.weight": (4, 4),
            "model.layers.11.mlp.up.weight": (4, 4), "model.norm.weight": (4,),
        }  # fmt: skip
        assert units(list(shapes), list(shapes.values())) == [
            None, "layer1/0", "layer1/1", "layer2/0", "layer2/0", "layer2/1",
            None, None, None, None, "model.layers.0", "model.layers.11", None,
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("blocks", "message"),
        [("(", "is not a regular expression"), ("norm", "matches no prunable leaf")],
    )
    def test_bad_expressions_are_refused(self, blocks, message):
        traced = trace(networks.loss_fn, networks.make(), networks.examples())
        with pytest.raises(ValueError, match=f"^blocks: .*{message}"):
            find_blocks(*traced, blocks)

    def test_what_cannot_be_cut_is_named(self):
        def by_number(params, x):
            step = lambda i, x: x @ jax.lax.dynamic_index_in_dim(params, i, 0, False)  # noqa: E731
            return jnp.sum(jax.lax.fori_loop(0, 3, step, x))

        def in_turns(params, x):
            a, b = params
            return jnp.sum(x @ a @ b @ a)

        x = np.ones((2, 4))
        program, roles = trace(by_number, np.ones((3, 4, 4)), x)
        with pytest.raises(ValueError, match=r"holds 3 layers, which .* cannot be cut"):
            find_blocks(program, roles)
        with pytest.raises(ValueError, match="0 is read in several of them, 0 and 0"):
            find_blocks(*trace(in_turns, [np.ones((4, 4))] * 2, x))

        def with_offset(params, x):
            return jnp.sum(x @ (params[0][:-1] - params[0][-1]))

        axes = {"include": ".", "axes": {".": ("input", "output")}}
        with pytest.raises(ValueError, match=r"0 is one layer, .* takes slices"):
            find_blocks(*trace(with_offset, [np.ones((5, 4))], x, **axes))

    def test_penalties_of_all_weights_are_named(self):
        def loss_fn(params, x):
            penalty = sum(jnp.sum(kernel**2) for kernel in params)
            return jnp.sum(x @ params[0] @ params[1]) + penalty

        traced = trace(loss_fn, [np.eye(3)] * 2, np.ones((2, 3)))
        with pytest.raises(ValueError, match=r"^loss_fn: .* weights alone, 0 and 1 "):
            find_blocks(*traced)

    def test_leaves_that_data_does_not_reach_are_named(self):
        def loss_fn(params, x):
            return jnp.sum(x @ params["used"])

        params, x = {"used": jnp.eye(3), "spare": jnp.eye(3)}, np.ones((2, 3))
        program, roles = trace(loss_fn, params, x, include=["used"])
        roles["spare"] = roles["used"]
        with pytest.raises(ValueError, match=r"^params: spare is not reached"):
            find_blocks(program, roles)


def test_programs_cut_anywhere_give_the_same_function_for_the_same_operations():
    def loss_fn(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return jnp.sum(x)

    params, x = [np.ones((4, 4))] * 3, np.ones((2, 4))
    program, _ = trace(loss_fn, params, x)
    parts = cut(program, [2, 4, 6])
    assert parts[0].run is parts[1].run is parts[2].run
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
