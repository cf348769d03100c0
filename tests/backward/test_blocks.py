"""Blocks of gradients, drawn without bias, beside dense gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from residual_loop import loss_fn, weights

from swapjax import backward
from swapjax.backward.blocks import blocks_of, dropped
from swapjax.training import Objective, fit

KEY = jax.random.key(0)
BATCH = 8


def turned(x, w):
    """The weight first."""
    return lax.dot_general(w, x, (((1,), (2,)), ((), ())))


def experts(x, w):
    return lax.dot_general(x, w, (((2,), (1,)), ((1,), (0,))))


def convolved(x, w):
    return lax.conv_general_dilated(
        x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


CASES = {
    "dense": (lambda x, w: x @ w, (BATCH, 3, 4), (4, 6), 0),
    "turned": (turned, (BATCH, 3, 4), (6, 4, 2), 1),
    "experts": (experts, (BATCH, 3, 4), (3, 4, 6), 0),
    "convolution": (convolved, (BATCH, 5, 4, 2), (3, 2, 2, 6), 0),
}


def problem(name, along, keep, size):
    """Blocks of a product, its operands, and a gradient of its output."""
    function, shape, kernel, data = CASES[name]
    x = jax.random.normal(KEY, shape)
    w = jax.random.normal(jax.random.key(1), kernel)
    (equation,) = [
        eqn
        for eqn in jax.make_jaxpr(function)(x, w).eqns
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    blocks = blocks_of(equation, data, along, keep, size, BATCH)
    y = function(x, w)
    scale = jnp.exp(jax.random.normal(jax.random.key(3), y.shape))
    operands = (w, x) if data else (x, w)
    return blocks, operands, scale * jax.random.normal(jax.random.key(2), y.shape)


@pytest.mark.parametrize("along", ["examples", "channels"])
@pytest.mark.parametrize("name", CASES)
def test_both_gradients_are_without_bias(name, along):
    size = 2 if along == "examples" else 1
    blocks, operands, slope = problem(name, along, 0.5, size)
    number = 4 if along == "examples" else 6
    assert (blocks.number, blocks.kept) == (number, number // 2)

    def gradients(bits):
        product = lambda *both: dropped(blocks, *both, bits)  # noqa: E731
        return jax.vjp(product, *operands)[1](slope)

    # Offsets of the comb in the middle of equal parts: no luck is left.
    places = np.linspace(0, 2**29, 4000, endpoint=False) + 2**16
    found = jax.jit(jax.vmap(gradients))(jnp.asarray(places, jnp.uint32))
    plain = lambda *both: blocks.equation.primitive.bind(  # noqa: E731
        *both, **blocks.equation.params
    )
    exact = jax.vjp(plain, *operands)[1](slope)
    for draws, whole in zip(found, exact, strict=True):
        mean = np.asarray(draws, np.float64).mean(axis=0)
        assert np.abs(mean - whole).max() < 0.01 * np.abs(whole).max()
    which = blocks.which
    kept = np.moveaxis(np.asarray(found[which][0]), blocks.axis, 0)
    kept = kept.reshape(blocks.number, -1).any(axis=1)
    assert kept.sum() == blocks.kept


def test_blocks_are_the_largest_that_divide():
    def number(name, along, keep, size):
        blocks = problem(name, along, keep, size)[0]
        return None if blocks is None else (blocks.number, blocks.kept)

    assert number("dense", "channels", 0.25, 128) is None  # one block of six
    assert number("dense", "channels", 0.25, 4) == (2, 1)
    assert number("dense", "examples", 0.25, 3) == (4, 1)
    assert number("dense", "examples", 0.99, 1) is None  # all of eight
    assert number("turned", "channels", 0.5, 3) == (2, 1)


@pytest.fixture(scope="module")
def params():
    return weights(KEY)


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.fold_in(KEY, 7), (BATCH, 3))
    return 2 * x, jax.random.randint(KEY, (BATCH,), 0, 3)


def test_gradients_of_a_network_are_without_bias(params, batch):
    objective = backward.drop_blocks(loss_fn, keep=0.5, along="examples")
    state = objective.init(params, batch)
    keys = jax.random.split(KEY, 2000)
    gradient = jax.vmap(lambda key: objective.gradient(params, state, batch, key)[0])
    found = jax.jit(gradient)(keys)
    exact = jax.grad(loss_fn)(params, batch)
    for name in params:
        draws = np.asarray(found[name], np.float64)
        error = draws.std(axis=0) / np.sqrt(len(keys))
        assert np.all(abs(draws.mean(axis=0) - exact[name]) <= 5 * error + 1e-6), name


def test_an_example_that_is_dropped_is_dropped_before_too(params, batch):
    """With half the examples kept, the sums of outer products have half their rank."""
    objective = backward.drop_blocks(loss_fn)  # a quarter of the examples
    state = objective.init(params, batch)
    gradients, _, new, _ = objective.gradient(params, state, batch, KEY)
    ranks = np.linalg.matrix_rank(gradients["blocks"], tol=1e-5)
    assert list(ranks) == [2, 2]
    assert new.step == 1


def test_members_and_devices_draw_apart(params, batch):
    objective = backward.drop_blocks(loss_fn)
    state = objective.init(params, batch)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    step = lambda params, batch: objective.gradient(params, state, batch, KEY)[0]  # noqa: E731
    for gradient in jax.tree.leaves(jax.jit(jax.vmap(step, (0, None)))(two, batch)):
        assert not np.array_equal(gradient[0], gradient[1])
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.PartitionSpec(*axes) for axes in (("d",), ()))

    def step_of_part(params, batch):
        params = jax.tree.map(lambda x: jax.lax.pcast(x, "d", to="varying"), params)
        return jax.tree.map(lambda x: x[None], step(params, batch))

    apart = jax.shard_map(
        step_of_part, mesh=mesh, in_specs=(whole, rows), out_specs=rows
    )
    same = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
    for gradient in jax.tree.leaves(jax.jit(apart)(params, same)):
        assert not np.array_equal(gradient[0], gradient[1])


@pytest.mark.parametrize("along", ["examples", "channels"])
@pytest.mark.parametrize("lost", [1, BATCH])
def test_what_is_not_finite_is_not_dropped(along, lost, params, batch):
    objective = backward.drop_blocks(loss_fn, keep=0.25, along=along, block=1)
    state = objective.init(params, batch)
    bad = batch[0].at[:lost, 0].set(jnp.nan), batch[1]
    gradients = jax.jit(objective.gradient)(params, state, bad, KEY)[0]
    for name, gradient in gradients.items():
        assert jnp.isnan(gradient).all(), name


def test_fit_takes_it_and_keys_used_twice_are_counted(params, batch):
    objective = backward.drop_blocks(
        loss_fn, keep=0.5, along="channels", block="channel"
    )
    fitted = fit(
        objective, params, optax.sgd(0.1), batch, epochs=3, batch=BATCH, key=KEY
    )
    assert fitted.history[-1].loss < fitted.history[0].loss
    state = objective.init(params, batch)
    state = objective.gradient(params, state, batch, KEY)[2]
    with pytest.raises(ValueError, match="key: it is that of the step before"):
        objective.gradient(params, state, batch, KEY)


WAYS = (backward.prune_backward, backward.vcas, backward.drop_blocks)


@pytest.mark.parametrize("way", WAYS)
def test_what_all_ways_refuse(way):
    with pytest.raises(ValueError, match="loss_fn must be a function of params and"):
        way(3)
    objective = way(lambda params, x: x)
    for method in (objective.loss, objective.gradient):
        with pytest.raises(ValueError, match="State, as init returns it, got tuple"):
            method({}, (), None, KEY)


@pytest.mark.parametrize("way", WAYS)
def test_no_way_has_second_derivatives(way, params, batch):
    objective = way(loss_fn)
    state = objective.init(params, batch)

    def slope(params):
        gradients = objective.gradient(params, state, batch, KEY)[0]
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradients))

    with pytest.raises(ValueError, match="do not pass where gradients are pruned"):
        jax.eval_shape(jax.grad(slope), params)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": 0}, r"keep must be in \(0, 1\), got 0"),
        ({"keep": 1.0}, r"keep must be in \(0, 1\), got 1.0"),
        ({"along": "rows"}, "along must be 'channels' or 'examples', got 'rows'"),
        ({"block": "channel"}, "a whole number or 'example' along examples, got 'ch"),
        ({"block": 0}, "block must be 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        backward.drop_blocks(loss_fn, **options)


def test_bad_input(params, batch):
    with pytest.raises(ValueError, match="no product has blocks of channels to drop"):
        backward.drop_blocks(loss_fn, along="channels").init(params, batch)
    with pytest.raises(ValueError, match="must multiply a leaf of params with data"):
        backward.drop_blocks(lambda p, b: jnp.mean(p["in"])).init(params, batch)
    own = Objective(lambda *_: None, gradient=lambda *_: None)
    with pytest.raises(ValueError, match="an objective with a gradient of its own"):
        backward.drop_blocks(own)
