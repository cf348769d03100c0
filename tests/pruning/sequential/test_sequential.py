"""Pruning block by block, against loops over blocks in float64."""

import block_networks as networks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax

SAMPLES, BATCH, SPARSITY = 4, 2, 0.5
LAYERS = ("query", "key", "value", "out", "up", "down")


def prune(params, batch, method, **more):
    settings = {"sparsity": SPARSITY, "samples": SAMPLES, "batch": BATCH} | more
    return swapjax.prune(
        networks.loss_fn, params, batch, method=method, key=jax.random.key(0),
        sequential=True, **settings,
    )  # fmt: skip


def stacked(blocks):
    """Stack blocks of any kind, for comparison."""
    if isinstance(blocks, dict) and "norm" in blocks:
        return blocks
    blocks = list(blocks.values()) if isinstance(blocks, dict) else blocks
    return jax.tree.map(lambda *x: np.stack(x), *blocks)


# Slow and obvious, in NumPy.


def normed(x, scale):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale


def forward(block, h):
    """Go through a block, and tell what each of its layers reads."""
    x = normed(h, block["norm"])
    scores = x @ block["query"] @ np.swapaxes(x @ block["key"], -1, -2)
    seen = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = seen / seen.sum(axis=-1, keepdims=True) @ (x @ block["value"])
    h = h + seen @ block["out"]
    y = normed(h, block["again"])
    hidden = np.maximum(y @ block["up"], 0)
    read = dict(zip(LAYERS, (x, x, x, seen, y, hidden), strict=True))
    return h + hidden @ block["down"], read


def wanda(weights, read):
    """Keep half of each output by |w| times what it reads."""
    score = np.abs(weights) * np.sqrt((read**2).sum(axis=(0, 1)))[:, None]
    order = np.argsort(np.argsort(score, axis=0, kind="stable"), axis=0)
    return order >= len(weights) / 2


def magnitude(weights, read):
    order = np.argsort(np.argsort(np.abs(weights).ravel()))
    return (order >= order.size / 2).reshape(weights.shape)


