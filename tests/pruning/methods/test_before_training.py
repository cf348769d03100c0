"""Pruning before training, each method against explicit arithmetic in float64."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import N, apply, explicit, flat, setting, solve

import swapjax
from swapjax import GradientNoise, Status, grasp, plan, random, snip, synflow
from swapjax.pruning import Problem
from swapjax.pruning.methods.synflow import carried
from swapjax.sparsity import schedules
from swapjax.sparsity.scores import gradient_flow

KEY = jax.random.key(0)
ONES = np.ones((1, 5))
ADDS = re.compile("bias|mean")


def relu(x):
    return jnp.maximum(x, 0)


def chain(params, x):
    for name in sorted(params):
        x = relu(x @ params[name]["kernel"] + params[name].get("bias", 0))
    return x


def residual(params, x):
    """Blocks with batch norm in inference mode, around which x goes too."""
    first, *blocks, last = (params[name] for name in sorted(params))
    x = relu(x @ first["kernel"])
    for block in blocks:
        norm = block["norm"]
        y = (x @ block["kernel"] - norm["mean"]) / jnp.sqrt(norm["var"] + 1e-3)
        x = x + relu(norm["scale"] * y + norm["bias"])
    return x @ last["kernel"]


def kernels(sizes, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        f"layer{i:02}": {
            "kernel": (scale * rng.normal(size=(a, b)) * np.sqrt(2 / a)).astype(dtype)
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


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
    weights = target.split(params)
    whole = {"params": params, "positions": target.positions}
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


class TestSnip:
    @pytest.mark.usefixtures("x64")
    def test_takes_the_absolute_value_of_the_mean(self):
        problem, target = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        mean_first = np.abs(w * g.mean(0))
        kept = flat(solve(snip(), problem, target.budget).masks).astype(bool)
        assert kept.sum() == target.kept
        assert mean_first[kept].min() > mean_first[~kept].max()
        mean_last = np.abs(w * g).mean(0)
        assert set(np.argsort(-mean_last)[: target.kept]) != set(np.flatnonzero(kept))

    def test_is_saliency_under_its_own_name(self):
        assert str(snip()) == "snip()"
        problem, target = setting()
        got, wanted = (
            flat(solve(method, problem, target.budget).masks)
            for method in (snip(), swapjax.saliency())
        )
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.usefixtures("x64")
class TestGrasp:
    def squared_gradient(self, problem, at):
        g = problem.rows.at(at).pull_back(jnp.full(N, 1 / N))
        return float(np.sum(flat(g) ** 2))

    def scores(self, problem):
        gradient = problem.rows.pull_back(jnp.full(N, 1 / N))
        return gradient_flow(problem.weights, problem.rows.curve(gradient))

    @pytest.mark.parametrize("storage", ["stored", "matrix-free"])
    def test_scores_are_what_a_removal_takes_from_the_squared_gradient(self, storage):
        problem, target = setting(jnp.float64, storage=storage, chunk=5)
        weights, scores = problem.weights, flat(self.scores(problem))
        step, place = 1e-5, 0
        for leaf, w in enumerate(weights):
            for entry in range(0, w.size, 7):
                moved = [
                    tuple(
                        x if i != leaf else x.at[divmod(entry, x.shape[1])].multiply(m)
                        for i, x in enumerate(weights)
                    )
                    for m in (1 + step, 1 - step)
                ]
                more, less = (self.squared_gradient(problem, at) for at in moved)
                # A whole removal is a step of one: g^T g then changes by -2 w (H g).
                change = (less - more) / (2 * step)
                np.testing.assert_allclose(
                    change, -2 * scores[place + entry], rtol=1e-6, atol=1e-9
                )
            place += w.size
        kept = flat(solve(grasp(), problem, target.budget).masks).astype(bool)
        assert kept.sum() == target.kept
        assert scores[kept].min() > scores[~kept].max()

    def test_the_hessian_is_that_of_the_mean_loss(self):
        stored, _ = setting(jnp.float64)
        free, _ = setting(jnp.float64, storage="matrix-free", chunk=7)
        v = tuple(jnp.cos(jnp.arange(w.size)).reshape(w.shape) for w in stored.weights)
        gradient = jax.grad(stored.rows.loss)
        wanted = jax.jvp(gradient, (stored.weights,), (v,))[1]
        for problem in (stored, free):
            np.testing.assert_allclose(
                flat(problem.rows.curve(v)), flat(wanted), rtol=1e-9, atol=1e-12
            )

    def test_noise_and_rounded_rows_leave_the_hessian_alone(self):
        clean, _ = setting(jnp.float64, storage="matrix-free")
        noisy, target = setting(
            jnp.float64, storage="matrix-free", corruption=GradientNoise(4.0, 0.5),
            key=KEY,
        )  # fmt: skip
        rounded = dataclasses.replace(clean.rows, dtype=jnp.dtype("bfloat16"))
        wanted = flat(clean.rows.curve(clean.weights))
        for rows in (noisy.rows, rounded):
            got = flat(rows.curve(clean.weights))
            np.testing.assert_allclose(got, wanted, rtol=1e-12)
        solution = solve(grasp(), noisy, target.budget)
        assert flat(solution.masks).sum() == target.kept
        assert (
            flat(solution.masks) != flat(solve(grasp(), clean, target.budget).masks)
        ).any()


class TestRandom:
    def test_the_same_key_gives_the_same_masks(self):
        problem, target = setting()
        first, again, other = (
            flat(solve(random(key), problem, target.budget).masks)
            for key in (KEY, jax.random.key(0), jax.random.key(1))
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
        assert random(KEY) == random(jax.random.key(0)) != random(jax.random.key(1))
        assert hash(random(KEY)) == hash(random(jax.random.key(0)))
        old = solve(random(jax.random.PRNGKey(0)), problem, target.budget)
        np.testing.assert_array_equal(flat(old.masks), first)

    def test_entries_are_kept_wherever_they_lie(self):
        params = {"a": {"kernel": np.ones((400, 300))}, "b": {"kernel": np.ones(80000)}}
        target = plan(params, 0.7, include="kernel")
        weights = target.split(jax.tree.map(jnp.float32, params))
        masks = solve(random(KEY), Problem(weights, weights), target.budget).masks
        for part in (*np.split(masks[0], 4), *np.split(masks[1], 4)):
            deviation = np.sqrt(0.3 * 0.7 / part.size)
            assert abs(np.mean(part) - 0.3) < 5 * deviation

    def test_counts_of_an_erk_plan_are_exact(self):
        params = kernels((30, 20, 10, 4))
        target = plan(params, 0.8, allocation="erk")
        pruned = swapjax.prune(
            lambda p, b: jnp.mean(chain(p, b)), params, np.ones((1, 30), np.float32),
            plan=target, method=random(KEY), samples=1, key=KEY,
        )  # fmt: skip
        kept = [int(layer["kernel"].sum()) for layer in pruned.masks.values()]
        assert kept == list(target.keep)

    def test_masks_of_stages_lie_in_each_other(self):
        problem, target = setting()
        masks = [
            flat(solve(random(KEY), problem, target.at(s).budget).masks)
            for s in (0.2, 0.5, 0.6)
        ]
        for more, fewer in itertools.pairwise(masks):
            assert (fewer <= more).all()


class TestSynflow:
    @pytest.mark.usefixtures("x64")
    def test_equals_the_sum_over_paths_and_conserves_it(self):
        params = kernels((5, 7, 6, 3), dtype=np.float64)
        got, wanted = synflow_scores(params), flows(params)
        assert spread_of_ratio(got, wanted) < 1e-12
        np.testing.assert_allclose([s.sum() for s in got], got[0].sum(), rtol=1e-12)

    @pytest.mark.usefixtures("x64")
    def test_equals_the_derivative_of_the_positive_network(self):
        """Scales lose their sign, means and biases count as zero, variances stay."""
        params = with_norms(kernels((5, 6, 6, 6, 3), dtype=np.float64))
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
        bare, biased = kernels((5, 7, 3)), kernels((5, 7, 3))
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
        params = kernels((6, *((8, 5, 9) * 20)[:depth], 4), scale)
        wanted = flows(params)
        assert not 1e-38 < wanted[0].sum() < 1e38
        got = synflow_scores(params)
        assert len(got) == depth + 1
        assert spread_of_ratio(got, wanted) < 1e-4
        np.testing.assert_allclose([s.sum() for s in got], got[0].sum(), rtol=1e-5)

    def test_layers_of_other_scales_each_have_it_too(self):
        params = kernels((8,) * 21)
        for i, layer in enumerate(params.values()):
            layer["kernel"] *= np.float32(1e5 if i < 10 else 1e-6)
        assert spread_of_ratio(synflow_scores(params), flows(params)) < 1e-4

    def test_layers_stacked_in_a_leaf_have_it_too(self):
        sheets = 100 * np.random.default_rng(0).normal(size=(80, 6, 6))
        params = {"layers": {"kernel": np.float32(sheets)}, "z": kernels((6, 3))}
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
        params = kernels((8,) * 12, scale=2e4)
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
        params = kernels((5, 7, 6, 3), dtype=np.float64)

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
        params = kernels((5, 7, 6, 3))
        params["layer01"]["kernel"][:] = 0
        assert not any(leaf.any() for leaf in synflow_scores(params))

    def test_many_stages_keep_the_layers_alive_that_one_empties(self):
        params, x = kernels((16, 64, 64, 64, 6)), np.ones((1, 16), np.float32)
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
        params = kernels((5, 7, 6, 3))
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


@pytest.mark.parametrize("name", ["snip", "grasp", "random", "synflow", "magnitude"])
@pytest.mark.usefixtures("x64")
def test_jit_changes_nothing(name):
    problem, target = setting(jnp.float64)
    method = {
        "snip": snip(), "grasp": grasp(), "random": random(KEY),
        "synflow": synflow(apply, (6,)), "magnitude": swapjax.magnitude(),
    }[name]  # fmt: skip
    eager = method(problem, target.budget)
    jitted = solve(method, problem, target.budget)
    np.testing.assert_array_equal(flat(eager.masks), flat(jitted.masks))
    np.testing.assert_array_equal(flat(eager.weights), flat(jitted.weights))
    # Weights are left as they are, for training to start from.
    kept = flat(eager.masks).astype(bool)
    np.testing.assert_array_equal(
        flat(eager.weights), np.where(kept, flat(problem.weights), 0)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random(0), "key must be a JAX PRNG key, got 0"),
        (lambda: random(jax.random.split(KEY)), "key must be one PRNG key"),
        (lambda: random(jnp.ones(3)), "key must be a JAX PRNG key"),
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
