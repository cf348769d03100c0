import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import DATA
from small_spaces import CLASSES, HASTY, SHAPE

from swapjax import search

TEXT = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('dil_conv_5x5', 1), ('avg_pool_3x3', 4)], normal_concat=range(2, 6), "
    "reduce=[('skip_connect', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 2), ('dil_conv_3x3', 1), ('avg_pool_3x3', 3), "
    "('skip_connect', 0), ('sep_conv_5x5', 4)], reduce_concat=range(2, 6))"
)


@pytest.fixture(scope="module")
def darts():
    """Three cells, of which the first is a normal one."""
    return search.darts(channels=2, cells=3)


def test_a_genotype_reads_as_darts_writes_it():
    space = search.darts()
    genotype = space.parse(TEXT)
    assert str(genotype) == TEXT
    assert genotype.of("reduce")[3] == (2, 3, "skip_connect")
    assert space.parse(TEXT.replace("range(2, 6)", "[2, 3, 4, 5]")) == genotype
    swapped = TEXT.replace(
        "('sep_conv_3x3', 0), ('skip_connect', 1)",
        "('skip_connect', 1), ('sep_conv_3x3', 0)",
    )
    assert space.parse(swapped) == genotype
    assert space.decode(space.encode(genotype)) == genotype


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("range(2, 6)", "range(2, 5)", "must read"),
        ("range(2, 6)", "open('x')", "must read"),
        ("('skip_connect', 1), ", "", "must read"),
        ("('sep_conv_5x5', 4)", "('sep_conv_5x5', 5)", "must read"),
        ("('sep_conv_5x5', 4)", "('sep_conv_5x5', 0)", "node 5 of reduce has 2 diff"),
        ("sep_conv_5x5", "none", "operations of darts are .*'none'"),
        ("sep_conv_5x5", "conv_7x1", "operations of darts are .*'conv_7x1'"),
        ("normal", "usual", "must read"),
        ("Genotype(", "Genotype(3, ", "must read"),
        ("reduce_concat", "other=3, reduce_concat", "must read"),
        (TEXT, "|sep_conv_3x3~0|", "cells of kind normal, reduce"),
    ],
)
def test_what_is_no_genotype_is_told(old, new, match):
    with pytest.raises(ValueError, match=match):
        search.darts().check(TEXT.replace(old, new))


def test_the_two_best_edges_of_each_node_are_kept():
    space = search.darts()
    scores = {k: np.tile(np.arange(8.0), (14, 1)) for k in space.kinds}
    scores["normal"][:, 0] = 99  # none is never taken
    scores["normal"] += np.asarray([i for i, _ in space.edges["normal"]])[:, None]
    found = space.genotype(scores)
    taken = [(i, j) for i, j, _ in found.of("normal")]
    assert taken == [(0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5)]
    assert {op for _, _, op in found.of("normal")} == {"dil_conv_5x5"}


def test_the_space_is_that_of_darts():
    space = search.darts()
    per_cell = 1 * 3 * 6 * 10 * 7**8
    assert space.size == per_cell**2
    for cells, groups in (8, 8), (20, 9):
        space = search.darts(cells=cells)
        theta = jax.eval_shape(lambda: space.init(jax.random.key(0)))  # noqa: B023
        assert sum(name.startswith("cell") for name in theta) == groups
    deep = theta["cells2-5"]["stride1"]["sep_conv_5x5"]["first"]["depthwise"]
    assert deep["kernel"].shape == (4, 14, 5, 5, 1, 16)
    halving = theta["cell13"]["stride2"]["skip_connect"]["even"]
    assert halving["kernel"].shape[0] == 8
    image = jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)
    out = jax.eval_shape(space.apply, theta, space.alpha(), image)
    assert out.shape == (3, 10)