def by_loops(params, tokens, choose):
    """Prune block after block; what reaches one came through those before it."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    h, masks = params["table"][tokens], []
    for block in params["blocks"]:
        _, read = forward(block, h)
        chosen = {name: choose(block[name], read[name]) for name in LAYERS}
        masks.append(chosen)
        h, _ = forward(block | {k: block[k] * chosen[k] for k in LAYERS}, h)
    return masks, choose(params["head"], h)


@pytest.fixture(scope="module")
def pruned():
    """The same network, pruned as lists, dicts and stacks, by each method."""
    batch, kinds = networks.examples(SAMPLES * BATCH), ("listed", "nested", "stacked")
    runs = [(kind, swapjax.wanda()) for kind in kinds]
    runs += [(kind, swapjax.layerwise_obs()) for kind in ("listed", "stacked")]
    runs += [("listed", swapjax.magnitude())]
    return {
        (kind, method.name): prune(networks.make(kind), batch, method)
        for kind, method in runs
    }


@pytest.mark.parametrize("choose", [wanda, magnitude])
def test_masks_are_those_of_a_loop_over_blocks(pruned, choose):
    params, (tokens, _) = networks.make(), networks.examples(SAMPLES * BATCH)
    masks, head = by_loops(params, tokens, choose)
    found = pruned["listed", choose.__name__]
    for block, wanted, weights in zip(
        found.masks["blocks"], masks, found.params["blocks"], strict=True
    ):
        for name in LAYERS:
            np.testing.assert_array_equal(block[name], wanted[name])
            assert not weights[name][~wanted[name]].any()
    np.testing.assert_array_equal(found.masks["head"], head)


def test_listed_nested_and_scanned_trees_give_the_same(pruned):
    for (_, name), other in pruned.items():
        first = pruned["listed", name]
        for a, b in ((first.params, other.params), (first.masks, other.masks)):
            a, b = (x | {"blocks": stacked(x["blocks"])} for x in (a, b))
            jax.tree.map(np.testing.assert_array_equal, a, b)
        assert [s.kept for s in first.history] == [s.kept for s in other.history]


def test_a_layer_is_best_on_its_support_for_what_reaches_it(pruned):
    """Least squares of what the dense layer makes of the inputs that came through."""
    found = pruned["listed", "layerwise-obs"]
    params, (tokens, _) = networks.make(), networks.examples(SAMPLES * BATCH)
    params, new = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
        for tree in (params, found.params)
    )
    h = params["table"][tokens]
    for dense, sparse, masks in zip(
        params["blocks"], new["blocks"], found.masks["blocks"], strict=True
    ):
        _, read = forward(dense, h)
        for name in LAYERS:
            x = read[name].reshape(-1, read[name].shape[-1])
            moment = x.T @ x
            moment += 0.01 * np.mean(np.diag(moment)) * np.eye(len(moment))
            for out, kept in enumerate(masks[name].T):
                wanted = np.linalg.solve(
                    moment[np.ix_(kept, kept)], moment[kept] @ dense[name][:, out]
                )
                np.testing.assert_allclose(
                    sparse[name][kept, out], wanted, rtol=2e-3, atol=2e-4
                )
        h, _ = forward(sparse, h)


def test_history_has_a_stage_for_each_block(pruned):
    history = pruned["stacked", "wanda"].history
    assert [stage.stage for stage in history] == [1, 2, 3, 4, 5]
    total = sum(history[-1].layers.values()) * 2
    assert history[-1].kept == total / 2
    assert [stage.layers["blocks/up[1]"] for stage in history] == [96, 48, 48, 48, 48]
    batch, params = networks.examples(SAMPLES * BATCH), networks.make("stacked")
    np.testing.assert_allclose(
        history[0].loss_before, networks.loss_fn(params, batch), 1e-6
    )
    after = networks.loss_fn(pruned["stacked", "wanda"].params, batch)
    np.testing.assert_allclose(history[-1].loss, after, 1e-6)
    assert np.isnan([stage.loss for stage in history[:-1]]).all()


def test_an_mlp_is_pruned_layer_by_layer():
    draw = np.random.default_rng(0).normal
    shapes = ((6, 6), (6, 6), (6, 4))
    params = [{"kernel": draw(size=s), "bias": draw(size=s[1])} for s in shapes]
    x = draw(size=(12, 6))

    def loss_fn(params, x):
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return jnp.mean(x)

    found = swapjax.prune(
        loss_fn, params, x, sparsity=0.5, method=swapjax.wanda(), samples=12,
        key=jax.random.key(0), sequential=True,
    )  # fmt: skip
    assert len(found.history) == 3
    h = x
    for layer, masks in zip(params, found.masks, strict=True):
        wanted = wanda(layer["kernel"], h[:, None])
        np.testing.assert_array_equal(masks["kernel"], wanted)
        assert masks["bias"].shape == ()
        h = np.tanh(h @ (layer["kernel"] * np.asarray(masks["kernel"])) + layer["bias"])


def test_arrays_of_the_host_stay_as_they_are():
    dtype = jnp.bfloat16
    params, batch = networks.make("stacked", dtype=dtype), networks.examples()
    kept = jax.tree.map(np.copy, params)
    plan = swapjax.plan(
        params, pattern=swapjax.NM(2, 4), loss_fn=networks.loss_fn, batch=batch,
        exclude=["head"],
    )  # fmt: skip
    found = prune(params, batch, swapjax.wanda(), samples=3, sparsity=None, plan=plan)
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    for leaf in jax.tree.leaves(found.params):
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == dtype
    masks = found.masks["blocks"]["up"]
    assert (masks.reshape(4, 2, 4, 12).sum(axis=2) == 2).all()
    assert found.history[-1].sparsity == 0.5


def test_numbers_among_params_widen_nothing():
    kernel = np.arange(1, 10).reshape(3, 3).astype(jnp.bfloat16)
    seen = set()

    def loss_fn(params, x):
        y = x @ params["kernel"] * params["scale"]
        seen.add(str(y.dtype))
        return jnp.mean(y)

    found = swapjax.prune(
        loss_fn, {"kernel": kernel, "scale": 2.0}, np.ones((4, 3), jnp.bfloat16),
        sparsity=0.5, samples=4, method=swapjax.magnitude(), key=jax.random.key(0),
        sequential=True,
    )  # fmt: skip
    assert seen == {"bfloat16"}
    assert found.params["scale"].dtype == np.float32


class TestRefused:
    """What block by block cannot do is said before any work starts."""

    def refuse(self, message, **more):
        given = {"method": swapjax.wanda()} | more
        with pytest.raises(ValueError, match=message):
            prune(networks.make(), networks.examples(8), **given)

    def test_methods_that_look_at_gradients(self):
        self.refuse(
            "^method obd looks at gradients, which sequential never holds",
            method=swapjax.obd(),
        )

    def test_budgets_that_layers_of_two_blocks_share(self):
        plan = swapjax.plan(networks.make(), 0.5, exclude=["head"])
        self.refuse(
            "^plan: layers of blocks/0 and blocks/1 compete for one budget",
            sparsity=None, plan=plan,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("stages", 2),
            ("finetune", swapjax.FineTune(optax.sgd(0.1), 1, batch=2)),
            ("recalibrate", lambda params: params),
            ("validation", 0.5),
            ("criterion", "loss"),
        ],
    )
    def test_what_needs_the_whole_network(self, name, value):
        self.refuse(f"^{name}[: ]", **{name: value})

    def test_data_that_ends_early(self):
        self.refuse("^data: 8 examples, fewer than the 18", samples=9)
        with pytest.raises(ValueError, match=r"^data: the iterator ended"):
            prune(networks.make(), iter([networks.examples(4)]), swapjax.wanda())

    def test_blocks_and_progress_without_it(self):
        for name, value in (("blocks", "layers"), ("progress", True)):
            with pytest.raises(ValueError, match=f"^{name}: only sequential=True"):
                swapjax.prune(
                    networks.loss_fn, networks.make(), networks.examples(),
                    sparsity=0.5, key=jax.random.key(0), **{name: value},
                )  # fmt: skip
        self.refuse("^progress must be True or a function, got 'bar'", progress="bar")
        with pytest.raises(ValueError, match=r"^sequential must be True or False"):
            swapjax.prune(networks.loss_fn, networks.make(), sequential="no")

    def test_keys_among_examples(self):
        data = np.ones((4, 3)), jax.random.split(jax.random.key(0), 4)
        with pytest.raises(ValueError, match=r"^data: has PRNG keys, key<fry>, which"):
            swapjax.prune(
                lambda p, x: jnp.sum(x[0] @ p), np.eye(3), data, sparsity=0.5,
                samples=4, method=swapjax.wanda(), key=jax.random.key(0),
                sequential=True,
            )  # fmt: skip

    def test_losses_of_several_numbers(self):
        for loss_fn in (lambda p, x: x @ p, lambda p, x: (jnp.sum(x @ p), x)):
            with pytest.raises(ValueError, match=r"^loss_fn must return one scalar"):
                swapjax.prune(
                    loss_fn, np.eye(3), np.ones((4, 3)), sparsity=0.5, samples=4,
                    method=swapjax.wanda(), key=jax.random.key(0), sequential=True,
                )  # fmt: skip

    def test_leaves_that_the_program_does_not_reach(self):
        params = networks.make() | {"spare": {"kernel": np.ones((3, 3), np.float32)}}
        plan = swapjax.plan(params, 0.5, allocation="uniform")
        with pytest.raises(ValueError, match=r"^params: spare/kernel is not reached"):
            prune(
                params, networks.examples(8), swapjax.wanda(), sparsity=None, plan=plan
            )

    def test_losses_that_are_not_finite(self):
        params = networks.make()
        params["head"][0, 0] = np.nan
        with pytest.raises(ValueError, match=r"^params: NaN .* in head"):
            prune(params, networks.examples(8), swapjax.wanda())
