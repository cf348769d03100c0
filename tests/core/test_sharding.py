"""Sharded over eight simulated devices, against the same on one."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from network import loss_fn, to_shard

import swapjax
from swapjax.core import sharding
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise
from swapjax.sparsity.budget import select

KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) "
    r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
)


def mesh_of(data, model, kind="automatic"):
    kinds = (KINDS[kind],) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=kinds)


def lay(mesh, params, data):
    """Params over the model axis, examples over the data axis."""
    specs = {
        "fc1": {"kernel": PartitionSpec(None, "model"), "bias": PartitionSpec("model")},
        "fc2": {"kernel": PartitionSpec("model")},
    }
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
    placed = jax.tree.map(place, params, specs)
    return placed, jax.tree.map(lambda x: place(x, PartitionSpec("data")), data)


def collectives(function, *args):
    text = jax.jit(function).lower(*args).compile().as_text()
    return COLLECTIVE.findall(text)


@jax.jit
def products(rows, v):
    """All that rows offer, in one program a kind of rows."""
    return {
        "project": rows.project(v),
        "pull_back": rows.pull_back(jnp.linspace(-1, 1, rows.n)),
        "gram": rows.gram(tuple(w > 0 for w in v)),
        "mean_squares": rows.mean_squares(),
        "columns": rows.columns(jnp.asarray([0, 200, 500, 30])),
        "loss": rows.loss(v),
    }


class TestSelection:
    """Global top-k of sharded scores."""

    def test_only_counts_are_exchanged(self):
        mesh = mesh_of(4, 2)
        shapes = ((64, 32), (40, 16))
        scores = tuple(
            jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes)
        )
        tied = tuple(jnp.round(s) for s in scores)
        over = NamedSharding(mesh, PartitionSpec("data", "model"))
        spread = jax.device_put(tied, (over, over))
        tree = {"a": {"kernel": tied[0]}, "b": {"kernel": tied[1]}}
        budget = swapjax.plan(tree, 0.7, min_keep=3).budget
        found = collectives(select, spread, budget)
        # A number or two, or one of each device: XLA gathers the results of a
        # reduction of several arrays and adds them up everywhere.
        assert {kind for _, kind in found} <= {"all-reduce", "all-gather"}
        for shape, _ in found:
            sides = re.findall(r"[su]32\[([\d,]*)\]", shape)
            assert sides
            for side in sides:
                assert math.prod(map(int, filter(None, side.split(",")))) <= 8
        one, many = jax.jit(select)(tied, budget), jax.jit(select)(spread, budget)
        for a, b in zip(one, many, strict=True):
            np.testing.assert_array_equal(a, b)
            assert b.sharding.is_equivalent_to(over, 2)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("spec", [("data", "model"), ("model", None, None, "data")])
    def test_layers_may_lie_on_several_devices(self, kind, spec):
        mesh = mesh_of(4, 2, kind)
        shapes = {"a": (8, 4, 6, 8), "b": (8, 8, 2, 4)}
        leaves = {
            name: jnp.round(2 * jax.random.normal(jax.random.key(i), shape))
            for i, (name, shape) in enumerate(shapes.items())
        }
        over = NamedSharding(mesh, PartitionSpec(*spec))
        spread = jax.device_put(leaves, over)
        axes = {"a": ("stack", "input", "output", "output"),
                "b": ("stack", "stack", "input", "output")}  # fmt: skip
        for allocation in ("global", "uniform"):
            plan = swapjax.plan(
                leaves, 0.7, axes=axes, allocation=allocation, min_keep=2
            )
            with jax.set_mesh(mesh):
                many = swapjax.magnitude_masks(spread, plan=plan)
                counted = plan.kept_in(many)
            one = swapjax.magnitude_masks(leaves, plan=plan)
            assert counted == plan.kept_in(one)
            for name, mask in one.items():
                np.testing.assert_array_equal(mask, many[name])
                assert many[name].sharding.is_equivalent_to(over, 4)


class TestGradients:
    """Rows of examples that lie on several devices."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("storage", ["stored", "matrix-free"])
    def test_products_are_those_of_one_device(self, storage, kind):
        self.check(mesh_of(4, 2, kind), storage)

    @pytest.mark.parametrize("storage", ["stored", "matrix-free"])
    def test_noise_is_that_of_one_device(self, storage):
        noise = {"corruption": GradientNoise(2.0, 0.5), "key": jax.random.key(3)}
        self.check(mesh_of(8, 1), storage, **noise)

    @staticmethod
    def check(mesh, storage, **options):
        params, data = to_shard()
        target = swapjax.plan(params, 0.5)
        v = target.layout.split(params)

        one, many = (
            per_example_gradients(
                loss_fn, *args, target, batch=2, storage=storage, chunk=3, **options
            )
            for args in ((params, data), lay(mesh, params, data))
        )
        assert many.n == 64 // 2
        source = many if storage == "matrix-free" else many.source
        assert source.lanes == mesh.shape["data"]
        for a, b in zip(
            *(jax.tree.leaves(products(rows, v)) for rows in (one, many)),
            strict=True,
        ):
            scale = float(jnp.max(jnp.abs(a)))
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6 * scale)

    def test_examples_stay_where_they_are(self):
        """Nothing of the size of data or of params moves but the sum of gradients."""
        params, data = lay(mesh_of(8, 1), *to_shard())
        target = swapjax.plan(params, 0.5)
        rows = per_example_gradients(
            loss_fn, params, data, target, storage="matrix-free"
        )
        v = target.layout.split(params)
        assert collectives(lambda r: r.project(v), rows) == []
        found = collectives(lambda r: r.pull_back(jnp.ones(r.n)), rows)
        assert {kind for _, kind in found} == {"all-reduce"}


