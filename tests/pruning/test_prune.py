"""The driver: stages, fine-tuning, resuming, and everything it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax import FineTune, GradientNoise, Status
from swapjax.io import checkpoint

KEY = jax.random.key(0)
LR = swapjax.linear_regression()


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return jnp.mean(jnp.square(hidden @ params["fc2"]["kernel"] - y))


@pytest.fixture(scope="module")
def network():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "fc1": {
            "kernel": jax.random.normal(keys[0], (6, 10)),
            "bias": jax.random.normal(keys[1], (10,)),
        },
        "fc2": {"kernel": jax.random.normal(keys[2], (10, 3))},
    }
    x = np.asarray(jax.random.normal(keys[3], (200, 6)))
    hidden = np.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return params, (x, np.asarray(hidden @ params["fc2"]["kernel"]) + 0.1)


def prune(network, **options):
    params, data = network
    goal = {} if "plan" in options else {"sparsity": 0.8}
    defaults = {**goal, "method": LR, "samples": 60, "key": KEY}
    return swapjax.prune(loss_fn, params, data, **{**defaults, **options})


def equal(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_stages_climb_to_the_sparsity_and_tell_how(network):
    seen = []
    pruned = prune(network, stages=4, callback=seen.append)
    assert seen == list(pruned.history)
    assert [stage.stage for stage in seen] == [1, 2, 3, 4]
    table = swapjax.exponential().table(0.8, 4)
    assert [s.kept for s in seen] == [round(90 * (1 - float(level))) for level in table]
    assert seen[-1].sparsity == pytest.approx(0.8)
    for stage in seen:
        assert stage.objective[1] <= stage.objective[0]
        assert stage.seconds > 0
        assert stage.status is Status.CONVERGED
        assert np.isfinite([stage.loss, stage.loss_before]).all()
    # What is not prunable is not touched, and has the scalar mask True.
    params, _ = network
    assert equal(pruned.params["fc1"]["bias"], params["fc1"]["bias"])
    assert pruned.masks["fc1"]["bias"].shape == ()
    assert jax.tree.structure(pruned.masks) == jax.tree.structure(params)
    assert equal(swapjax.apply_masks(pruned.params, pruned.masks), pruned.params)


def test_several_stages_lose_less_than_one(network):
    _, data = network
    once, often = prune(network), prune(network, stages=6)
    assert loss_fn(often.params, data) < loss_fn(once.params, data)


def test_the_default_method_is_swap(network):
    default, named = prune(network, method=None), prune(network, method=swapjax.swap())
    assert equal(default.params, named.params)


def test_the_same_key_gives_the_same_result(network):
    first = prune(network, stages=2, noise=GradientNoise(1.0, 0.5))
    again = prune(network, stages=2, noise=GradientNoise(1.0, 0.5))
    other = prune(
        network, stages=2, noise=GradientNoise(1.0, 0.5), key=jax.random.key(7)
    )
    assert equal(first.params, again.params)
    assert not equal(first.params, other.params)


def test_a_plan_brings_its_own_rules(network):
    params, _ = network
    rule = swapjax.plan(params, 0.5, include="fc1/kernel", allocation="uniform")
    pruned = prune(network, plan=rule)
    assert int(jnp.sum(pruned.params["fc1"]["kernel"] != 0)) == 30
    assert equal(pruned.params["fc2"], params["fc2"])


def test_rows_may_average_several_examples(network):
    pruned = prune(network, samples=20, batch=5)
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)


def test_matrix_free_and_stored_end_alike(network):
    stored = prune(network, stages=2, storage="stored")
    free = prune(network, stages=2, storage="matrix-free")
    assert equal(stored.masks, free.masks)
    for a, b in zip(
        jax.tree.leaves(stored.params), jax.tree.leaves(free.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


def test_fine_tuning_trains_and_keeps_zeros(network):
    params, data = network
    tune = FineTune(optax.adamw(1e-2), steps=30, batch=20)
    plain, tuned = prune(network), prune(network, finetune=tune)
    assert equal(plain.masks, tuned.masks)
    assert loss_fn(tuned.params, data) < loss_fn(plain.params, data)
    assert equal(swapjax.apply_masks(tuned.params, tuned.masks), tuned.params)
    assert not equal(tuned.params["fc1"]["bias"], params["fc1"]["bias"])


def test_recalibration_comes_last_and_is_masked(network):
    shifted = prune(network, recalibrate=lambda p: jax.tree.map(lambda x: x + 1.0, p))
    plain = prune(network)
    kept = plain.masks["fc1"]["kernel"]
    np.testing.assert_allclose(
        shifted.params["fc1"]["kernel"],
        jnp.where(kept, plain.params["fc1"]["kernel"] + 1.0, 0.0),
    )


def test_within_keeps_what_was_pruned_before(network):
    first = prune(network, sparsity=0.5, method=swapjax.magnitude())
    second = prune((first.params, network[1]), within=first.masks, stages=3)
    assert int(sum(map(jnp.sum, map(jnp.ravel, jax.tree.leaves(second.masks))))) > 0
    inside = jax.tree.map(lambda new, old: new & ~old, second.masks, first.masks)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(inside))
    assert swapjax.density(second.masks) == pytest.approx(0.2)


def test_an_iterator_serves_stages_and_fine_tuning(network):
    params, (x, y) = network
    batches = ((x[i : i + 20], y[i : i + 20]) for i in range(0, 200, 20))
    tune = FineTune(optax.sgd(1e-3), steps=2)
    pruned = prune((params, batches), stages=2, samples=60, finetune=tune)
    # Two stages of three batches, and two steps after each.
    assert len(list(batches)) == 10 - 2 * (3 + 2)
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)


class KilledError(Exception):
    """What stops a run between two stages."""


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_run_goes_on_bit_by_bit(network, tmp_path, stream):
    params, (x, y) = network
    state = tmp_path / "state.safetensors"
    options = {
        "stages": 4,
        "finetune": FineTune(optax.adam(1e-3), steps=3, batch=20),
        "noise": GradientNoise(1.0, 0.3),
    }

    def data():
        if not stream:
            return x, y
        order = range(0, 2000, 20)
        return ((x[i % 200 :][:20], y[i % 200 :][:20]) for i in order)

    def kill(stage):
        if stage.stage == 2:
            raise KilledError

    whole = prune((params, data()), **options)
    with pytest.raises(KilledError):
        prune((params, data()), checkpoint=state, callback=kill, **options)
    assert [p.name for p in tmp_path.iterdir()] == [state.name]
    seen = []
    resumed = prune((params, data()), checkpoint=state, callback=seen.append, **options)
    assert [stage.stage for stage in seen] == [3, 4]
    assert [stage.stage for stage in resumed.history] == [1, 2, 3, 4]
    assert equal(resumed.params, whole.params)
    assert equal(resumed.masks, whole.masks)
    # A finished run is read back at once.
    again = prune((params, data()), checkpoint=state, callback=seen.append, **options)
    assert len(seen) == 2
    assert equal(again.params, whole.params)


def test_the_state_of_another_run_is_refused(network, tmp_path):
    state = tmp_path / "state.safetensors"
    prune(network, checkpoint=state)
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"belongs to another run \(samples was 60"):
        prune(network, checkpoint=state, samples=50)
    moved = jax.tree.map(lambda p: p + 1e-6, network[0])
    with pytest.raises(ValueError, match="belongs to another run"):
        prune((moved, network[1]), checkpoint=state)
    assert state.read_bytes() == before


def test_another_optimizer_or_other_data_are_another_run(network, tmp_path):
    params, (x, y) = network
    state = tmp_path / "state.safetensors"
    tune = FineTune(optax.sgd(1e-3), steps=1, batch=20)
    prune(network, checkpoint=state, finetune=tune)
    other = FineTune(optax.sgd(1e-2), steps=1, batch=20)
    with pytest.raises(ValueError, match=r"another run.*optimizer"):
        prune(network, checkpoint=state, finetune=other)
    with pytest.raises(ValueError, match=r"another run \(data was"):
        prune((params, (x, y + 1)), checkpoint=state, finetune=tune)


def test_a_checkpoint_in_no_folder_is_refused_at_once(network, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint: .*nowhere is not a folder"):
        prune(network, checkpoint=tmp_path / "nowhere" / "state.safetensors")


def test_files_that_are_no_states_are_refused(network, tmp_path):
    path = tmp_path / "params.safetensors"
    checkpoint.save_params(path, network[0])
    with pytest.raises(ValueError, match="is not the state of a run of stages"):
        prune(network, checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        prune(network, checkpoint=path)


def test_any_tree_of_arrays_is_taken(network):
    """An nnx state, and a module of Equinox's kind."""
    from flax import nnx

    layer = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def loss(state, batch):
        return jnp.mean(jnp.square(nnx.merge(graph, state)(batch[0]) - batch[1]))

    pruned = swapjax.prune(
        loss, state, network[1], sparsity=0.5, method=LR, samples=60, key=KEY
    )
    assert isinstance(pruned.params, nnx.State)
    assert int(jnp.sum(pruned.params["kernel"][...] != 0)) == 9


