"""Accuracy under attacks: what is counted, told, warned of, resumed, refused."""

import json

import attacked
import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest

from swapjax import robust
from swapjax.robust import suite

KEY = jax.random.key(0)
DATA = attacked.batch(50)
FEW = ("fgsm", "apgd-ce:5")


@pytest.fixture(scope="module")
def params():
    return attacked.trained()


def evaluate(params, data=DATA, apply=network.apply, **settings):
    given = {"epsilon": 0.1, "key": KEY, "attacks": FEW, "batch": 16} | settings
    return robust.evaluate(apply, params, data, **given)


def test_it_counts_what_attacks_leave(params):
    found = evaluate(params)
    images, labels = DATA
    correct = np.asarray(network.apply(params, images).argmax(1) == labels)
    np.testing.assert_array_equal(found.correct, correct)
    first, second = found.attempts
    assert found.examples == 50
    assert found.clean == correct.mean() > first.left > found.robust > 0
    assert [first.attack, second.attack] == list(FEW)
    assert first.tried == correct.sum()
    assert second.tried == first.tried - first.fell
    assert first.left == first.alone == (first.tried - first.fell) / 50
    assert second.left == found.robust == found.standing.mean()
    assert second.alone is None
    assert set(np.unique(found.outcomes)) == {0, 1, 2}
    told = json.loads(json.dumps(found.to_dict()))
    assert told["attempts"][0]["fell"] == first.fell
    assert "outcomes" not in told


def test_each_alone_leaves_more_than_the_minimum(params):
    found = evaluate(params, alone=True)
    assert all(attempt.tried == found.correct.sum() for attempt in found.attempts)
    assert found.robust <= min(attempt.alone for attempt in found.attempts)
    worst = (found.outcomes == 2).any(axis=0)
    assert found.robust == np.mean(found.correct & ~worst)


def test_it_is_the_minimum_by_image_over_runs_of_an_attack(params):
    """Two runs that each fell one image; what fell is not tried again."""
    images, labels = (np.asarray(part) for part in DATA)
    right = np.flatnonzero(
        np.asarray(network.apply(params, images).argmax(1) == labels)
    )
    tried = []

    def fell(number):
        def run(key, apply, params, x, y, *, epsilon, norm, box):
            same = np.all(np.asarray(x) == images[right[number]], axis=1)
            tried.append(bool(same.any()))
            other = images[labels != labels[right[number]]][0]
            return jnp.where(same[:, None], other, x)

        return run

    attack = robust.Attack("two", (fell(0), fell(3), fell(0)))
    found = evaluate(params, attacks=[attack], epsilon=1, batch=50)
    assert np.flatnonzero(found.correct & ~found.standing).tolist() == [
        right[0], right[3],
    ]  # fmt: skip
    assert tried == [True, True, False]


def test_batches_are_of_one_shape(params):
    shapes = set()

    def apply(params, x):
        shapes.add(x.shape)
        return network.apply(params, x)

    got = evaluate(params, apply=apply, attacks="fgsm")
    assert shapes == {(16, 6), (50, 6)}  # all of them are looked at in shape only
    assert got.clean == evaluate(params).clean


def test_the_same_key_gives_the_same(params):
    one, two = evaluate(params), evaluate(params)
    np.testing.assert_array_equal(one.outcomes, two.outcomes)
    assert one.to_dict() == two.to_dict()


