"""Settings are told by what they are, in whatever process."""

import dataclasses
import enum
import functools
import json
import os
import pty
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax.core import identity
from swapjax.core.identity import describe
from swapjax.loops import steps

PARAMS = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
RATE = 1e-3


class Color(enum.Enum):
    RED = 1


class Scale:
    def __init__(self, by):
        self.by, self.names = by, {"a", "bb", "ccc"}
        self.lock = threading.Lock()

    def __call__(self, x):
        return self.by * x

    def method(self, x):
        return self.by * x


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by


@dataclasses.dataclass(frozen=True)
class Holds:
    inside: object


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2 * g,))


def closed(over):
    return lambda x: x * over


def named(x):
    return x in {"a", "bb", "ccc", "dddd"}


def itself():
    def loop(x):
        return loop(x) if x else x

    return loop


def unset():
    def later():
        return never

    if Scale is None:
        never = 1
    return later


def own(rate):
    def update(gradients, state, params=None):
        return jax.tree.map(lambda g: -rate * g, gradients), state

    return optax.GradientTransformation(lambda params: (), update)


def by_global():
    def update(gradients, state, params=None):
        return jax.tree.map(lambda g: -RATE * g, gradients), state

    return optax.GradientTransformation(lambda params: (), update)


def sparse(rule, **options):
    schedule = swapjax.cubic(0, 4, every=2)
    options = {
        "sparsity": 0.5,
        "schedule": schedule,
        "key": jax.random.key(0),
    } | options
    return swapjax.sparse(optax.sgd(0.1), rule, **options)


# Each of them once, anew at each call: what differs differs, what does not does not.
VALUES = {
    "none": lambda: None,
    "true": lambda: True,
    "one": lambda: 1,
    "one, a float": lambda: 1.0,
    "text": lambda: "1",
    "bytes": lambda: b"1",
    "fraction": lambda: Fraction(1, 3),
    "enum": lambda: Color.RED,
    "path": lambda: Path("a/b"),
    "tuple": lambda: (1, 2),
    "list": lambda: [1, 2],
    "set": lambda: frozenset(["a", "bb", "ccc", "dddd", "eeeee"]),
    "dict": lambda: {"a": {1, 2}, "b": None},
    "slice": lambda: slice(1, None),
    "dtype": lambda: jnp.bfloat16,
    "another": lambda: np.dtype("float16"),
    "array": lambda: jnp.arange(5000.0),
    "array, an entry off": lambda: jnp.arange(5000.0).at[2500].set(0),
    "objects": lambda: np.asarray([None, "a"], object),
    "key": lambda: jax.random.key(1),
    "key of another kind": lambda: jax.random.key(1, impl="rbg"),
    "lambda": lambda: lambda x: x + 1,
    "another lambda": lambda: lambda x: x + 2,
    "closed": lambda: closed(0.5),
    "closed over another": lambda: closed(0.25),
    "closed over an array": lambda: closed(jnp.asarray(0.5)),
    "closed over another array": lambda: closed(jnp.asarray(0.25)),
    "closed over a function": lambda: closed(closed(0.5)),
    "with a default": lambda: lambda x, by=0.5: x * by,
    "with another default": lambda: lambda x, by=0.25: x * by,
    "with a set in its code": lambda: named,
    "itself": itself,
    "partial": lambda: functools.partial(closed, over=0.5),
    "another partial": lambda: functools.partial(closed, over=0.25),
    "jitted": lambda: jax.jit(closed(0.5)),
    "jitted another": lambda: jax.jit(closed(0.25)),
    "custom": lambda: doubled,
    "library": lambda: jax.nn.relu,
    "another of it": lambda: jnp.tanh,
    "ufunc": lambda: jnp.add,
    "built in": lambda: max,
    "object": lambda: Scale(0.5),
    "another object": lambda: Scale(0.25),
    "method": lambda: Scale(0.5).method,
    "another method": lambda: Scale(0.25).method,
    "slots": lambda: Slotted(0.5),
    "other slots": lambda: Slotted(0.25),
    "dataclass": lambda: Holds(closed(0.5)),
    "another dataclass": lambda: Holds(closed(0.25)),
    "schedule": lambda: optax.cosine_decay_schedule(1e-3, 100),
    "another schedule": lambda: optax.cosine_decay_schedule(1e-3, 200),
    "stages": lambda: swapjax.cubic(initial=0.1),
    "plan": lambda: swapjax.plan(PARAMS, 0.5),
    "another plan": lambda: swapjax.plan(PARAMS, 0.75),
}
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(1e-3),
    "momentum": lambda: optax.sgd(1e-3, momentum=0.9),
    "adam": lambda: optax.adam(1e-3),
    "adam, slower": lambda: optax.adam(1e-4),
    "adamw": lambda: optax.adamw(1e-3),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-3, 100)),
    "longer": lambda: optax.adam(optax.cosine_decay_schedule(1e-3, 200)),
    "lambda": lambda: optax.adam(lambda count: 1e-3 * count),
    "another lambda": lambda: optax.adam(lambda count: 1e-4 * count),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=1e-3),
    "injected, slower": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=1e-4),
    "own": lambda: own(1e-3),
    "own, slower": lambda: own(1e-4),
    "own, by an array": lambda: own(jnp.asarray(1e-3)),
    "own, by another": lambda: own(jnp.asarray(1e-4)),
    "own, by a global": by_global,
    "masked": lambda: optax.masked(optax.sgd(0.1), {"kernel": True, "bias": False}),
    "masked otherwise": lambda: optax.masked(
        optax.sgd(0.1), {"kernel": False, "bias": True}
    ),
    "several": lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "more": lambda: optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(),
    "lbfgs": lambda: optax.lbfgs(),
    "gmp": lambda: sparse(swapjax.gmp()),
    "gmp, longer": lambda: sparse(swapjax.gmp(), schedule=swapjax.cubic(0, 6, every=2)),
    "granet": lambda: sparse(swapjax.granet()),
}