def test_bfloat16_stays_bfloat16(network):
    params, data = network
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    pruned = prune((narrow, data), dtype=jnp.bfloat16)
    assert {p.dtype.name for p in jax.tree.leaves(pruned.params)} == {"bfloat16"}


def spoil(tree, value):
    return jax.tree.map(lambda x: jnp.asarray(x).at[(0,) * x.ndim].set(value), tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"sparsity": float("nan")}, r"sparsity must be in \[0, 1\), got nan"),
        ({"sparsity": 0.999}, "min_keep"),
        ({"stages": 0}, "stages must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"samples": 201}, "200 examples, fewer than the 201"),
        ({"samples": 101, "batch": 2}, "200 examples, fewer than the 202"),
        ({"storage": "disk"}, "storage must be 'auto'"),
        (
            {"within": {"fc1": jnp.ones(3, bool)}},
            "within: must have the tree of params",
        ),
    ],
)
def test_bad_arguments_are_named(network, options, message):
    with pytest.raises(ValueError, match=message):
        prune(network, **options)


def test_masks_with_too_little_room_are_refused(network):
    masks = prune(network, sparsity=0.9, method=swapjax.magnitude()).masks
    with pytest.raises(ValueError, match="within: has 9 entries in all, 18 are to be"):
        prune(network, within=masks)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_named(network, value):
    params, (x, y) = network
    bad = {**params, "fc2": spoil(params["fc2"], value)}
    with pytest.raises(ValueError, match=r"params: NaN.* in fc2/kernel \(1 of 30\)"):
        prune((bad, (x, y)))
    with pytest.raises(ValueError, match=r"data: NaN.* in 1 \(1 of 600\)"):
        prune((params, (x, spoil(y, value))))