class TestPrune:
    """A whole run."""

    # In float64: regression multiplies roundings by the condition of its system.
    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("kind", KINDS)
    def test_doubling_devices_changes_nothing(self, kind):
        params, data = to_shard(jnp.float64)
        method = swapjax.swap(
            damping=0.1, support="magnitude", first_order=False, rounds=3, tolerance=0
        )
        # 45 rows do not divide into lanes: the last is filled up, none is dropped.
        run = {"sparsity": 0.7, "method": method, "stages": 2, "samples": 45}
        run |= {"key": jax.random.key(1)}
        alone = swapjax.prune(loss_fn, params, data, **run)
        for shape in ((2, 1), (4, 2)):
            placed = lay(mesh_of(*shape, kind), params, data)
            spread = swapjax.prune(loss_fn, *placed, **run)
            for a, b in zip(
                *map(jax.tree.leaves, (alone.masks, spread.masks)), strict=True
            ):
                np.testing.assert_array_equal(a, b)
            for a, b, like in zip(
                *map(jax.tree.leaves, (alone.params, spread.params, placed[0])),
                strict=True,
            ):
                np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
                assert b.sharding == like.sharding
            for mask, weight in zip(
                *map(jax.tree.leaves, (spread.masks, placed[0])), strict=True
            ):
                assert mask.ndim == 0 or mask.sharding == weight.sharding

    def test_params_alone_may_be_sharded(self):
        params, data = to_shard()
        placed, _ = lay(mesh_of(4, 2), params, data)
        host = jax.tree.map(np.asarray, data)
        run = {"sparsity": 0.5, "method": swapjax.obd(), "samples": 20}
        run |= {"key": jax.random.key(1)}
        alone = swapjax.prune(loss_fn, params, host, **run)
        spread = swapjax.prune(loss_fn, placed, host, **run)
        jax.tree.map(np.testing.assert_array_equal, alone.masks, spread.masks)


class TestErrors:
    """What cannot be."""

    def test_params_and_data_on_different_devices(self):
        params, data = to_shard()
        params = jax.device_put(params, jax.devices()[1])
        data = jax.device_put(data, jax.devices()[2])
        with pytest.raises(ValueError, match=r"data: lies on .*2, but params on .*1"):
            swapjax.prune(loss_fn, params, data, sparsity=0.5, key=jax.random.key(0))

    def test_examples_sharded_in_two_ways(self):
        mesh, (params, (x, y)) = mesh_of(4, 2), to_shard()
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        y = jax.device_put(y, NamedSharding(mesh, PartitionSpec("model")))
        with pytest.raises(ValueError, match="data: arrays are sharded in different"):
            per_example_gradients(loss_fn, params, (x, y), swapjax.plan(params, 0.5))

    def test_arrays_of_no_mesh_are_left_alone(self):
        _, data = to_shard()
        assert sharding.find_spread(data) is None
        assert all(
            a is b for a, b in zip(data, sharding.leave_to_compiler(data), strict=True)
        )