def test_the_supernet_with_chosen_operations_is_their_network(darts):
    """In a scan over edges, and cell by cell."""
    network = darts.network(TEXT, SHAPE, CLASSES, affine=False)
    theta = darts.init(jax.random.key(0), SHAPE, CLASSES)
    stacks = {
        (kind, stride): [
            (i, j) for i, j in darts.edges["normal"]
            if (2 if kind == "reduce" and i < 2 else 1) == stride
        ]
        for kind in darts.kinds for stride in (1, 2)
    }  # fmt: skip

    def there(theta, path):
        name, *rest = (key.key for key in path)
        leaf = theta[name]
        if "-" in rest[0]:
            kind = "reduce" if "stride2" in leaf else "normal"
            i, j = map(int, rest.pop(0).split("-"))
            stride = 2 if kind == "reduce" and i < 2 else 1
            leaf = leaf[f"stride{stride}"]
            at = stacks[kind, stride].index((i, j))
            for key in rest:
                leaf = leaf[key]
            return leaf[at]
        for key in rest:
            leaf = leaf[key]
        return leaf

    shapes = jax.eval_shape(network.init, jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (1, *SHAPE))
    alpha = darts.one_hot(TEXT)

    # Compiled without care: there is much of it, and little to do.
    @functools.partial(jax.jit, compiler_options=HASTY)
    def both(theta):
        params = jax.tree.map_with_path(lambda path, _: there(theta, path), shapes)
        alone = network.apply(params, x, norm="train")
        return alone, darts.apply(theta, alpha, x, norm="train")

    np.testing.assert_allclose(*both(theta), rtol=1e-3, atol=1e-4)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="cells must be 3 or more, got 2"):
        search.darts(cells=2)
    with pytest.raises(ValueError, match="channels must be even, got 5"):
        search.darts(channels=5)
    with pytest.raises(ValueError, match="sides divisible by 4 for darts"):
        search.darts().network(TEXT, (30, 32, 3))


@pytest.mark.skipif(
    not (DATA / "data/nas_tables.npz").exists(), reason="needs nas_tables.npz"
)
def test_weights_and_products_are_the_published_ones():
    """As NASLib counted them: 8 cells, 32 channels, operations as in a supernet.

    The inputs of its cells have batch norm with scale and bias, ours in a supernet do
    not: 2 x 2 x 640 weights. Its flops count batch norm without a scale and ReLU as one
    operation a number, pooling as nine; 2.4008 million lie outside of the edges.
    """
    with np.load(DATA / "data/nas_tables.npz") as file:
        tables = dict(file)
    columns, names = tables["columns"].tolist(), tables["darts_ops"].tolist()
    space = search.darts(channels=32, cells=8)
    assert tuple(names) == space.ops[1:]
    sizes = {
        "normal": 2 * (32 * 32**2 + 64 * 16**2 + 128 * 8**2),
        "reduce": 64 * 16**2 + 128 * 8**2,
    }
    for i in np.random.default_rng(0).choice(250, 3, replace=False):
        cells = [
            (kind, [(a, 2 + n // 2, names[op]) for n, (a, op) in enumerate(pairs)])
            for kind, pairs in zip(space.kinds, tables["darts_cells"][i], strict=True)
        ]
        genotype = space.check(search.Genotype(tuple(cells)))
        network = space.network(genotype, affine=False)
        row = tables["darts_values"][i]
        told = dict(zip(columns, row.tolist(), strict=True))
        weights = network.weights + 2 * 2 * 640
        assert weights / 1e6 == pytest.approx(told["params"], rel=1e-6)
        others = 2_400_770
        for kind, size in sizes.items():
            for source, _, op in genotype.of(kind):
                wide = 4 if kind == "reduce" and source < 2 else 1
                times = {"sep": wide + 3, "dil": wide + 1, "max": 10, "avg": 10}
                skip = wide + 1 if wide > 1 else 0
                others += size * times.get(op[:3], skip)
        assert network.macs + others == pytest.approx(told["flops"] * 1e6, rel=1e-6)