def test_gradients_that_are_not_finite_leave_nothing_behind(network, tmp_path):
    def overflows(params, batch):
        return loss_fn(params, batch) + jnp.sqrt(jnp.sum(0 * params["fc1"]["kernel"]))

    with pytest.raises(ValueError, match=r"gradients: NaN.*fc1/kernel"):
        swapjax.prune(
            overflows, *network, sparsity=0.5, method=LR, samples=60, key=KEY,
            checkpoint=tmp_path / "state.safetensors",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_names_that_are_unknown_ask_for_a_rule(network):
    with pytest.raises(ValueError, match="say with include what to prune of w"):
        swapjax.prune(
            lambda p, b: jnp.sum(p["w"]), {"w": jnp.ones((3, 3))}, network[1],
            sparsity=0.5, key=KEY,
        )  # fmt: skip


def test_an_iterator_that_ends_is_an_error(network):
    params, (x, y) = network
    with pytest.raises(ValueError, match="the iterator ended"):
        prune((params, iter([(x[:20], y[:20])])))


def test_recalibration_that_fails_is_named(network):
    broken = lambda p: jax.tree.map(lambda x: x * jnp.nan, p)  # noqa: E731
    with pytest.raises(ValueError, match="params: NaN or infinite entries in fc1/bias"):
        prune(network, recalibrate=broken)


def test_a_leaf_without_entries_is_left_alone(network):
    params, data = network
    params = {**params, "none": {"kernel": jnp.zeros((0, 3))}}
    pruned = prune((params, data))
    assert pruned.params["none"]["kernel"].shape == (0, 3)
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)