@pytest.mark.parametrize("at", [1, 2, 6])
def test_it_goes_on_where_it_was_stopped(params, tmp_path, at):
    given = {"attacks": ["pgd-margin:1", "apgd-ce:5"], "restarts": 2}
    wanted, path, calls = evaluate(params, **given), tmp_path / "state", []

    def stop(done, most):
        calls.append((done, most))
        if len(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(params, checkpoint=path, progress=stop, **given)
    rest = []
    again = evaluate(
        params, checkpoint=path, progress=lambda *told: rest.append(told), **given
    )
    np.testing.assert_array_equal(again.outcomes, wanted.outcomes)
    assert rest[0] > calls[-1]
    assert rest[-1] == (16, 16)
    third = evaluate(params, checkpoint=path, **given)
    np.testing.assert_array_equal(third.outcomes, wanted.outcomes)
    with pytest.raises(ValueError, match=r"another run \(.*epsilon was 0.1, is 0.2"):
        evaluate(params, checkpoint=path, epsilon=0.2, **given)


def test_a_network_of_cosines_is_attacked_with_its_scale_and_without(params):
    def cosines(params, x):
        return network.apply(params, x) / 200

    with pytest.warns(UserWarning, match=r"outputs lie in \[-1, 1\].*give the scale="):
        evaluate(params, apply=cosines, attacks="fgsm")
    found = evaluate(params, apply=cosines, scale=200, attacks="fgsm")
    names = [attempt.attack for attempt in found.attempts]
    assert names == ["fgsm, outputs times 200", "fgsm"]
    plain = evaluate(params, attacks="fgsm")
    assert found.attempts[0].left == plain.robust


def test_masked_gradients_are_warned_of(params):
    def steps(params, x):
        return network.apply(params, jnp.round(4 * x) / 4)

    with pytest.warns(UserWarning, match="100.0% of the input gradient") as caught:
        found = evaluate(params, apply=steps, attacks="fgsm")
    assert found.zero_gradients == 1
    assert found.warnings[0] in str(caught[0].message)

    def flat(params, x):
        """Cross-entropy rounds to zero, where differences of logits do not."""
        return 1e4 * network.apply(params, x)

    with pytest.warns(UserWarning, match="attacks by cross-entropy left|is exactly"):
        found = evaluate(params, apply=flat, attacks=["fgsm", "pgd-margin:5"])
    assert found.missed > 0.1
    assert len(found.warnings) == 2


def test_a_black_box_that_finds_more_is_warned_of(params):
    images, labels = DATA

    def black(key, apply, params, x, y, *, epsilon, norm, box):
        rows = jnp.argmax(y[:, None] != labels[None], axis=1)  # of another class
        return images[rows]

    def still(key, apply, params, x, y, *, epsilon, norm, box):
        return x

    attacks = [
        robust.Attack("still", (still,), "ce"),
        robust.Attack("black", (black,), "black box"),
    ]
    with pytest.warns(UserWarning, match="an attack without gradients took"):
        evaluate(params, attacks=attacks, epsilon=1)


def test_few_classes_are_told_of(params):
    def three(params, x):
        return network.apply(params, x)[:, :3]

    data = DATA[0], DATA[1] % 3
    with pytest.warns(UserWarning, match="apgd-dlr climbs the margin: .* here are 3"):
        found = evaluate(params, data, apply=three, attacks=["apgd-dlr:3"])
    assert len(found.warnings) == 1


def test_all_kinds_of_names_are_attacks(params):
    images = jnp.tile(DATA[0][:, :, None], (1, 1, 4))

    def apply(params, x):
        return network.apply(params, x.mean(2))

    names = ["fgsm", "pgd-dlr:2", "apgd-t:2", "square:3"]
    found = evaluate(params, (images, DATA[1]), apply=apply, attacks=names)
    assert [attempt.attack for attempt in found.attempts] == names
    assert found.robust < found.clean
    assert set(suite.DEFAULT) < set(suite.NAMES)


def test_outputs_without_numbers_are_wrong(params):
    def spoilt(params, x):
        outputs = network.apply(params, x)
        return outputs.at[0].set(jnp.nan)

    found = evaluate(params, apply=spoilt, attacks=["fgsm"], batch=50)
    assert not found.correct[0]


def out_of_ball(key, apply, params, x, y, *, epsilon, norm, box):
    return x + 2 * epsilon


def no_number(key, apply, params, x, y, *, epsilon, norm, box):
    return x * jnp.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be a number, 0 or more"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"restarts": 0}, "restarts must be 1 or more"),
        ({"scale": 0}, "scale must be a positive number, got 0"),
        ({"scale": "15"}, "scale must be a positive number, got '15'"),
        ({"key": 0}, "key must be a JAX PRNG key"),
        ({"data": DATA[0]}, r"data must be \(images, labels\), got"),
        ({"data": (DATA[0] + 1, DATA[1])}, "images must lie in the box"),
        ({"data": (DATA[0], DATA[1] - 1)}, "labels must be from 0 to 4"),
        ({"data": (DATA[0], DATA[1] * 1.0)}, "labels must be integers"),
        ({"data": (DATA[0][:0], DATA[1][:0])}, "data must have one image or more"),
        ({"apply": lambda p, x: x[:, :1]}, "apply must return a logit for each of 2"),
        ({"attacks": ["cw"]}, "attacks must be Attack, or NAME .*, got 'cw'"),
        ({"attacks": ["pgd-ce:0"]}, "got 'pgd-ce:0'"),
        ({"attacks": ["fgsm:2"]}, "fgsm has one step"),
        ({"attacks": []}, "attacks must be some"),
        ({"attacks": ["fgsm", "fgsm"]}, "attacks must be some, each once"),
        (
            {"attacks": [robust.Attack("far", (out_of_ball,))]},
            "attack 'far' must stay within 0.1 of images .* a shift of 0.2",
        ),
        (
            {"attacks": [robust.Attack("far", (no_number,))]},
            "attack 'far' must stay within 0.1",
        ),
        ({"checkpoint": "/none/here"}, "checkpoint: /none is not a folder"),
    ],
)
def test_bad_input_is_named(params, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(params, **arguments)
