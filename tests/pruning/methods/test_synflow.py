"""SynFlow against sums over paths in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import chain, chain_params, relu, solve
from trees import flat

import swapjax
from swapjax import Status, grasp, plan, synflow
from swapjax.pruning import Problem
from swapjax.pruning.methods.synflow import carried
from swapjax.sparsity import schedules

KEY = jax.random.key(0)
ONES = np.ones((1, 5))
ADDS = re.compile("bias|mean")


def residual(params, x):
    """Blocks with batch norm in inference mode, around which x goes too."""
    first, *blocks, last = (params[name] for name in sorted(params))
    x = relu(x @ first["kernel"])
    for block in blocks:
        norm = block["norm"]
        y = (x @ block["kernel"] - norm["mean"]) / jnp.sqrt(norm["var"] + 1e-3)
        x = x + relu(norm["scale"] * y + norm["bias"])
    return x @ last["kernel"]


def with_norms(params):
    rng = np.random.default_rng(1)
    for layer in list(params.values())[1:-1]:
        width = layer["kernel"].shape[1]
        scale, bias, mean, deviation = rng.normal(size=(4, width)).astype(np.float32)
        norm = {"scale": scale, "bias": bias, "mean": mean, "var": deviation**2}
        layer["norm"] = norm
    return params


def problem_of(params, **options):
    target = plan(params, 0.5, min_keep=0)
    params = jax.tree.map(jnp.asarray, params)
    weights = target.layout.split(params)
    whole = {"params": params, "layout": target.layout}
    return Problem(weights, weights, **whole, **options), target


def synflow_scores(params, apply=chain, width=None):
    width = next(iter(params.values()))["kernel"].shape[0] if width is None else width
    problem, _ = problem_of(params)
    work = jax.jit(lambda problem: carried(problem, apply, (width,), ADDS))
    return [np.asarray(leaf, np.float64) for leaf in work(problem)]


def flows(params):
    """|w dR/dw| of a chain without biases, forwards and backwards by hand."""
    sizes = [np.abs(np.float64(layer["kernel"])) for layer in params.values()]
    reached = [np.ones(sizes[0].shape[0])]
    for w in sizes:
        reached.append(reached[-1] @ w)
    back, found = np.ones(sizes[-1].shape[1]), []
    for a, w in zip(reached[-2::-1], sizes[::-1], strict=True):
        found.insert(0, a[:, None] * w * back)
        back = w @ back
    return found


def positive(params):
    return jax.tree.map(jnp.abs, params)


def spread_of_ratio(got, wanted):
    """How far scores are from one common multiple of others."""
    ratio = np.concatenate([np.ravel(a) / np.ravel(b) for a, b in zip(got, wanted)])  # noqa: B905
    return ratio.max() / ratio.min() - 1


class TestSynflow:
    @pytest.mark.usefixtures("x64")
    def test_equals_the_sum_over_paths_and_conserves_it(self):
        params = chain_params((5, 7, 6, 3), dtype=np.float64)
        got, wanted = synflow_scores(params), flows(params)
        assert spread_of_ratio(got, wanted) < 1e-12
        np.testing.assert_allclose([s.sum() for s in got], got[0].sum(), rtol=1e-12)

    @pytest.mark.usefixtures("x64")
    def test_equals_the_derivative_of_the_positive_network(self):
        """Scales lose their sign, means and biases count as zero, variances stay."""
        params = with_norms(chain_params((5, 6, 6, 6, 3), dtype=np.float64))
        bare = jax.tree.map(np.float64, params)
        for layer in list(bare.values())[1:-1]:
            norm = layer["norm"]
            norm["scale"] = np.abs(norm["scale"])
            norm["mean"] = norm["bias"] = np.zeros(6)

        def total(at):
            whole = {name: {**bare[name], "kernel": at[name]} for name in bare}
            return jnp.sum(residual(whole, jnp.ones((1, 5))))

        at = {name: np.abs(layer["kernel"]) for name, layer in bare.items()}
        slopes = jax.grad(total)(at)
        wanted = [at[name] * slopes[name] for name in bare]
        assert spread_of_ratio(synflow_scores(params, residual), wanted) < 1e-10

    def test_biases_do_not_move_scores(self):
        bare, biased = chain_params((5, 7, 3)), chain_params((5, 7, 3))
        for layer in biased.values():
            layer["bias"] = np.full(layer["kernel"].shape[1], -3, np.float32)
        problem, _ = problem_of(biased)
        found = carried(problem, chain, (5,), ADDS)
        for a, b in zip(found, synflow_scores(bare), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        # Another name is taken for a weight.
        other = carried(problem, chain, (5,), re.compile("offset"))
        assert np.abs(flat(other) / flat(found) - 1).max() > 0.1

    @pytest.mark.parametrize(
        ("depth", "scale"),
        [(60, 8.0), (15, 1e3), (15, 1e-3)],
        ids=["deep", "overflows", "underflows"],
    )
    def test_deep_networks_have_the_order_of_float64(self, depth, scale):
        params = chain_params((6, *((8, 5, 9) * 20)[:depth], 4), scale)
        wanted = flows(params)
        assert not 1e-38 < wanted[0].sum() < 1e38
        got = synflow_scores(params)
        assert len(got) == depth + 1
        assert spread_of_ratio(got, wanted) < 1e-4
        np.testing.assert_allclose([s.sum() for s in got], got[0].sum(), rtol=1e-5)

    def test_layers_of_other_scales_each_have_it_too(self):
        params = chain_params((8,) * 21)
        for i, layer in enumerate(params.values()):
            layer["kernel"] *= np.float32(1e5 if i < 10 else 1e-6)
        assert spread_of_ratio(synflow_scores(params), flows(params)) < 1e-4

    def test_layers_stacked_in_a_leaf_have_it_too(self):
        sheets = 100 * np.random.default_rng(0).normal(size=(80, 6, 6))
        params = {"layers": {"kernel": np.float32(sheets)}, "z": chain_params((6, 3))}
        params["z"] = params["z"]["layer00"]

        def scanned(params, x):
            step = lambda x, w: (relu(x @ w), None)  # noqa: E731
            x, _ = jax.lax.scan(step, x, params["layers"]["kernel"])
            return x @ params["z"]["kernel"]

        got = synflow_scores(params, scanned, 6)
        names = {f"{i:02}": {"kernel": w} for i, w in enumerate(sheets)}
        *stacked, last = flows(names | {"z": params["z"]})
        assert spread_of_ratio(got, [np.stack(stacked), last]) < 1e-4

    def test_residual_connections_have_it_until_float32_ends(self):
        """Leaves may not be scaled there: some paths go around them."""
        params = chain_params((8,) * 12, scale=2e4)
        one, none = np.ones(8, np.float32), np.zeros(8, np.float32)
        for layer in list(params.values())[1:-1]:
            layer["norm"] = {"scale": one, "bias": none, "mean": none, "var": one}
        params["layer03"]["kernel"] /= 2e4  # where going around makes a difference
        got = synflow_scores(params, residual)
        with jax.enable_x64(True):
            double = jax.tree.map(np.float64, params)
            wanted = synflow_scores(double, residual)
            top = jax.grad(lambda x: jnp.sum(residual(positive(double), x)))
            assert 1e45 < np.sum(np.asarray(top(jnp.ones((1, 8))))) < 1e60
        assert spread_of_ratio(got, wanted) < 1e-4
        for layer in params.values():
            layer["kernel"] *= np.float32(1e3)
        problem, target = problem_of(params)
        solution = solve(synflow(residual, (8,)), problem, target.budget)
        assert Status(int(solution.status)) is Status.NOT_FINITE
        assert flat(solution.masks).sum() == target.kept

    @pytest.mark.usefixtures("x64")
    def test_activations_that_bend_are_left_at_their_scale(self):
        params = chain_params((5, 7, 6, 3), dtype=np.float64)

        def bent(params, x):
            for name in sorted(params):
                x = jnp.tanh(x @ params[name]["kernel"])
            return x

        at = tuple(np.abs(layer["kernel"]) for layer in params.values())
        total = lambda at: jnp.sum(  # noqa: E731
            bent({n: {"kernel": w} for n, w in zip(params, at, strict=True)}, ONES)
        )
        wanted = [w * s for w, s in zip(at, jax.grad(total)(at), strict=True)]
        assert spread_of_ratio(synflow_scores(params, bent), wanted) < 1e-10

    def test_a_layer_of_zeros_gives_zeros(self):
        params = chain_params((5, 7, 6, 3))
        params["layer01"]["kernel"][:] = 0
        assert not any(leaf.any() for leaf in synflow_scores(params))

    def test_many_stages_keep_the_layers_alive_that_one_empties(self):
        params, x = chain_params((16, 64, 64, 64, 6)), np.ones((1, 16), np.float32)
        kept = {}
        for stages in (1, 100):
            pruned = swapjax.prune(
                lambda p, b: jnp.mean(chain(p, b)), params, x,
                plan=plan(params, 0.99, min_keep=0), method=synflow(chain, (16,)),
                stages=stages, samples=1, schedule=schedules.geometric(), key=KEY,
            )  # fmt: skip
            kept[stages] = [int(leaf["kernel"].sum()) for leaf in pruned.masks.values()]
            assert sum(kept[stages]) == round(9600 * 0.01)
        assert min(kept[1]) == 0
        assert min(kept[100]) > 10
        # Some path is left from inputs to outputs.
        assert np.asarray(flows(pruned.params)[0]).sum() > 0

    def test_what_is_not_within_carries_nothing(self):
        params = chain_params((5, 7, 6, 3))
        allowed = tuple(
            jnp.asarray(np.arange(np.size(layer["kernel"])) % 3 > 0).reshape(
                layer["kernel"].shape
            )
            for layer in params.values()
        )
        problem, _ = problem_of(params, within=allowed)
        found = carried(problem, chain, (5,), ADDS)
        for layer, mask in zip(params.values(), allowed, strict=True):
            layer["kernel"] = layer["kernel"] * np.asarray(mask)
        for a, b in zip(found, flows(params), strict=True):
            np.testing.assert_allclose(a / found[0].sum(), b / flows(params)[0].sum(),
                                       rtol=1e-5, atol=1e-9)  # fmt: skip

    def test_is_one_with_the_same_settings_and_prints_no_address(self):
        assert synflow(chain, (5,)) == synflow(chain, [5])
        assert synflow(chain, (5,)) != synflow(residual, (5,))
        assert str(synflow(chain, (5,))).startswith("synflow(apply=chain, shape=(5,)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: synflow(None, (5,)), "apply must be a function"),
        (lambda: synflow(chain, 5), "shape must be that of one example, got 5"),
        (lambda: synflow(chain, (5, 0)), "shape must be 1 or more, got 0"),
        (lambda: synflow(chain, (5.0,)), "shape must be a whole number, got 5.0"),
        (lambda: synflow(chain, (5,), additive="("), "additive: '\\(' is not a reg"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_method_misses_is_named():
    weights = (jnp.ones((2, 2)),)
    budget = plan({"kernel": weights[0]}, 0.5).budget
    with pytest.raises(ValueError, match="needs params"):
        synflow(chain, (2,))(Problem(weights, weights), budget)
    with pytest.raises(ValueError, match="needs gradient rows"):
        grasp()(Problem(weights, weights), budget)