class TestWithoutExamples:
    """What looks at weights alone needs no loss, no data and no key."""

    def test_magnitude_of_params_in_hand(self, network):
        params, _ = network
        method = swapjax.magnitude()
        pruned = swapjax.prune(None, params, sparsity=0.8, method=method, stages=2)
        other = prune(network, method=method, stages=2)
        assert equal(pruned.params, other.params)
        assert [stage.kept for stage in pruned.history] == [
            stage.kept for stage in other.history
        ]
        assert np.isnan(pruned.history[-1].loss)
        assert pruned.history[-1].status is swapjax.Status.CONVERGED

    def test_few_examples_and_no_key_tell_the_loss(self, network):
        params, (x, y) = network
        few = (x[:7], y[:7])
        pruned = swapjax.prune(
            loss_fn, params, few, sparsity=0.5, method=swapjax.magnitude(), batch=2
        )
        wanted = loss_fn(pruned.params, (x[:6], y[:6]))
        np.testing.assert_allclose(pruned.history[0].loss, wanted, rtol=1e-6)

    def test_batches_of_an_iterator_need_no_key(self, network):
        params, (x, y) = network
        batches = lambda: iter([(x[:60], y[:60])])  # noqa: E731
        options = {"sparsity": 0.8, "method": LR, "samples": 60}
        first = swapjax.prune(loss_fn, params, batches(), **options)
        again = swapjax.prune(loss_fn, params, batches(), key=KEY, **options)
        assert equal(first.params, again.params)

    def test_a_run_without_a_key_resumes(self, network, tmp_path):
        params, _ = network
        options = {"sparsity": 0.8, "method": swapjax.magnitude(), "stages": 3}
        state = tmp_path / "state.safetensors"

        def interrupt(stage):
            if stage.stage == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            swapjax.prune(None, params, **options, checkpoint=state, callback=interrupt)
        resumed = swapjax.prune(None, params, **options, checkpoint=state)
        assert equal(resumed.params, swapjax.prune(None, params, **options).params)
        assert len(resumed.history) == 3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"data": None}, "data: the method linear-regression needs examples, got"),
            ({"key": None}, "key: examples are drawn for the method linear-regression"),
            ({"loss_fn": None}, "loss_fn must be a function of params and a batch"),
            (
                {
                    "data": None,
                    "method": swapjax.magnitude(),
                    "finetune": FineTune(optax.sgd(1e-3), 1),
                },
                "data: finetune needs examples, got None",
            ),
        ],
    )
    def test_what_is_missing_is_named(self, network, options, message):
        params, data = network
        given = {
            "loss_fn": loss_fn, "params": params, "data": data, "sparsity": 0.8,
            "method": LR, "samples": 60, "key": KEY,
        }  # fmt: skip
        with pytest.raises(ValueError, match=message):
            swapjax.prune(**{**given, **options})


def test_a_state_of_another_version_is_refused(network, tmp_path):
    """Files of swapjax 0.1 named no format."""
    state = tmp_path / "state.safetensors"
    prune(network, checkpoint=state)
    arrays, metadata = checkpoint.read(state)
    assert metadata.pop("format") == "2"
    checkpoint.save_params(state, dict(arrays), metadata)
    with pytest.raises(ValueError, match="written by another version of swapjax"):
        prune(network, checkpoint=state)