def told():
    """All of them, as this process tells them."""
    values = {name: describe(make()) for name, make in VALUES.items()}
    return values | {
        f"optimizer {name}": [
            steps.describe(make(), p) for p in (PARAMS, jnp.zeros(()))
        ]
        for name, make in OPTIMIZERS.items()
    }


@pytest.fixture(scope="module")
def here():
    return told()


def test_what_is_made_anew_is_the_same(here):
    assert told() == here


def test_what_differs_is_told_apart(here):
    texts = [json.dumps(text) for text in here.values()]
    assert sorted(texts) == sorted(set(texts))
    # The settings of an optimizer are told without its program, too.
    plain = [identity.without_code(here[f"optimizer {name}"][0]) for name in OPTIMIZERS]
    assert sorted(plain) == sorted(set(plain))


def test_nothing_of_the_process_is_told(here):
    assert not any("0x" in json.dumps(text) for text in here.values())


def test_another_process_tells_the_same_whatever_it_was_started_in(here, tmp_path):
    """Another order of hashes, no asserts, a narrow terminal, colours, a folder."""
    out = tmp_path / "told.json"
    environment = os.environ | {
        "PYTHONHASHSEED": "11", "COLUMNS": "20", "FORCE_COLOR": "1", "LC_ALL": "C",
        "TERM": "xterm-256color", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
    }  # fmt: skip
    environment.pop("NO_COLOR", None)
    leader, follower = pty.openpty()
    command = [sys.executable, "-O", os.path.abspath(__file__), str(out)]
    try:
        subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, timeout=120,
            stdin=follower, stdout=follower, stderr=follower,
        )  # fmt: skip
    finally:
        os.close(leader)
        os.close(follower)
    assert json.loads(out.read_text()) == json.loads(json.dumps(here))


def test_what_a_function_counts_in_is_no_setting():
    seen, counts = [], {"calls": 0}

    def counted(x):
        seen.append(x)
        counts["calls"] += 1
        return x

    before = describe(counted)
    counted(1)
    assert describe(counted) == before


def test_a_global_of_a_function_is_a_setting(monkeypatch):
    before = steps.describe(by_global(), PARAMS)
    monkeypatch.setattr(sys.modules[__name__], "RATE", 1e-4, raising=True)
    assert steps.describe(by_global(), PARAMS) != before


def test_what_holds_itself_comes_to_an_end():
    one = Scale(0.5)
    one.friend = one
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert describe(one) == describe(one)
    assert describe(deep) == describe(deep)
    assert describe(unset())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(told()))
